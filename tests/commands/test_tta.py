"""`vit evaluate --tta`: probabilities averaged over views of each image."""

import json

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.data.pipeline_text import parse
from vit_jax.data.views import views_of
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import metrics, of_probabilities

ONE = jax.devices()[:1]
PIPELINE = "decode|resize_small(10)|central_crop(8)|normalise(0.5, 0.25)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        optimizer__lr=1e-2, total_steps=20, data__eval__pipeline=PIPELINE,
        data__train__pipeline="decode|shift(1)|normalise(0.5, 0.25)",
    )  # fmt: skip
    vit_jax.train(config, workdir, devices=ONE, quiet=True)
    return workdir


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def by_hand(image, name):
    """A view of an image of 10 × 10 pixels, in NumPy."""
    name, _, side = name.partition(" ")
    at = {"middle": (1, 1), "top-left": (0, 0), "top-right": (0, 2), "bottom-left": (2, 0),
          "bottom-right": (2, 2)}[name]  # fmt: skip
    part = image[at[0] : at[0] + 8, at[1] : at[1] + 8]
    return part[:, ::-1] if side else part


CROPS = ("middle", "top-left", "top-right", "bottom-left", "bottom-right")
NAMED = {"flip": ("middle", "middle mirrored"), "crops": CROPS,
         "flip,crops": (*CROPS, *(f"{name} mirrored" for name in CROPS))}  # fmt: skip


@pytest.mark.parametrize("tta", list(NAMED))
def test_it_measures_the_mean_of_probabilities_of_views_that_numpy_cuts(trained, capsys, tta):
    found = evaluated(capsys, f"--workdir={trained}", f"--tta={tta}")
    model, params, _ = vit_jax.load_pretrained(trained, say=None)
    source = vit_jax.data.sources.open_source("digits", "val")
    labels = np.array([source[i]["label"] for i in range(len(source))])
    resized = [
        parse("decode|resize_small(10)", (8, 8))(np.asarray(source[i]["image"]), None)
        for i in range(len(source))
    ]
    mean = 0
    for name in NAMED[tta]:
        images = np.stack([by_hand(image, name) for image in resized])
        logits, _ = model.apply(params, model.data_config.normalise(images))
        shares = np.exp(np.asarray(logits, np.float64))
        mean = mean + shares / shares.sum(axis=1, keepdims=True) / len(NAMED[tta])
    assert found["accuracy"] == pytest.approx(np.mean(mean.argmax(axis=1) == labels), abs=1e-9)
    of_labels = mean[np.arange(len(labels)), labels]
    assert found["loss"] == pytest.approx(-np.log(of_labels).mean(), rel=1e-5)
    assert (found["tta"], found["examples"]) == (tta, 355)
    assert len(found["views"]) == len(NAMED[tta])


def test_each_view_can_be_evaluated_by_itself_and_one_view_is_the_usual_evaluation(trained, capsys):
    found = evaluated(capsys, f"--workdir={trained}", "--tta=flip")
    alone = [
        evaluated(capsys, f"--workdir={trained}", f"--config.data.eval.pipeline={view}",
                  f"--config.data.train.pipeline={view}")
        for view in found["views"]
    ]  # fmt: skip
    usual = evaluated(capsys, f"--workdir={trained}")
    assert alone[0]["accuracy"] == usual["accuracy"]
    assert "views" not in usual
    assert cli.main(["evaluate", f"--workdir={trained}", "--tta=flip"]) == 0
    said = capsys.readouterr().out
    assert "(355 examples of digits val; mean of 2 views: flip)" in said


def test_the_rows_of_probabilities_are_those_of_logits():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(50, 7)), rng.integers(7, size=50)
    rows = of_probabilities(label, scipy.special.softmax(logits, axis=-1))
    wanted = logits[np.arange(50), label]
    np.testing.assert_array_equal(rows["ahead"], (logits > wanted[:, None]).sum(axis=1))
    np.testing.assert_allclose(rows["nll"], np.log(np.exp(logits).sum(axis=1)) - wanted)
    np.testing.assert_array_equal(rows["predicted"], logits.argmax(axis=1))
    assert metrics(rows)["accuracy"] == np.mean(logits.argmax(axis=1) == label)
    # Of several labels, some of them missing.
    several = np.where(rng.random((50, 3)) < 0.3, -1, rng.integers(7, size=(50, 3)))
    several = np.array([[*{*row} - {-1}, -1, -1, -1][:3] for row in several])
    shares = 1 / (1 + np.exp(-logits))
    rows = of_probabilities(several, shares)
    has = np.array([[c in row for c in range(7)] for row in several])
    loss = -np.where(has, np.log(shares), np.log(1 - shares)).sum(axis=1)
    np.testing.assert_allclose(rows["nll"], loss, rtol=1e-9)
    best = np.where(has, shares, -np.inf).max(axis=1)
    ahead = np.where(has.any(axis=1), (shares > best[:, None]).sum(axis=1), 7)
    np.testing.assert_array_equal(rows["ahead"], ahead)


def test_views_are_pipelines():
    assert views_of("flip", "decode|resize|normalise(0.5, 0.5)") == [
        "decode|resize|normalise(0.5, 0.5)", "decode|resize|mirror|normalise(0.5, 0.5)",
    ]  # fmt: skip
    assert views_of("crops", "decode|central_crop((8, 6), floor=True)")[1:] == [
        f"decode|corner_crop({down}, {across}, (8, 6))" for down in (0, 1) for across in (0, 1)
    ]
    assert len(views_of("flip,crops", "decode|central_crop")) == 10
    assert views_of("flip, flip", "decode") == views_of("flip", "decode")


@pytest.mark.parametrize(("arguments", "line"), [
    (["--tta=flp"], "unknown view 'flp': did you mean flip?"),
    (["--tta="], "unknown view ''"),
    (["--tta=crops", "--config.data.eval.pipeline=decode|resize|normalise(0.5, 0.25)"],
     "has no central_crop, in whose place the corners"),
    (["--tta=flip", "--config.evaluators=knn('digits')"],
     "--tta is for classification: evaluator knn of the task classification has no prob"),
])  # fmt: skip
def test_what_has_no_views_is_one_line(trained, capsys, arguments, line):
    assert cli.main(["evaluate", f"--workdir={trained}", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error.splitlines()[-1]
    assert capsys.readouterr().out == ""


def test_another_task_has_no_views(tmp_path, capsys):
    config = tiny_config(
        task="tests.extensions.toy_task:Quadrants", model__num_classes=None, total_steps=1,
        mixup=0.0,
    )  # fmt: skip
    vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--tta=flip"]) == 2
    error = capsys.readouterr().err
    assert "--tta is for classification: evaluator val of the task tests.ext" in error


def test_crops_of_a_photograph_reach_its_corners():
    image = np.asarray(Image.linear_gradient("L").convert("RGB"))  # rows of 0 … 255
    top, bottom = (
        parse(f"decode|corner_crop({down}, 0, 32)", (32, 32))(image, None) for down in (0, 1)
    )
    assert (top[0, 0, 0], bottom[-1, 0, 0]) == (0, 255)
    with pytest.raises(UserError, match="down and across are 0 or 1"):
        parse("decode|corner_crop(2, 0, 32)", (32, 32))
