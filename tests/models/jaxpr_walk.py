"""What a traced function does, read from its jaxpr: which primitives, and how many products."""

import math
from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(jaxpr, times: int = 1) -> Iterator[tuple]:
    """Every equation, inner jaxprs included, with how often it runs (a scan's length)."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    for eqn in inner.eqns:
        yield eqn, times
        assert eqn.primitive.name not in ("while", "cond"), "their trip counts are not known"
        repeat = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, ClosedJaxpr | Jaxpr):
                    yield from equations(part, repeat)


def primitives(jaxpr) -> set[str]:
    """Names of all primitives."""
    return {eqn.primitive.name for eqn, _ in equations(jaxpr)}


def macs(jaxpr) -> int:
    """Multiply-accumulates of all matrix products: |left| times the free part of right."""
    total = 0
    for eqn, times in equations(jaxpr):
        if eqn.primitive.name == "dot_general":
            left, right = (variable.aval.shape for variable in eqn.invars)
            (_, contracted), (_, batched) = eqn.params["dimension_numbers"]
            free = [n for axis, n in enumerate(right) if axis not in (*contracted, *batched)]
            total += times * math.prod(left) * math.prod(free)
    return total
