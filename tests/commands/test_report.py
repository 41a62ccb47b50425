"""`vit report`: a page of a run, whose numbers are those of its files and of its rows."""

import json
import re

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax import cli
from vit_jax.evaluators import detection
from vit_jax.evaluators.classification import by_confidence

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reported") / "digits-run"
    c = tiny_config(optimizer__lr=3e-3, total_steps=20, eval_every_steps=5)
    vit_jax.train(c, workdir, devices=ONE, quiet=True)
    return workdir


def report(workdir, tmp_path, *more):
    page = tmp_path / "page.html"
    return cli.main(["report", str(workdir), f"--output={page}", *more]), page


def test_the_page_has_what_the_run_wrote_and_what_its_checkpoint_does(trained, tmp_path, capsys):
    code, file = report(trained, tmp_path)
    assert code == 0, capsys.readouterr().err
    page = file.read_text(encoding="utf-8")
    result = json.loads((trained / "result.json").read_text())
    assert f"<td>accuracy</td><td>{result['accuracy']:.4g}</td>" in page
    last = [row for row in rows(trained) if "eval/val/accuracy" in row][-1]
    assert f"accuracy {last['eval/val/accuracy']:.2%}" in page  # measured again
    for heading in ("Time", "Loss", "Evaluations", "Calibration", "Mistakes, the surest first",
                    "Data", "Settings that differ from the defaults"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    wrong = round((1 - last["eval/val/accuracy"]) * last["eval/val/examples"])
    assert len(re.findall(r"<figcaption>\S+, taken for \S+ \(\d+%\)", page)) == min(wrong, 12)
    shown = [float(share) for share in re.findall(r"<td>\d+</td><td>([\d.]+)%</td><td>", page)]
    assert len(shown) == 10
    assert shown == sorted(shown)  # the worst class first
    assert "━ val/loss" in page
    assert "<td>batch_size</td><td>" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in page


def test_without_evaluation_nothing_of_the_data_is_read(trained, tmp_path, capsys):
    code, file = report(trained, tmp_path, "--no-evaluation")
    page = file.read_text(encoding="utf-8")
    assert code == 0
    assert "<h2>Loss</h2>" in page
    assert "<h2>Calibration</h2>" not in page


def test_what_cannot_be_evaluated_is_said_and_the_rest_is_shown(trained, tmp_path, capsys):
    code, file = report(trained, tmp_path, "--split=nothing")
    page = file.read_text(encoding="utf-8")
    assert code == 0
    assert "Not evaluated: " in page
    assert "<h2>Loss</h2>" in page


@pytest.mark.parametrize(
    ("run", "output", "said"),
    [
        ("not_there", "page.html", "cannot be read"),
        ("", "no/page.html", "there is no folder"),
    ],
)
def test_what_is_wrong_is_one_line(run, output, said, trained, tmp_path, capsys):
    folder = tmp_path / run if run else trained
    assert cli.main(["report", str(folder), f"--output={tmp_path / output}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / output).exists()


def test_calibration_is_the_accuracy_of_each_interval_of_confidence():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(size=200), rng.random(200) < 0.5
    found = by_confidence({"confidence": confidence, "ahead": np.where(right, 0, 1)})
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        assert found[number] == pytest.approx((confidence[inside].mean(), right[inside].mean()))


def image(found, truth, crowd=()):
    """Rows of one image with boxes (x1, y1, x2, y2, class, score) and (x1, y1, x2, y2, class)."""
    found, truth = np.array(found, float).reshape(-1, 6), np.array(truth, float).reshape(-1, 5)
    return {
        "boxes": found[None, :, :4], "predicted": found[None, :, 4].astype(int),
        "scores": found[None, :, 5], "true_boxes": truth[None, :, :4],
        "true_class": truth[None, :, 4].astype(int),
        "crowd": np.isin(np.arange(len(truth)), crowd)[None],
        "area": ((truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]))[None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "truth", "crowd", "errors"),
    [
        ([(0, 0, 9, 9, 1, 0.9)], [(0, 0, 9, 10, 1)], (), 0),
        ([(0, 0, 9, 9, 2, 0.9)], [(0, 0, 9, 10, 1)], (), 2),  # another class
        ([(0, 0, 9, 9, 1, 0.4)], [(0, 0, 9, 10, 1)], (), 1),  # too low a score
        ([(0, 0, 9, 9, 1, 0.9), (0, 0, 9, 8, 1, 0.8)], [(0, 0, 9, 10, 1)], (), 1),  # twice
        ([(0, 0, 9, 3, 1, 0.9)], [(0, 0, 9, 10, 1)], (), 2),  # covers less than a half
        ([], [(0, 0, 9, 10, 1), (20, 20, 30, 30, 0)], (1,), 1),  # a crowd need not be found
    ],
)
def test_errors_of_an_image_are_missed_objects_and_boxes_of_nothing(found, truth, crowd, errors):
    assert detection.errors(image(found, truth, crowd)).tolist() == [errors]


def test_precision_by_class_has_the_means_of_all():
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 50, (6, 8, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 40, (6, 8, 2))], axis=-1)
    rows = {
        "boxes": boxes + rng.normal(0, 2, boxes.shape), "scores": rng.random((6, 8)),
        "predicted": rng.integers(0, 3, (6, 8)), "true_boxes": boxes,
        "true_class": rng.integers(0, 3, (6, 8)), "crowd": np.zeros((6, 8), bool),
        "area": np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1),
    }  # fmt: skip
    found, whole = detection.of_classes(rows), detection.metrics(rows)
    assert sum(count for count, *_ in found.values()) == 48
    assert np.mean([ap for _, ap, _ in found.values()]) == pytest.approx(whole["ap"])
    assert np.mean([ap50 for *_, ap50 in found.values()]) == pytest.approx(whole["ap50"])
