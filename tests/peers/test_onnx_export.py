"""An ONNX artefact of every family computes what our model does, as onnxruntime reads it."""

import json
import re

import numpy as np
import pytest

EXTRA = "needs the onnx extra: pip install vit_jax[onnx]"
onnx = pytest.importorskip("onnx", reason=EXTRA)
onnxruntime = pytest.importorskip("onnxruntime", reason=EXTRA)
pytest.importorskip("jax2onnx", reason=EXTRA)

import tiny_models as tiny  # noqa: E402
from test_stablehlo import code_of_document  # noqa: E402

import vit_jax  # noqa: E402
from vit_jax import cli  # noqa: E402


def predicted(file, *arrays) -> dict[str, np.ndarray]:
    """The outputs by name."""
    session = onnxruntime.InferenceSession(file)
    inputs, outputs = ([x.name for x in xs] for xs in (session.get_inputs(), session.get_outputs()))
    return dict(
        zip(outputs, session.run(None, dict(zip(inputs, arrays, strict=True))), strict=True)
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_artefact_of_every_family_computes_what_its_model_does(tmp_path, family):
    weights, model, params = tiny.saved(tmp_path, family)
    file = tmp_path / "out.onnx"
    about = vit_jax.export(weights, file, "onnx", say=None)
    assert max(next(iter(about["checked"].values())).values()) <= 1e-4
    onnx.checker.check_model(onnx.load(file))
    pixels = tiny.noise(model, batch=5)  # of none that is compared before it is written
    found, wanted = predicted(file, pixels), tiny.computed(model, params, pixels)
    assert set(found) <= set(wanted)
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, rtol=1e-4)


def test_raw_gives_logits_and_a_padded_detector_takes_its_content(tmp_path):
    weights, model, params = tiny.saved(tmp_path, "detr", written="decode|fit|pad")
    vit_jax.export(weights, tmp_path / "out.onnx", "onnx", raw=True, say=None)
    pixels, content = tiny.noise(model, 2), np.array([[0.5, 1], [1, 0.5]], np.float32)
    images = ((pixels / 255 - np.array((0.3, 0.5, 0.6))) / 0.25).astype(np.float32)
    found = predicted(tmp_path / "out.onnx", images, content)
    wanted = tiny.computed(model, params, pixels, content=content)
    for name in ("logits", "boxes"):
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-5)


def test_several_sizes_are_a_folder_and_each_file_states_its_facts(tmp_path, capsys):
    weights, _, _ = tiny.saved(tmp_path)
    arguments = ["export", str(weights), str(tmp_path / "out"), "--to=onnx", "--sizes=32,48x64"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{weights} -> {tmp_path}/out (onnx)\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "32x32.onnx", "48x64.onnx", "about.json"
    ]  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "out" / "48x64.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == tiny.NAMES
    assert json.loads(facts["images"])["pipeline"] == "decode|resize((48, 64), 'bilinear')"
    assert json.loads(facts["normalisation"])["mean"] == [0.3, 0.5, 0.6]
    assert facts["made_by"] == f"vit_jax {vit_jax.__version__}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
    assert [x.shape for x in session.get_inputs()] == [["batch", 48, 64, 3]]
    assert cli.main([*arguments[:2], str(tmp_path / "one.onnx"), *arguments[3:]]) == 2
    assert "holds one image size; of several name a folder" in capsys.readouterr().err


def test_a_file_is_replaced_when_asked_and_read_as_the_document_says(tmp_path, capsys):
    weights, _, _ = tiny.saved(tmp_path, fields={"image_size": 224})
    (tmp_path / "pets.onnx").write_text("older")
    arguments = ["export", str(weights), str(tmp_path / "pets.onnx"), "--to=onnx"]
    assert cli.main(arguments) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert tiny.ran_without("jax", code_of_document(2), tmp_path) in tiny.NAMES


def test_a_detector_that_sees_padding_still_takes_what_its_metadata_says(tmp_path):
    weights, model, params = tiny.saved(tmp_path, "yolos", written="decode|fit|pad")
    about = vit_jax.export(weights, tmp_path / "out.onnx", "onnx", say=None)
    pixels, content = tiny.noise(model, 2), np.array([[0.5, 1], [1, 0.5]], np.float32)
    assert [*about["images"]["32x32"]["inputs"]] == ["images", "content"]
    found = predicted(tmp_path / "out.onnx", pixels, content)
    np.testing.assert_allclose(
        found["scores"], tiny.computed(model, params, pixels)["scores"], atol=2e-5
    )
