"""The ViT paper's own comparison: its models by name, and the compute that its table 6 states."""

import numpy as np
import pytest

from vit_jax import cli, create_model
from vit_jax.recipe import load, sweep

# exaFLOPs of pre-training (arXiv 2010.11929, table 6), by model and epochs.
STATED = {
    ("vit_base_patch32_224", 7): 55, ("vit_base_patch16_224", 7): 224,
    ("vit_large_patch32_224", 7): 196, ("vit_large_patch16_224", 7): 783,
    ("vit_large_patch16_224", 14): 1567, ("vit_huge_patch14_224", 14): 4262,
    ("resnetv2_50x1_bit_224", 7): 50, ("resnetv2_50x2_bit_224", 7): 199,
    ("resnetv2_101x1_bit_224", 7): 96, ("resnetv2_152x1_bit_224", 7): 141,
    ("resnetv2_152x2_bit_224", 7): 563, ("resnetv2_152x2_bit_224", 14): 1126,
    ("resnetv2_200x3_bit_224", 14): 3306, ("vit_base_r50_s32_224", 7): 106,
    ("vit_base_r50_s16_224", 7): 274, ("vit_large_r50_s32_224", 7): 246,
    ("vit_large_r50_s16_224", 7): 859, ("vit_large_r50_s16_224", 14): 1668,
}  # fmt: skip
IMAGES = 303_000_000


def taps(side, size, stride):
    """Pairs of a result and a tap of the kernel that lies inside of the image, along one side."""
    centres = np.arange(-(-side // stride)) * stride
    at = centres[:, None] + np.arange(size) - size // 2
    return int(((at >= 0) & (at < side)).sum())


def macs_inside(units, factor, classes):
    """Multiply-adds of a BiT at 224 pixels without those of padding, which the paper's count of
    ResNets leaves out, as XLA's does."""
    width, side = 64 * factor, 56
    total, inputs = taps(224, 7, 2) ** 2 * 3 * width, width
    for s, count in enumerate(units):
        inner, stride = width * 2**s, 2 if s else 1
        for unit in range(count):
            after = side // stride if unit == 0 else side
            total += side**2 * inputs * inner + after**2 * inner * 4 * inner
            total += taps(side, 3, side // after) ** 2 * inner * inner
            total += after**2 * inputs * 4 * inner if unit == 0 else 0
            inputs, side = 4 * inner, after
    return total + inputs * classes


def test_the_recipe_lists_the_table():
    points = sweep("table6.py")
    assert {(p["model.name"], p["total_epochs"]) for p in points} == set(STATED)
    assert points[0]["model.name"] == load("table6.py").model.name
    assert load("table6.py:tfds:imagenet21k").data.train.source == "tfds:imagenet21k"


@pytest.mark.parametrize(("name", "epochs"), STATED)
def test_compute_is_what_the_table_states(name, epochs):
    model = create_model(name, num_classes=18_291)
    macs = model.macs
    if name.startswith("resnetv2"):
        c = model.config
        macs = macs_inside(c.resnet_layers, c.width_factor, c.num_classes)
        assert macs < model.macs < 1.06 * macs  # ours counts the padding
    exa = 6 * macs * IMAGES * epochs / 1e18
    assert exa == pytest.approx(STATED[name, epochs], rel=0.03)


@pytest.mark.long
def test_the_study_tells_it_without_the_data(tmp_path, capsys):
    assert cli.main(["study", "--config=table6.py", f"--workdir={tmp_path}", "--dry-run"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    flops = {line[0]: float(line[-1]) for line in told if line and line[0].startswith("vit_base")}
    for name, value in flops.items():
        assert value == pytest.approx(STATED[name, 7] * 1e18, rel=0.03)
    assert len(flops) == 4
    assert ["18", "models,"] in [line[:2] for line in told]


def test_a_length_of_the_recipe_and_a_budget_exclude_each_other(tmp_path, capsys):
    command = ["study", "--config=table6.py", f"--workdir={tmp_path}", "--dry-run", "--epochs=3"]
    assert cli.main(command) == 2
    assert "the recipe lists total_epochs of each trial: leave --epochs out" in (
        capsys.readouterr().err
    )
