"""Meshes over several TPU slices, from stand-ins of their devices that have what JAX asks for."""

import types

import pytest

from vit_jax.errors import UserError
from vit_jax.parallel.mesh import over_slices


def devices(slices, each):
    return [
        types.SimpleNamespace(
            id=s * each + n, slice_index=s, process_index=s, platform="cpu", device_kind="any"
        )
        for s in range(slices)
        for n in range(each)
    ]


@pytest.mark.parametrize(("slices", "sizes"), [(2, (2, 4, 1)), (2, (4, 1, 2)), (4, (8, 2, 1))])
def test_only_data_crosses_slices(slices, sizes):
    count = sizes[0] * sizes[1] * sizes[2]
    mesh = over_slices(sizes, devices(slices, count // slices))
    assert mesh.shape == sizes
    assert sorted(d.id for d in mesh.flat) == list(range(count))
    for row in mesh:
        assert len({device.slice_index for device in row.flat}) == 1


def test_parameters_split_over_slices_are_refused():
    with pytest.raises(UserError, match=r"mesh.data=1 over 2 slices: .* multiple of 2"):
        over_slices((1, 8, 1), devices(2, 4))
