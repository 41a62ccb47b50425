"""Positions: the fixed table entry by entry, and what resizing a learned grid preserves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import paper_numpy as paper
from vit_jax.models.position import resize_grid, sincos2d

SHAPES = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((3, 5), (6, 4)), ((14, 14), (24, 24))]


@pytest.mark.parametrize(
    "sizes", [(1, 1, 8), (3, 3, 8), (2, 5, 12), (5, 2, 12), (14, 14, 64), (2, 2, 4)]
)
def test_sincos2d_is_its_definition_entry_by_entry(sizes):
    table = sincos2d(*sizes)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, paper.sincos2d(*sizes), atol=1e-6)


def test_sincos2d_spans_wavelengths_from_2_pi_to_10_000_times_that():
    table = sincos2d(1, 3, 32)
    np.testing.assert_allclose(table[0, :, 0], np.sin([0, 1, 2]), atol=1e-6)
    np.testing.assert_allclose(table[0, :, 7], np.sin(np.array([0, 1, 2]) / 10_000), atol=1e-6)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), quarter=st.integers(2, 12))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_two_positions_of_sincos2d_are_the_same(rows, columns, quarter):
    table = sincos2d(rows, columns, 4 * quarter).reshape(rows * columns, -1)
    assert len(np.unique(table.round(4), axis=0)) == rows * columns


@pytest.mark.parametrize("width", [2, 6, 7, 33])
def test_sincos2d_refuses_a_width_that_four_does_not_divide(width):
    with pytest.raises(ValueError, match=f"divisible by 4, not {width}"):
        sincos2d(2, 2, width)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 1)])
def test_resizing_to_the_same_grid_changes_nothing(shape):
    grid = np.random.default_rng(0).standard_normal((*shape, 6)).astype(np.float32)
    np.testing.assert_allclose(resize_grid(grid, shape), grid, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_a_constant_grid_stays_constant(old, new):
    values = np.array([1.0, -2.0, 0.5], np.float32)
    resized = resize_grid(np.broadcast_to(values, (*old, 3)), new)
    np.testing.assert_allclose(resized, np.broadcast_to(values, (*new, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (16, 16)), ((12, 12), (6, 6)), ((8, 12), (14, 20))]
)
def test_a_ramp_stays_a_ramp_inside(old, new):
    """Rows and columns keep their places: pixel centres map to pixel centres."""
    y, x = np.meshgrid(*(np.arange(n) for n in old), indexing="ij")
    resized = np.asarray(resize_grid(np.stack([y, x], -1).astype(np.float32), new))
    centres = [(np.arange(n) + 0.5) * o / n - 0.5 for o, n in zip(old, new, strict=True)]
    expected = np.stack(np.meshgrid(*centres, indexing="ij"), -1)
    margins = [
        int(np.ceil(2.5 * max(n / o, 1))) if n >= o else 2 for o, n in zip(old, new, strict=True)
    ]
    inside = tuple(slice(m, n - m) for m, n in zip(margins, new, strict=True))
    assert expected[inside].size > 0
    np.testing.assert_allclose(resized[inside], expected[inside], atol=0.02)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_channels_are_resized_each_on_its_own(old, new):
    grid = np.random.default_rng(0).standard_normal((*old, 3)).astype(np.float32)
    resized = np.asarray(resize_grid(grid, new))
    assert resized.shape == (*new, 3)
    for channel in range(3):
        alone = resize_grid(grid[..., channel : channel + 1], new)
        np.testing.assert_allclose(resized[..., channel : channel + 1], alone, atol=1e-6)


def test_a_shrinking_grid_is_smoothed_first():
    """A checkerboard holds nothing that half as many points can show: antialiasing leaves grey."""
    checkers = (np.indices((16, 16)).sum(axis=0) % 2 * 2.0 - 1)[..., None].astype(np.float32)
    assert np.abs(np.asarray(resize_grid(checkers, (6, 6)))[1:-1, 1:-1]).max() < 0.1
