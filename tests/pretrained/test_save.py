"""What is written is the model's own parameters, shown as they were; anything else is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.errors import UserError
from vit_jax.models.data_config import DataConfig, crop_of
from vit_jax.pretrained.layouts import OWN, writers
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.save import save_pretrained
from vit_jax.pretrained.weights import open_weights


@pytest.fixture(scope="module")
def tiny():
    model = vit_jax.create_model("vit_mu_patch16_224", num_layers=2, num_classes=5)
    return model, model.init()


OF_DETECTORS = ("detr", "huggingface-detr", "huggingface-yolos")
SUFFIXES = {
    "google": ".npz", "big_vision": ".npz", "dinov2": ".safetensors", "detr": ".safetensors",
}  # fmt: skip


def changed(params, path, leaf):
    """A copy of the tree with one leaf set, or left out where `leaf` is None."""
    first, _, rest = path.partition("/")
    inner = changed(params[first], rest, leaf) if rest else leaf
    kept = {key: value for key, value in params.items() if key != first}
    return kept if inner is None else kept | {first: inner}


@pytest.mark.parametrize("to", [*writers(), OWN])
@pytest.mark.parametrize(
    ("path", "leaf", "told"),
    [
        ("head/bias", None, r"1 missing: head/bias \[5\]"),
        ("head/bias", np.zeros(4), r"1 of another shape: head/bias \[4\], expected \[5\]"),
        ("head/scale", np.zeros(5), r"1 superfluous: head/scale \[5\]"),
        ("encoder/block01/norm1/bias", 0.0, r"block01/norm1/bias \[\], expected \[32\]"),
    ],
)
def test_parameters_that_are_not_the_models_are_refused(tiny, tmp_path, to, path, leaf, told):
    model, params = tiny
    suffix = SUFFIXES.get(to, "")
    with pytest.raises(UserError, match=told):
        save_pretrained(model, changed(params, path, leaf), f"{tmp_path}/a{suffix}", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["google", "timm", "huggingface", "orbax"])
def test_names_for_another_number_of_classes_are_refused(tiny, tmp_path, to):
    suffix = ".npz" if to == "google" else ""
    with pytest.raises(UserError, match="2 names of classes, but vit_mu_patch16_224 has 5"):
        save_pretrained(*tiny, f"{tmp_path}/a{suffix}", to, classes=["a", "b"])


def test_a_stacked_model_is_written_as_a_listed_one_is(tmp_path):
    listed = vit_jax.create_model("vit_mu_patch16_224", num_layers=2, num_classes=5)
    stacked = vit_jax.create_model("vit_mu_patch16_224", num_layers=2, num_classes=5, scan=True)
    params = stacked.init()
    save_pretrained(stacked, params, tmp_path / "a", "timm")
    _, again, _ = load_pretrained(tmp_path / "a", say=None)
    assert jax.tree.structure(again) == jax.tree.structure(listed.init())


def test_many_parts_without_a_place_are_counted(tmp_path):
    model = vit_jax.create_model("vit_mu_patch16_224", image_size=32, num_layers=4, qk_norm=True)
    with pytest.raises(UserError, match=r"no place for .* and \d+ more"):
        save_pretrained(model, model.init(), tmp_path / "a.npz", "big_vision")


@pytest.mark.parametrize("to", ["timm", "huggingface", "orbax", "google"])
def test_four_channels_have_the_mean_of_what_three_had(tmp_path, to):
    model = vit_jax.create_model("vit_mu_patch16_224", num_layers=2, num_classes=5)
    shown = DataConfig((0.1, 0.2, 0.6), (0.2, 0.3, 0.7))
    model = dataclasses.replace(model, data_config=shown)
    path = tmp_path / ("a.npz" if to == "google" else "a")
    save_pretrained(model, model.init(), path, to)
    deep, params, _ = load_pretrained(path, channels=4, say=None)
    pixels = np.full((1, 224, 224, 4), 51, np.uint8)
    np.testing.assert_allclose(deep.data_config.normalise(pixels), (0.2 - 0.3) / 0.4, rtol=1e-5)
    grey, _, _ = load_pretrained(path, channels=1, say=None)
    assert grey.data_config.normalise(pixels[..., :1]).shape == (1, 224, 224, 1)
    again = tmp_path / ("b.npz" if to == "google" else "b")
    save_pretrained(deep, params, again, to)
    found = open_weights(again).model
    assert found.config.channels == 4
    np.testing.assert_allclose(found.data_config.per_channel(4), [[0.3] * 4, [0.4] * 4])


@pytest.mark.parametrize("fields", [{}, {"registers": 2}])
@pytest.mark.parametrize("to", ["timm", "dinov2", "huggingface"])
def test_without_a_head_the_mean_beside_the_class_token_hinders_no_layout(tmp_path, to, fields):
    model = vit_jax.create_model(
        "vit_mu_patch16_224", layer_scale=1e-5, pool="cls_gap", num_classes=0, gelu="exact",
        image_size=32, **fields,
    )  # fmt: skip
    params = model.init()
    path = tmp_path / ("a.safetensors" if to == "dinov2" else "a")
    assert save_pretrained(model, params, path, to) == []
    again, params_again, _ = load_pretrained(path, say=None)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    one, two = (
        m.apply(p, images)[1]["encoded"] for m, p in ((model, params), (again, params_again))
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("to", ["google", "big_vision"])
def test_a_grid_that_is_no_square_is_noted_where_readers_take_squares(tmp_path, to):
    model = vit_jax.create_model("vit_mu_patch16_224", image_size=(32, 48), num_classes=5)
    notes = save_pretrained(model, model.init(), tmp_path / "a.npz", to)
    assert "the grid is 2 x 3 here; readers of such files take it for a square" in notes
    assert open_weights(tmp_path / "a.npz").model.config.image_size == (32, 48)


def test_images_shown_at_another_size_than_the_positions_are_noted(tiny, tmp_path):
    model, params = tiny
    shown = dataclasses.replace(model.data_config, image_size=(96, 96))
    model = dataclasses.replace(model, data_config=shown)
    (note,) = (n for n in save_pretrained(model, params, tmp_path / "a", "timm") if "shown" in n)
    assert "(96, 96) here; readers of timm files take the (224, 224)" in note
    assert save_pretrained(model, params, tmp_path / "b", "orbax") == []
    for folder in ("a", "b"):
        assert open_weights(tmp_path / folder).model.data_config == shown
    other, _, _ = load_pretrained(tmp_path / "b", image_size=64, say=None)
    assert other.data_config.image_size is None


@pytest.mark.parametrize("crop", [0.9, 0.875, 0.95, 0.96, 0.5, 1.0])
@pytest.mark.parametrize("side", [32, 224, 256, 384, 518])
def test_a_crop_is_found_again_by_the_size_that_it_gives(side, crop):
    resized = int(side / crop)
    assert int(side / crop_of(side, resized)) == resized
    assert crop_of(side, resized) == crop or side < 224


@pytest.mark.parametrize("crop", [0.9, 0.966])
def test_converted_weights_keep_their_crop(tiny, tmp_path, crop):
    model, params = tiny
    model = dataclasses.replace(model, data_config=DataConfig(0.1, 0.2, "bicubic", crop))
    save_pretrained(model, params, tmp_path / "own", "orbax")
    assert open_weights(tmp_path / "own").model.data_config == model.data_config
    save_pretrained(model, params, tmp_path / "hub", "huggingface")
    shown = json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())
    assert shown["size"] == {"shortest_edge": int(224 / crop)}


@pytest.mark.parametrize("to", [*(to for to in writers() if to not in OF_DETECTORS), OWN])
def test_a_place_that_takes_nothing_is_named(tmp_path, to):
    fields = {"layer_scale": 1e-5, "num_classes": 0} if to == "dinov2" else {"num_classes": 5}
    model = vit_jax.create_model("vit_mu_patch16_224", num_layers=1, image_size=32, **fields)
    suffix = SUFFIXES.get(to, "")
    with pytest.raises(UserError, match=rf"^cannot write /proc/a{suffix}: .*another place$"):
        save_pretrained(model, model.init(), f"/proc/a{suffix}", to)


@pytest.mark.parametrize("field", [("queries", "refined"), ("detector_norm", "pre")])
def test_what_a_papers_detr_does_not_have_is_named_first(tmp_path, field):
    model = vit_jax.create_model(
        "detr_resnet50", resnet_layers=(1, 1), stage_width=4, image_size=64, num_classes=3,
        detector_width=8, detector_heads=2, detector_mlp_dim=8, **dict([field]),
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"layout has no place for {field[0]} '{field[1]}'"):
        save_pretrained(model, model.init(), tmp_path / "a.safetensors", "detr")
    assert not (tmp_path / "a.safetensors").exists()


def test_weights_whose_queries_differ_name_the_key(tmp_path):
    tiny = {"num_layers": 1, "image_size": 32, "detector_width": 16, "detector_heads": 2}
    learned = vit_jax.create_model("detr_vit_mu_patch16_224", **tiny)
    vit_jax.save_pretrained(learned, learned.init(), tmp_path / "own", "orbax")
    with pytest.raises(UserError, match=r"model\.queries=learned would fit"):
        load_pretrained(tmp_path / "own", queries="refined")
