"""A traced function in fewer kinds of primitive operations, for a converter that lacks some.

The interpreter follows JAX's own recipe (docs: "Writing custom Jaxpr interpreters"). What depends
on weights alone is computed here, so that the converter sees its result. Calls are inlined.
`REWRITTEN` says which operations become others with the same result.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal

# Calls that are inlined, and the parameter that holds what they call.
INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "closed_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr",
}  # fmt: skip


def traced(
    function: Callable[..., dict[str, Any]], shapes: Sequence[jax.ShapeDtypeStruct]
) -> tuple[Callable[..., Any], list[str]]:
    """The same function, which returns its outputs as a tuple or as one array; and their names."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)

    def run(*inputs: Any) -> Any:
        outputs = _evaluate(closed.jaxpr, closed.consts, inputs)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run, sorted(out)


def _evaluate(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def value(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        given = list(map(value, equation.invars))
        made = _outputs(equation, given)
        values |= zip(equation.outvars, made, strict=True)
    return list(map(value, jaxpr.outvars))


def _outputs(equation: Any, given: list[Any]) -> Sequence[Any]:
    name, options = equation.primitive.name, equation.params
    if name in INLINED:
        inner = options[INLINED[name]]
        closed = hasattr(inner, "consts")
        return _evaluate(inner.jaxpr if closed else inner, inner.consts if closed else (), given)
    fixed = all(isinstance(n, int) for v in equation.outvars for n in v.aval.shape)
    if fixed and not any(isinstance(x, jax.core.Tracer) for x in given):
        with jax.ensure_compile_time_eval():
            made = equation.primitive.bind(*given, **options)
    elif name in REWRITTEN:
        made = REWRITTEN[name](*given, **options)
    else:
        made = equation.primitive.bind(*given, **options)
    return made if equation.primitive.multiple_results else [made]


def _pad(x: Any, filler: Any, *, padding_config: Sequence[tuple[int, int, int]]) -> Any:
    """Parts of the filler before and behind. Negative padding cuts."""
    for axis, (low, high, inside) in enumerate(padding_config):
        if inside:
            raise NotImplementedError("padding between elements")
        if low < 0 or high < 0:
            x = lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        parts = [x]
        if low > 0:
            parts.insert(0, _filled(filler, x, axis, int(low)))
        if high > 0:
            parts.append(_filled(filler, x, axis, int(high)))
        x = lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _filled(filler: Any, like: Any, axis: int, count: int) -> Any:
    shape = (*like.shape[:axis], count, *like.shape[axis + 1 :])
    return lax.broadcast_in_dim(filler, shape, ())


def _max_of_windows(
    x: Any, *, window_dimensions: Sequence[int], window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]], base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> Any:  # fmt: skip
    """The maximum over the places in a window of the slices that start there."""
    if {*base_dilation, *window_dilation} != {1}:
        raise NotImplementedError("windows with holes")
    x = _pad(x, np.array(-np.inf, x.dtype), padding_config=[(*ends, 0) for ends in padding])
    slices = []
    for start in itertools.product(*map(range, window_dimensions)):
        stop = [
            n if window == 1 else at + (n - window) // stride * stride + 1
            for at, n, window, stride in zip(
                start, x.shape, window_dimensions, window_strides, strict=True
            )
        ]
        slices.append(lax.slice(x, start, stop, window_strides))
    most = slices[0]
    for part in slices[1:]:
        most = lax.max(most, part)
    return most


def _stack(*parts: Any, axis: int) -> Any:
    return lax.concatenate([lax.expand_dims(part, (axis,)) for part in parts], axis)


def _unstack(x: Any, *, axis: int) -> list[Any]:
    return [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]


REWRITTEN: dict[str, Callable[..., Any]] = {
    "pad": _pad, "reduce_window_max": _max_of_windows, "stack": _stack, "unstack": _unstack,
}  # fmt: skip
