"""A StableHLO artefact of every family computes what our model does, for any batch, and is read by
JAX alone."""

import json
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
import tiny_models as tiny

import vit_jax

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


def read(file):
    """As a stranger reads it."""
    return jax.export.deserialize(bytearray(file.read_bytes()))


def code_of_document(number: int) -> str:
    """A block of Python in the document."""
    return DOCUMENT.read_text(encoding="utf-8").split("```python\n")[number].split("```")[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_artefact_of_every_family_computes_what_its_model_does(tmp_path, family):
    weights, model, params = tiny.saved(tmp_path, family)
    about = vit_jax.export(weights, tmp_path / "out", say=None)
    (height, width) = model.config.image_size
    exported = read(tmp_path / "out" / f"{height}x{width}.stablehlo")
    assert exported.platforms == ("cpu", "cuda", "tpu")
    pixels = tiny.noise(model, batch=5)  # of none that is compared before it is written
    found, wanted = exported.call(pixels), tiny.computed(model, params, pixels)
    assert set(found) <= set(wanted)
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-6, rtol=1e-5)
    assert json.loads((tmp_path / "out" / "about.json").read_text()) == about


def test_no_vit_jax_is_needed_to_read_one_and_the_document_shows_how(tmp_path):
    weights, _, _ = tiny.saved(tmp_path, fields={"image_size": 224})
    vit_jax.export(weights, tmp_path / "pets", say=None)
    assert tiny.ran_without("vit_jax", code_of_document(1), tmp_path) in tiny.NAMES


@pytest.mark.parametrize(
    ("activation", "output"), [("sigmoid", "probabilities"), ("none", "values")]
)
def test_the_loss_of_the_weights_decides_what_comes_out(tmp_path, activation, output):
    weights, model, params = tiny.saved(tmp_path, activation=activation)
    about = vit_jax.export(weights, tmp_path / "out", say=None)
    assert about["activation"] == activation
    pixels = tiny.noise(model, 2)
    found = read(tmp_path / "out" / "32x32.stablehlo").call(pixels)
    assert list(found) == [output]
    np.testing.assert_allclose(
        found[output], tiny.computed(model, params, pixels)[output], atol=2e-6
    )


@pytest.mark.parametrize("family", ["vit", "detr"])
def test_raw_takes_normalised_images_and_gives_logits(tmp_path, family):
    weights, model, params = tiny.saved(tmp_path, family)
    about = vit_jax.export(weights, tmp_path / "out", raw=True, say=None)
    assert not about["normalisation"]["inside"]
    mean, std = (np.array(about["normalisation"][key]) for key in ("mean", "std"))
    pixels = tiny.noise(model, 3)
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    found = read(tmp_path / "out" / "32x32.stablehlo").call(images)
    wanted = tiny.computed(model, params, pixels)
    assert set(found) == ({"logits"} if family == "vit" else {"logits", "boxes"})
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_positions_of_another_size_are_those_that_loading_resizes(tmp_path):
    weights, _, _ = tiny.saved(tmp_path)
    about = vit_jax.export(weights, tmp_path / "out", sizes=[32, (48, 64)], say=None)
    assert list(about["images"]) == ["32x32", "48x64"]
    assert about["images"]["48x64"]["pipeline"] == "decode|resize((48, 64), 'bilinear')"
    model, params, _ = vit_jax.load_pretrained(weights, image_size=(48, 64), say=None)
    pixels = tiny.noise(model, 2)
    found = read(tmp_path / "out" / "48x64.stablehlo").call(pixels)["probabilities"]
    wanted = tiny.computed(model, params, pixels)["probabilities"]
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_pipeline_of_fixed_size_is_derived_anew_for_another_one(tmp_path):
    written = "decode(0, 4000)|resize_small(40, 'bicubic')|central_crop(32)"
    weights, _, _ = tiny.saved(tmp_path, written=written, squash=False, interpolation="bicubic")
    lines = []
    about = vit_jax.export(weights, tmp_path / "out", sizes=[32, 64], say=lines.append)
    assert about["images"]["32x32"]["pipeline"] == written
    assert about["images"]["64x64"]["pipeline"].startswith("decode(0, 4000)|resize_small(")
    assert "'bicubic'" in about["images"]["64x64"]["pipeline"]
    assert sum("makes images of another size" in line for line in lines) == 1


def test_bfloat16_halves_the_file_and_stays_near_our_model_in_bfloat16(tmp_path):
    weights, model, params = tiny.saved(tmp_path, fields={"hidden_size": 64, "mlp_dim": 256})
    vit_jax.export(weights, tmp_path / "whole", say=None)
    vit_jax.export(weights, tmp_path / "half", dtype="bfloat16", say=None)
    whole, half = (tmp_path / name / "32x32.stablehlo" for name in ("whole", "half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    pixels = tiny.noise(model, 2)
    found = read(half).call(pixels)["probabilities"]
    assert found.dtype == np.float32
    wanted = tiny.computed(model, params, pixels)["probabilities"]
    np.testing.assert_allclose(found, wanted, atol=0.02)
    assert not np.allclose(found, wanted, atol=1e-6)  # else it would be float32


def test_a_detector_of_padded_images_takes_where_the_content_is(tmp_path):
    weights, model, params = tiny.saved(tmp_path, "detr, refined", written="decode|fit|pad")
    about = vit_jax.export(weights, tmp_path / "out", say=None)
    assert about["images"]["32x32"]["inputs"]["content"]["shape"] == ["batch", 2]
    pixels, content = tiny.noise(model, 3), np.array([[1, 1], [0.5, 1], [1, 0.5]], np.float32)
    found = read(tmp_path / "out" / "32x32.stablehlo").call(pixels, content)
    wanted = tiny.computed(model, params, pixels, content=content)
    for name in ("scores", "boxes"):
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-6)
    assert not np.allclose(found["scores"][1], tiny.computed(model, params, pixels)["scores"][1])
