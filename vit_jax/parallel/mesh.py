"""The device mesh: axes `data` (batch), `fsdp` (batch and parameters), `tensor` (parameters)."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes: tuple[int, int, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `sizes` over `devices` (all there are, by default) with automatic partitioning.

    Over all devices the order follows the interconnect, as `jax.make_mesh` chooses it.
    """
    auto = (AxisType.Auto,) * len(AXES)  # jax.make_mesh would make them Explicit
    if devices is None or len(devices) == jax.device_count():
        return jax.make_mesh(sizes, AXES, axis_types=auto)
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=auto)
