"""ResNets, hybrids, Mixers and the other ViTs train and evaluate as the plain ViT does."""

import json

import jax
import numpy as np
import pytest

from tests.digits_run import rows, tiny_config
from vit_jax import cli, load_pretrained, recipe
from vit_jax.training.loop import train

pytestmark = pytest.mark.long

# Small ones of each family: fields on top of the name's.
FAMILIES = {
    "mixer_s16_224": {"image_size": 32, "num_layers": 2, "hidden_size": 32, "scan": True},
    "resnetv2_50x1_bit": {"image_size": 32, "resnet_layers": (1, 1)},
    "resnet26_gn": {"image_size": 32, "resnet_layers": (1, 1)},
    "nonlocal_resnet50_5": {"image_size": 32, "resnet_layers": (1, 1, 1, 1)},
    "sasa_resnet26": {"image_size": 32, "resnet_layers": (1, 1), "window": 3},
    "axial_resnet_s": {"image_size": 32, "resnet_layers": (1, 1)},
    "axial_vit_base_patch16_224": {"image_size": 32, "num_layers": 2, "hidden_size": 48},
    "vit_tiny_r_s16_p8_224": {"image_size": 64, "num_layers": 2, "hidden_size": 48},
    "deit_tiny_distilled_patch16_224": {"image_size": 32, "num_layers": 2, "scan": True},
    "vit_small_patch14_reg4_dinov2": {"image_size": 28, "num_layers": 2, "mlp": "swiglu"},
}  # fmt: skip


def config_of(name, **changes):
    """Of a run of four steps on the digits, two of which make a checkpoint."""
    c = tiny_config(
        total_steps=4, checkpoint__every_steps=2, eval_every_steps=4,
        data__train__pipeline="decode|resize", data__eval__pipeline="decode|resize", **changes,
    )  # fmt: skip
    given = {"model.name": name} | {f"model.{k}": repr(v) for k, v in FAMILIES[name].items()}
    given = {k: v.strip("'") for k, v in given.items()}
    return c, recipe.override(c, given)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "_r_" not in name])
def test_each_family_trains_on_a_mesh_and_evaluates_from_its_checkpoint(name, tmp_path, capsys):
    c, named = config_of(name, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    c.mesh.min_shard_size = 64
    result = train(c, tmp_path, named=named, quiet=True)
    assert result["steps"] == 4
    assert np.isfinite(result["loss"])
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["accuracy"] == result["accuracy"]
    assert again["loss"] == pytest.approx(result["eval/val/loss"], abs=1e-4)


def test_the_losses_of_a_hybrid_agree_on_one_device_and_on_eight(tmp_path):
    name = "vit_tiny_r_s16_p8_224"
    told = []
    for devices in (1, 8):
        c, named = config_of(name, mesh__data=1, mesh__fsdp=devices)
        c.mesh.min_shard_size = 64
        workdir = tmp_path / str(devices)
        train(c, workdir, named=named, devices=jax.devices()[:devices], quiet=True)
        told.append([row["loss"] for row in rows(workdir) if "loss" in row])
    np.testing.assert_allclose(told[0], told[1], rtol=2e-5)


@pytest.mark.parametrize("name", ["sasa_resnet26", "axial_resnet_s", "axial_vit_base_patch16_224"])
def test_each_family_is_converted_and_fine_tuned_at_another_size(name, tmp_path):
    """What is fine-tuned begins with the converted weights, at a rate of nearly nothing, but for
    its new head and for positions, which are resized."""
    c, named = config_of(name)
    train(c, tmp_path / "first", named=named, quiet=True)
    copy = tmp_path / "copy"
    assert cli.main(["convert", str(tmp_path / "first"), str(copy), "--to=orbax"]) == 0
    c, named = config_of(name, init=str(copy), optimizer__lr=1e-12)
    c.model.image_size = 48
    train(c, tmp_path / "second", named=[*named, "model.image_size"], quiet=True)
    before, after = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
         for path, leaf in jax.tree_util.tree_leaves_with_path(load_pretrained(folder)[1])}
        for folder in (copy, tmp_path / "second")
    )  # fmt: skip
    assert before.keys() == after.keys()
    for path in before:
        if not path.startswith(("head/", "pos_embed/")):
            np.testing.assert_allclose(after[path], before[path], atol=1e-6, err_msg=path)
    if "pos_embed/grid" in before:
        assert after["pos_embed/grid"].shape[:2] == (3, 3)
