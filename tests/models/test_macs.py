"""`Model.macs` counts what the traced model multiplies, and what others publish."""

import jax
import numpy as np
import pytest
from jaxpr_walk import macs

from tests.models.tiny_vit import tiny
from vit_jax.models import create_model

# 10^9 multiply-accumulates: torchvision's model pages, and DeiT's table (Ti, S: one decimal).
PUBLISHED = {
    ("vit_tiny_patch16_224", 224): "1.3",
    ("vit_small_patch16_224", 224): "4.6",
    ("vit_base_patch16_224", 224): "17.56",
    ("vit_base_patch32_224", 224): "4.41",
    ("vit_large_patch16_224", 224): "61.55",
    ("vit_large_patch32_224", 224): "15.38",
    ("vit_huge_patch14_224", 518): "1016.72",
}


def traced_macs(model):
    image = jax.ShapeDtypeStruct((1, *model.config.image_size, model.config.channels), np.float32)
    return macs(jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])(model.abstract_params, image))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "gap"},
        {"pool": "map"},
        {"pool": "map", "registers": 3, "gelu": "exact"},
        {"pre_logits": True, "num_classes": 10},
        {"num_classes": 0},
        {"registers": 4, "image_size": (4, 20), "channels": 5},
        {"qk_norm": True, "layer_scale": 0.1, "posemb": "sincos2d"},
        {"scan": True, "num_layers": 5},
        {"remat": "full"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_the_count_from_sizes_is_that_of_the_traced_model(fields):
    model = tiny(**fields)
    assert model.macs == traced_macs(model)


def test_the_count_from_sizes_is_that_of_a_real_model_traced():
    model = create_model("vit_large_patch16_384", scan=True)
    assert model.macs == traced_macs(model)


@pytest.mark.parametrize(("name", "side"), PUBLISHED)
def test_published_counts_are_met_to_their_last_digit(name, side):
    published = PUBLISHED[name, side]
    decimals = len(published.partition(".")[2])
    counted = create_model(name, image_size=side).macs
    assert f"{counted / 1e9:.{decimals}f}" == published


def test_the_backward_pass_costs_two_forward_passes():
    """Counted on the traced gradient: only the image's own gradient is not needed."""
    model = tiny(num_layers=4, scan=True)
    image = jax.ShapeDtypeStruct((1, 8, 12, 3), np.float32)
    gradient = jax.grad(lambda p, x: model.apply(p, x)[0].sum())
    traced = 2 * macs(jax.make_jaxpr(gradient)(model.abstract_params, image))
    embed = model.config.grid[0] * model.config.grid[1] * 4 * 4 * 3 * 8
    assert 6 * model.macs == traced + 2 * embed


# 10^9, as the papers' tables give them: arXiv 2005.12872, table 1, and YOLOS's table of models.
# They are means over COCO's images, whose shorter sides were made 800 pixels. The size of such an
# image is not stated, so one size here has to give all of them.
DETECTORS = {
    "detr_resnet50": 86, "detr_resnet50_dc5": 187, "detr_resnet101": 152, "detr_resnet101_dc5": 253,
    "yolos_small": 200.2, "yolos_base": 537,
}  # fmt: skip


def test_one_size_of_image_gives_the_published_numbers_of_every_detector():
    sizes = {"detr": (800, 1128), "yolos": (800, 1120)}  # whole patches of 16
    for name, published in DETECTORS.items():
        model = create_model(name, image_size=sizes[name.partition("_")[0]])
        assert model.macs / 1e9 == pytest.approx(published, rel=0.02), name
