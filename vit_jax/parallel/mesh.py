"""The device mesh: axes `data` (batch), `fsdp` (batch and parameters), `tensor` (parameters)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes: tuple[int, int, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `sizes` over `devices` (all there are, by default) with automatic partitioning.

    Over all devices the order follows the interconnect, as `jax.make_mesh` chooses it; of several
    TPU slices, `data` alone crosses the slower network between them. Hosts with GPUs count as
    slices too: there the last axes stay on a host as far as they fit.
    """
    auto = (AxisType.Auto,) * len(AXES)  # jax.make_mesh would make them Explicit
    if devices is not None and len(devices) < jax.device_count():
        return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=auto)
    every = sorted(jax.devices(), key=lambda device: device.id)
    if len({getattr(device, "slice_index", 0) for device in every}) == 1:
        return jax.make_mesh(sizes, AXES, axis_types=auto)
    tpu = every[0].platform == "tpu"
    placed = over_slices(sizes, every) if tpu else np.asarray(every).reshape(sizes)
    return Mesh(placed, AXES, axis_types=auto)


def over_slices(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices [data, fsdp, tensor] of which each slice holds whole rows of `data`.

    Raises UserError where `data` is no multiple of the number of slices.
    """
    data, fsdp, tensor = sizes
    slices = len({device.slice_index for device in devices})
    if data % slices:
        raise UserError(
            f"mesh.data={data} over {slices} slices: fsdp and tensor stay inside a slice, so "
            f"mesh.data is a multiple of {slices}, as mesh.data={slices}, mesh.fsdp=-1"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices
    )
