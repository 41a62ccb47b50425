"""Rules on names: which dimension of which parameter is split over which axis."""

import math

import pytest
from jax.sharding import PartitionSpec as P

from vit_jax.models.vit import FAMILY
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import param_spec, tiled_size

QKV, OUT, FC1, FC2 = (
    f"encoder/block00/{part}/kernel"
    for part in ("attention/qkv", "attention/out", "mlp/fc1", "mlp/fc2")
)
BOTH = ("tensor", "fsdp")
H14 = {QKV: (1280, 3, 16, 80), OUT: (16, 80, 1280), FC1: (1280, 5120), FC2: (5120, 1280)}
L16 = {QKV: (1024, 3, 16, 64), OUT: (16, 64, 1024), FC1: (1024, 4096), FC2: (4096, 1024)}
G14 = {QKV: (1664, 3, 16, 104), OUT: (16, 104, 1664), FC1: (1664, 8192), FC2: (8192, 1664)}


def specs(shapes: dict, data: int, fsdp: int, tensor: int) -> list[P]:
    mesh = make_mesh((data, fsdp, tensor), data * fsdp * tensor)
    return [param_spec(FAMILY, path, shape, mesh, 1) for path, shape in shapes.items()]


@pytest.mark.parametrize(
    ("shapes", "sizes", "wanted"),
    [
        (H14, (4, 1, 1), [P(), P(), P(), P()]),
        (H14, (1, 1, 4), [P(None, None, "tensor"), P("tensor"), P(None, "tensor"), P("tensor")]),
        (L16, (4, 4, 1), [P("fsdp"), P("fsdp"), P("fsdp"), P("fsdp")]),
        # A sixteenth of the rows (80, 3, 16, 80) would take 1.6 times its numbers.
        (H14, (16, 16, 1), [P(None, None, "fsdp"), P("fsdp"), P("fsdp"), P("fsdp")]),
        (G14, (16, 16, 1), [P(None, None, "fsdp"), P("fsdp"), P("fsdp"), P("fsdp")]),
        # 16 heads are no multiple of 256: what can be split is.
        (H14, (1, 256, 1), [P("fsdp"), P(None, None, "fsdp"), P("fsdp"), P("fsdp")]),
        (H14, (4, 4, 4), [P(None, None, BOTH), P(BOTH), P("fsdp", "tensor"), P(BOTH)]),
        ({QKV: (192, 3, 3, 64)}, (1, 5, 1), [P()]),
    ],
)  # fmt: skip
def test_fsdp_splits_the_dimension_whose_parts_pad_least(shapes, sizes, wanted):
    assert specs(shapes, *sizes) == wanted


def test_stacked_layers_are_split_as_one_is_and_small_parameters_not_at_all():
    mesh = make_mesh((16, 16, 1), 256)
    for path, shape in H14.items():
        stacked = path.replace("block00", "block")
        assert param_spec(FAMILY, stacked, (32, *shape), mesh, 1) == P(
            None, *param_spec(FAMILY, path, shape, mesh, 1)
        )
        assert param_spec(FAMILY, stacked, (32, *shape), mesh, math.prod(shape) + 1) == P()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((), 1), ((5,), 5), ((32, 128), 4096), ((128, 32), 4096), ((33, 128), 40 * 128),
        ((80, 3, 16, 80), 3 * 16 * 80 * 128), ((1280, 3, 1, 80), 3 * 80 * 1280),
    ],
)  # fmt: skip
def test_tiles_are_of_8_by_128_over_the_dimensions_that_pad_least(shape, size):
    assert tiled_size(shape) == size
