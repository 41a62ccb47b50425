"""Weights of an image size that patches do not tile: the rest at the right and bottom is not read,
and a size that somebody chooses is one that patches tile."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.models.data_config import DataConfig
from vit_jax.pretrained.weights import open_weights

SIZE, READ, PATCH = (22, 17), (20, 15), 5


def random(model):
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract_params)


@pytest.fixture(scope="module")
def made():
    model = vit_jax.create_model(
        "vit", remainder=True, hidden_size=32, num_layers=1, num_heads=2, mlp_dim=40, gelu="exact",
        patch_size=PATCH, image_size=SIZE, num_classes=4,
    )  # fmt: skip
    model = dataclasses.replace(model, data_config=DataConfig(crop=1.0, squash=True))
    return model, random(model)


def images_of(size):
    return np.random.default_rng(6).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def logits(model, params, images):
    return np.asarray(jax.jit(model.apply)(params, images)[0])


def test_the_rest_is_not_read(made):
    model, params = made
    images = images_of(SIZE)
    assert params["pos_embed"]["grid"].shape[:2] == (4, 3)
    wanted = logits(model, params, images)
    tiled = vit_jax.create_model(
        "vit", hidden_size=32, num_layers=1, num_heads=2, mlp_dim=40, gelu="exact",
        patch_size=PATCH, image_size=READ, num_classes=4,
    )  # fmt: skip
    cut = images[:, : READ[0], : READ[1]]
    np.testing.assert_array_equal(logits(tiled, params, cut), wanted)
    images[:, READ[0] :], images[:, :, READ[1] :] = 9, -9
    np.testing.assert_array_equal(logits(model, params, images), wanted)


def test_who_chooses_a_size_chooses_one_that_patches_tile():
    for fields in ({"image_size": 36}, {"image_size": (32, 37)}):
        with pytest.raises(UserError, match=r"is not divisible by patch_size 16; .* would work"):
            vit_jax.create_model("vit_tiny_patch16_224", **fields)
    with pytest.raises(UserError, match=r"\(15, 32\) .*; \(16, 32\) would work"):
        vit_jax.create_model("vit_tiny_patch16_224", remainder=True, image_size=(15, 32))


@pytest.mark.parametrize("name", ["mixer_s16_224", "vit_small_r26_s32_224"])
def test_a_family_of_which_nothing_is_known_at_such_a_size_refuses_it(name):
    with pytest.raises(UserError, match=r"is not divisible by patch_size"):
        vit_jax.create_model(name, remainder=True, image_size=230)


@pytest.mark.parametrize(
    ("to", "name", "told"),
    [
        ("google", "w.npz", False), ("big_vision", "w.npz", False),
        ("timm", "w.safetensors", False), ("timm", "w", True), ("huggingface", "w", True),
        ("orbax", "w", True),
    ],
)  # fmt: skip
def test_every_layout_keeps_the_size_or_says_that_its_readers_lose_it(
    made, tmp_path, to, name, told
):
    notes = vit_jax.save_pretrained(*made, tmp_path / name, to)
    lost = (
        f"images are shown at {SIZE} here; readers of {to} files take the {READ} of the positions"
    )
    assert (lost in notes) == (not told)
    model, params, _ = vit_jax.load_pretrained(tmp_path / name, say=None)
    assert model.config.image_size == SIZE
    assert model.data_config.image_size is None
    images = images_of(SIZE)
    np.testing.assert_allclose(
        logits(model, params, images), logits(*made, images), rtol=1e-6, atol=1e-6
    )


def test_positions_are_resized_from_their_own_grid_to_a_size_that_tiles(made, tmp_path):
    vit_jax.save_pretrained(*made, tmp_path / "w", "huggingface")

    def load(size):
        return vit_jax.load_pretrained(tmp_path / "w", image_size=size, say=None)

    model, _, report = load((25, 25))
    assert model.config.image_size == (25, 25)
    assert report.fates["pos_embed/grid"] == "resized (4 x 3 to 5 x 5, timm)"
    assert load(READ)[2].fates["pos_embed/grid"] == "loaded"
    assert load(SIZE)[0].config.image_size == SIZE  # their own
    with pytest.raises(UserError, match=r"\(23, 23\) .* \(20, 20\) or \(25, 25\) would work"):
        load(23)


def test_a_processors_size_is_taken_as_transformers_take_it(made, tmp_path):
    vit_jax.save_pretrained(*made, tmp_path / "w", "huggingface")
    path = tmp_path / "w" / "preprocessor_config.json"
    shown = json.loads(path.read_text())
    assert shown["size"] == {"height": SIZE[0], "width": SIZE[1]}
    sides = {"height": 27, "width": 31}
    processor = {"image_processor_type": "ViTImageProcessor", "size": sides}
    path.write_text(json.dumps(processor))
    header = tmp_path / "w" / "model.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file(load_file(header), header, metadata={"format": "pt"})
    from vit_jax.pretrained.load import as_shown

    weights = open_weights(tmp_path / "w")
    assert (weights.model.config.image_size, weights.model.data_config.image_size) == (
        SIZE, (27, 31)
    )  # fmt: skip
    assert as_shown(weights).config.grid == (5, 6)


def test_evaluate_shows_the_whole_size_and_refuses_another_that_does_not_tile(tmp_path, capsys):
    model = vit_jax.create_model(
        "vit_mu_patch4_32", remainder=True, patch_size=3, image_size=8, channels=1, num_classes=10
    )
    vit_jax.save_pretrained(model, random(model), tmp_path / "w", "orbax")
    command = [
        "evaluate", f"--checkpoint={tmp_path}/w", "--data=digits", "--split=val",
        "--config.total_steps=1", "--json",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 355
    assert cli.main([*command, "--config.model.image_size=10"]) == 2
    line = capsys.readouterr().err
    assert "(10, 10) is not divisible by patch_size 3; (9, 9) or (12, 12) would work" in line
