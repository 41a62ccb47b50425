"""The device mesh: axes `data` (batch), `fsdp` (batch and parameters), `tensor` (parameters)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from vit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    sizes: tuple[int, int, int], devices: Sequence[jax.Device] | int | None = None
) -> Mesh:
    """A mesh of `sizes` over `devices` (by default all devices) with automatic partitioning. If
    `devices` is a number, an abstract mesh over devices that need not exist.

    If the mesh has all devices, their order follows the interconnect, as in `jax.make_mesh`. With
    several TPU slices, only `data` crosses the slower network between them. Hosts with GPUs count
    as slices, too: the last axes stay inside a host if they fit.
    """
    auto = (AxisType.Auto,) * len(AXES)  # jax.make_mesh would make them Explicit
    if isinstance(devices, int):
        abstract: Any = AbstractMesh(sizes, AXES, axis_types=auto)  # enough to compute shapes
        return abstract
    every = sorted(devices or jax.devices(), key=lambda device: device.id)
    tpu = every[0].platform == "tpu"
    if not tpu and devices is not None and len(devices) < jax.device_count():
        placed = np.asarray(devices).reshape(sizes)
    elif len({getattr(device, "slice_index", 0) for device in every}) == 1:
        placed = mesh_utils.create_device_mesh(sizes, every, allow_split_physical_axes=tpu)
    else:
        placed = over_slices(sizes, every) if tpu else np.asarray(every).reshape(sizes)
    return Mesh(placed, AXES, axis_types=auto)


def over_slices(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices as an array [data, fsdp, tensor], in which each slice holds whole rows of `data`.

    Raises UserError if `data` is no multiple of the number of slices.
    """
    data, fsdp, tensor = sizes
    slices = len({device.slice_index for device in devices})
    if data % slices:
        raise UserError(
            f"mesh.data={data} over {slices} slices: fsdp and tensor stay inside a slice, so "
            f"mesh.data is a multiple of {slices}, as mesh.data={slices}, mesh.fsdp=-1"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices,
        allow_split_physical_axes=devices[0].platform == "tpu",
    )  # fmt: skip
