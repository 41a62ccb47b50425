"""Operations that are rewritten for a converter give what JAX's own give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from vit_jax.exporting.primitives import traced

X = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype(np.float32)
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def pooled(window, strides, padding):
    return lambda x: {"y": nnx.max_pool(x, window, strides, padding)}


CASES = {
    "padding": lambda x: {"y": jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)), constant_values=2.5)},
    "negative padding": lambda x: {
        "y": lax.pad(x, 0.5, ((0, 0, 0), (-1, 2, 0), (0, -2, 0), (0, 0, 0)))
    },
    "pooling": pooled((3, 3), (2, 2), ((1, 1), (1, 1))),
    "pooling, ragged": pooled((3, 2), (2, 3), "SAME"),
    "pooling without padding": pooled((2, 2), (1, 1), "VALID"),
    "stacks": lambda x: {"a": jnp.stack([x, x + 1], axis=1), "b": jnp.stack([*x], axis=-1)},
    "weights alone": lambda x: {"y": x + jnp.asarray(TABLE).at[:2].add(1.0).sum(axis=0)},
    "calls": lambda x: {"y": jax.checkpoint(jax.jit(jax.nn.gelu))(nnx.relu(x))},
    "a loop": lambda x: {"y": lax.scan(lambda c, t: (c + t, c), x[0], x)[1]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_traced_function_gives_what_it_gave(case):
    function = CASES[case]
    run, names = traced(function, [jax.ShapeDtypeStruct(X.shape, X.dtype)])
    wanted, found = function(X), run(X)
    assert names == sorted(wanted)
    for name, array in zip(names, found if len(names) > 1 else [found], strict=True):
        np.testing.assert_allclose(array, wanted[name], rtol=1e-6)


@pytest.mark.parametrize("case", ["padding", "pooling", "stacks", "weights alone"])
def test_what_it_consists_of_is_left_in_primitives_that_converters_have(case):
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    run, _ = traced(CASES[case], [shape])
    left = {equation.primitive.name for equation in jax.make_jaxpr(run)(shape).eqns}
    assert left <= {
        "concatenate", "slice", "max", "broadcast_in_dim", "reshape", "squeeze", "add",
        "expand_dims",
    }  # fmt: skip
