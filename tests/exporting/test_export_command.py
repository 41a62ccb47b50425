"""`vit export`: what it prints and writes, and what it refuses before and after the work."""

import importlib.util
import json
import os

import jax
import jax.export
import numpy as np
import pytest
import tiny_models as tiny

import vit_jax
from tests.digits_run import tiny_config
from tests.refusals import refused
from vit_jax.errors import UserError
from vit_jax.exporting.export import accepted, compared
from vit_jax.exporting.function import Function

LACKS_ONNX = importlib.util.find_spec("jax2onnx") is None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("weights"), "mixer")[0]


def test_a_run_is_exported_with_the_names_of_its_classes(vit, tmp_path):
    config = tiny_config(
        total_steps=2, batch_size=8, model__num_layers=1, eval_every_steps=2,
        checkpoint__every_steps=2, data__eval__split="",
    )  # fmt: skip
    vit_jax.train(config, tmp_path / "run", devices=jax.devices()[:1], quiet=True)
    code, out, err = vit("export", tmp_path / "run", tmp_path / "out", "--to=stablehlo")
    assert (code, out) == (0, f"{tmp_path}/run/checkpoints/2 -> {tmp_path}/out (stablehlo)\n")
    assert err.startswith("8x8, largest difference from our own model: probabilities ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "8x8.stablehlo", "about.json"
    ]  # fmt: skip
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["classes"] == list(map(str, range(10)))
    assert about["normalisation"] == {
        "inside": True, "mean": [0.5], "std": [0.5], "of": "(pixel / 255 - mean) / std"
    }  # fmt: skip
    assert about["images"]["8x8"]["pipeline"] == "decode"
    assert about["made_by"] == f"vit_jax {vit_jax.__version__}"
    assert max(about["checked"]["8x8"].values()) <= 1e-4
    model, params, _ = vit_jax.load_pretrained(tmp_path / "run", say=None)
    pixels = tiny.noise(model, 3)
    logits, _ = model.apply(params, pixels / np.float32(127.5) - 1)
    file = (tmp_path / "out" / "8x8.stablehlo").read_bytes()
    found = jax.export.deserialize(bytearray(file)).call(pixels)["probabilities"]
    np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=2e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_only_an_export_is_replaced_and_only_when_asked(vit, weights, tmp_path):
    out = tmp_path / "out"
    assert vit("export", weights, out, "--to=stablehlo")[0] == 0
    first = (out / "about.json").read_text()
    assert "there already: name another, or give --overwrite" in refused(
        vit, "export", weights, out, "--to=stablehlo"
    )
    assert vit("export", weights, out, "--to=stablehlo", "--raw", "--overwrite")[0] == 0
    assert (out / "about.json").read_text() != first
    (out / "notes.txt").write_text("mine")
    assert "is no export" in refused(vit, "export", weights, out, "--to=stablehlo", "--overwrite")
    (tmp_path / "file").write_text("mine")
    assert "is no export" in refused(
        vit, "export", weights, tmp_path / "file", "--to=stablehlo", "--overwrite"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["out", "--to=stablehl"], "'stablehl' of an export: did you mean stablehlo?"),
        (["out", "--to=onx"], "did you mean onnx?"),
        (["out", "--to=stablehlo", "--dtype=bfloat"], "'bfloat': did you mean "),
        (["out", "--to=onnx", "--dtype=bfloat16"], "--dtype=float32, or --to=stablehlo"),
        (["out", "--to=stablehlo", "--sizes=224,,3"], "'' is no image size"),
        (["out", "--to=stablehlo", "--sizes=0"], "a number or (height, width), not (0, 0)"),
        (["out", "--to=stablehlo", "--sizes=32,32x32"], "given twice"),
        (["", "--to=stablehlo"], "empty name"),
        (["out.onnx", "--to=stablehlo"], "written to a folder"),
        (["no/such/out", "--to=stablehlo"], "there is no folder"),
        (["/proc/out", "--to=stablehlo"], "cannot write /proc/out"),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_looked_for(
    vit, tmp_path, arguments, says, in_folder
):
    assert says in refused(vit, "export", "no weights at all", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def in_folder(tmp_path):
    before = os.getcwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


@pytest.mark.skipif(not LACKS_ONNX, reason="jax2onnx is installed here")
def test_a_missing_package_is_one_line_with_its_remedy(vit, tmp_path):
    line = refused(vit, "export", "no weights at all", tmp_path / "x.onnx", "--to=onnx")
    assert line == "vit: error: --to=onnx needs jax2onnx: pip install 'vit_jax[onnx]'\n"


def test_sizes_that_the_weights_cannot_have_are_refused(vit, weights, tmp_path):
    vit_weights, _, _ = tiny.saved(tmp_path)
    line = refused(vit, "export", vit_weights, tmp_path / "out", "--to=stablehlo", "--sizes=32,40")
    assert "(40, 40) is not divisible by patch_size 16; (32, 32) or (48, 48) would work" in line
    line = refused(vit, "export", weights, tmp_path / "out", "--to=stablehlo", "--sizes=64")
    assert "mixer_b16_224 computes images of 32 x 32 alone, not of 64 x 64" in line
    assert not (tmp_path / "out").exists()


def test_weights_whose_outputs_are_no_numbers_leave_nothing(vit, tmp_path):
    model, params = tiny.made(*tiny.FAMILIES["mixer"])
    params["head"]["kernel"][:] = 3e38  # finite, and their products are not
    vit_jax.save_pretrained(model, params, tmp_path / "weights", "orbax")
    line = refused(vit, "export", tmp_path / "weights", tmp_path / "out", "--to=stablehlo")
    assert "NaN or infinite" in line
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(("error", "fits"), [(5e-5, True), (2e-4, False), (np.nan, False)])
def test_what_differs_by_more_than_a_ten_thousandth_does_not_count_as_read_back(error, fits):
    model, params = tiny.made(*tiny.FAMILIES["mixer"])
    function = Function(model, params, "decode", raw=True)

    def read(images):
        return {"logits": function(images)["logits"] + error}

    found = compared(read, function, params)
    if fits:
        assert 4e-5 < found["logits"] < 6e-5
        assert accepted(function, found, "weights").startswith("32x32, largest difference")
    else:
        with pytest.raises(UserError, match="nothing is written"):
            accepted(function, found, "weights")


def test_unlikely_classes_hide_no_difference_of_logits():
    model, params = tiny.made(*tiny.FAMILIES["mixer"])
    params["head"]["bias"][:] = [8, 0, 0]  # probabilities of all but one are small
    function = Function(model, params, "decode")

    def read(images):
        logits, _ = model.apply(params, model.data_config.normalise(images))
        return {"probabilities": jax.nn.softmax(logits + np.float32([0, 0.01, -0.01]))}

    found = compared(read, function, params)
    assert found["probabilities"] < 1e-4
    assert found["log of probabilities"] > 1e-4
