"""Positions of Google's files on another grid are those of `scipy.ndimage.zoom`, as in Google's
code."""

import numpy as np
import pytest
import scipy.ndimage
from linen_big_vision import BigVisionViT
from linen_google import GoogleViT
from made_weights import fill, names_and_shapes, save_npz

from vit_jax.models.position import RESIZE_RULES, resize_grid
from vit_jax.pretrained.load import load_pretrained

TINY = {"patch": 4, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8, "num_classes": 3}
GRIDS = [(24, 24), (7, 7), (16, 12), (1, 5)]


def zoomed(grid, new):
    """As in Google's code: linear, corners on corners."""
    return scipy.ndimage.zoom(grid, (new[0] / grid.shape[0], new[1] / grid.shape[1], 1), order=1)


@pytest.mark.parametrize("new", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("module", "table", "prefix"),
    [
        (GoogleViT(**TINY), "Transformer/posembed_input/pos_embedding", 1),
        (GoogleViT(**TINY, pool="gap"), "Transformer/posembed_input/pos_embedding", 0),
        (BigVisionViT(**TINY, pool="tok"), "pos_embedding", 0),
        (BigVisionViT(**TINY, pool="map", scan=True), "pos_embedding", 0),
    ],
    ids=["class token", "none", "big_vision with a class token", "big_vision"],
)
def test_a_files_positions_are_zoomed_and_its_class_tokens_kept(
    tmp_path, module, table, prefix, new
):
    flat = fill(names_and_shapes(module, 14 * 4))
    save_npz(tmp_path / "made.npz", flat)
    size = (new[0] * 4, new[1] * 4)
    _, params, report = load_pretrained(tmp_path / "made.npz", say=None, image_size=size)
    here = params["pos_embed"]
    assert report.fates["pos_embed/grid"] == f"resized (14 x 14 to {new[0]} x {new[1]}, google)"
    expected = zoomed(flat[table][0, prefix:].reshape(14, 14, 8), new)
    np.testing.assert_allclose(here["grid"], expected, atol=1e-6)
    assert ("prefix" in here) == (prefix > 0)
    if prefix:
        np.testing.assert_array_equal(here["prefix"], flat[table][0, :prefix])


def test_a_grid_that_is_no_square_is_zoomed_side_by_side(tmp_path):
    flat = fill(names_and_shapes(GoogleViT(**TINY), (12 * 4, 16 * 4)))
    save_npz(tmp_path / "made.npz", flat)
    _, params, _ = load_pretrained(
        tmp_path / "made.npz", say=None, source_image_size=(48, 64), image_size=(64, 48)
    )
    table = flat["Transformer/posembed_input/pos_embedding"]
    expected = zoomed(table[0, 1:].reshape(12, 16, 8), (16, 12))
    np.testing.assert_allclose(params["pos_embed"]["grid"], expected, atol=1e-6)


@pytest.mark.parametrize("rule", sorted(set(RESIZE_RULES) - {"google"}))
def test_another_rule_would_be_noticed(rule):
    grid = np.random.default_rng(0).standard_normal((14, 14, 8)).astype(np.float32)
    assert np.abs(resize_grid(grid, (24, 24), rule) - zoomed(grid, (24, 24))).max() > 0.01
