"""The roofline of a step: the times of its arithmetic, memory and network, each at its stated peak.

The longest of the three is a lower bound of the step's time, because a real step overlaps them only
in part and reaches no peak. So images per second and the share of the peak (MFU) are upper bounds.
"""

from typing import NamedTuple

from vit_jax.planning import shares
from vit_jax.planning.hlo import Collective, Costs
from vit_jax.planning.topologies import Target


class Roofline(NamedTuple):
    """Seconds of each part of a step."""

    compute_s: float
    memory_s: float
    network_s: float

    @property
    def step_s(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        return self._fields[self.index(self.step_s)].removesuffix("_s")


def roofline(costs: Costs, target: Target, mesh: dict[str, int], dtype: str) -> Roofline:
    """The roofline of a step with these costs on every device, with products in `dtype`."""
    chip = target.chip
    assert chip
    return Roofline(
        costs.flops / chip.peak(dtype),
        costs.bytes / chip.bandwidth,
        sum(seconds(item, target, mesh) for item in costs.collectives),
    )


class Share(NamedTuple):
    """What all kernels of a kind do in a step on one device."""

    flops: float
    bytes: float
    seconds: float  # the sum of each kernel's roofline


def by_kind(costs: Costs, target: Target, dtype: str) -> dict[str, Share]:
    """The share of each of `shares.KINDS` in a compiled step. A GPU runs one kernel after another,
    so no kernel's arithmetic overlaps another kernel's traffic here. Therefore all seconds together
    are at least the longer of the step's arithmetic and memory times."""
    chip = target.chip
    assert chip
    table: dict[str, Share] = {}
    for kernel in costs.kernels:
        before = table.get(kernel.kind, Share(0.0, 0.0, 0.0))
        longest = max(kernel.flops / chip.peak(dtype), kernel.bytes / chip.bandwidth)
        added = (kernel.flops, kernel.bytes, longest)
        table[kernel.kind] = Share(*map(sum, zip(before, added, strict=True)))
    return {kind: table[kind] for kind in shares.KINDS if kind in table}


def seconds(one: Collective, target: Target, mesh: dict[str, int]) -> float:
    """Seconds of collectives in rings. Each of n devices sends (n - 1)/n of the whole to its
    neighbour, twice in an all-reduce. Between slices or hosts, each device sends 1/n of the whole,
    if fast links join n devices."""
    chip = target.chip
    assert chip
    if one.kind == "collective-permute":
        return one.bytes / target.link
    rounds = 2 if one.kind == "all-reduce" else 1
    if one.axis == "slices":  # `bytes` is that of one device
        return rounds * one.bytes * (one.size - 1) / one.size / chip.network
    inside = _inside(one, target, mesh)
    outside = one.size // inside
    ring = rounds * one.bytes * (inside - 1) / inside / target.link
    apart = rounds * one.bytes / inside * (outside - 1) / outside / chip.network
    return ring + apart


def _inside(one: Collective, target: Target, mesh: dict[str, int]) -> int:
    """Number of a collective's devices that fast links join: those along the mesh's last axes."""
    names, left, inside = one.axis.split("+"), target.together, 1
    for name in reversed(mesh):
        here = min(mesh[name], left)
        inside *= here if name in names else 1
        left = max(1, left // mesh[name])
    return min(inside, one.size)
