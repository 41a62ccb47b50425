"""Metrics and evaluators of the user's own, by import path: they are given every example's scores
and labels, rank runs, and are refused before a run where they fail."""

import json

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config
from tests.made_images import folder_of_images
from tests.refusals import refused
from vit_jax import cli
from vit_jax.data.memory import digits
from vit_jax.errors import UserError

ONE = jax.devices()[:1]
F1 = "tests.extensions.toy_metric:macro_f1"
HITS = "tests.extensions.toy_metric:hits"
SURE = "tests.extensions.toy_metric:Sure"
SMALL = {"model__num_layers": 1, "batch_size": 64, "optimizer__lr": 1e-2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(work folder, result) of a run that is ranked by its own metric."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(
        evaluators=f"{F1}|{HITS}(k=2)|{SURE}(split='train', least=0.3, every_steps=10)",
        best="max macro_f1", total_steps=20, eval_every_steps=5, checkpoint__every_steps=20,
        checkpoint__keep=4, **SMALL,
    )  # fmt: skip
    return workdir, vit_jax.train(config, workdir, devices=ONE, quiet=True)


@pytest.fixture(scope="module")
def predicted(trained):
    """Logits and labels of the digits' held-out split, from the weights."""
    model, params, _ = vit_jax.load_pretrained(trained[0], say=None)
    source = digits("", "val", None)
    examples = [source[number] for number in range(len(source))]
    images = model.prepare([example["image"] for example in examples])
    logits = np.asarray(jax.jit(model.apply)(params, images)[0])
    return logits, np.array([example["label"] for example in examples])


def macro_f1(logits, labels):
    """The harmonic mean of precision and recall of each class, and the mean of these."""
    scores = []
    for one in range(logits.shape[1]):
        predicted, real = logits.argmax(-1) == one, labels == one
        right = (predicted & real).sum()
        precision, recall = right / max(predicted.sum(), 1), right / real.sum()
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return np.mean(scores)


def hits(logits, labels, k):
    return np.mean([label in np.argsort(-row)[:k] for row, label in zip(logits, labels)])  # noqa: B905


def test_a_metric_of_ones_own_is_beside_the_others_of_the_evaluation(trained, predicted):
    workdir, result = trained
    assert result["eval/val/macro_f1"] == pytest.approx(macro_f1(*predicted), abs=1e-6)
    assert result["eval/val/hits_2"] == pytest.approx(hits(*predicted, 2), abs=1e-6)
    assert result["eval/val/examples"] == len(predicted[1])
    config = json.loads((workdir / "config.json").read_text())
    assert config["evaluators"].startswith(f"{F1}|{HITS}(k=2)|")


def test_it_ranks_the_run(trained, vit):
    workdir, result = trained
    measured = {row["step"]: row["eval/val/macro_f1"] for row in rows(workdir)
                if "eval/val/macro_f1" in row}  # fmt: skip
    assert sorted(measured) == [5, 10, 15, 20]
    assert next(iter(result)) == "macro_f1"
    (run,) = json.loads(vit("runs", workdir, "--json")[1])
    assert (run["metric"], run["best"]) == ("eval/val/macro_f1", max(measured.values()))
    best = json.loads(vit("evaluate", f"--workdir={workdir}/best", "--json")[1])
    assert best["step"] == max(measured, key=measured.get)
    assert best["macro_f1"] == pytest.approx(max(measured.values()), abs=1e-6)


def test_an_evaluator_of_ones_own_has_its_data_and_interval(trained):
    workdir, result = trained
    assert result["eval/sure/examples"] == 1442
    assert 0 <= result["eval/sure/share"] <= 1
    steps = [row["step"] for row in rows(workdir) if "eval/sure/share" in row]
    assert steps == [10, 20]


def test_a_command_measures_it_on_any_run_weights_and_views(trained, predicted, vit, tmp_path):
    workdir, _ = trained
    line = vit("evaluate", f"--workdir={workdir}")[1].splitlines()[0]
    assert f"macro f1 {macro_f1(*predicted):.4g}, hits 2 {hits(*predicted, 2):.4g}" in line
    typed = f"--config.evaluators={HITS}(k=4)|{F1}(name='f')"
    found = json.loads(vit("evaluate", f"--workdir={workdir}", typed, "--json", "--tta=flip")[1])
    assert len(found["views"]) == 2
    assert hits(*predicted, 2) <= found["hits_4"] <= 1
    assert "macro_f1" not in found
    assert 0 <= found["f"] <= 1
    code, out, err = vit("evaluate", f"--weights={workdir}", "--data=digits", typed, "--json")
    assert code == 0, err
    assert json.loads(out)["hits_4"] == pytest.approx(hits(*predicted, 4), abs=1e-6)


def test_other_data_is_measured_by_the_classification_evaluator(tmp_path):
    photos = folder_of_images(
        tmp_path, {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}
    )
    config = tiny_config(
        data__train__source=f"folder:{photos}", data__train__pipeline="decode|resize",
        data__eval__pipeline="decode|resize", model__channels=3, model__num_layers=1,
        batch_size=8, total_steps=1, data__eval__split="",
        evaluators=f"classification(split='train', metrics='{F1}|{HITS}(k=1, name=\"one\")', "
        "name='fit')",
    )  # fmt: skip
    result = vit_jax.train(config, tmp_path / "run", quiet=True)  # on eight devices
    assert result["eval/fit/one_hits_1"] == result["eval/fit/accuracy"] == 0.5  # one class for all
    assert result["eval/fit/macro_f1"] == pytest.approx(1 / 3)


def test_several_labels_come_as_rows_of_them(tmp_path):
    folder_of_images(tmp_path, {"images": 12})
    lines = [f"images/{n}.jpg,{'a;b' if n % 2 else 'c'},{'val' if n > 7 else 'train'}"
             for n in range(12)]  # fmt: skip
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split", *lines]))
    config = tiny_config(
        loss__name="sigmoid", data__train__source=f"csv:{tmp_path}/table.csv", batch_size=8,
        data__train__pipeline="decode|resize", data__eval__pipeline="decode|resize", mixup=0.0,
        model__channels=3, model__num_layers=1, total_steps=1, evaluators=f"{HITS}(k=1)|{HITS}(3)",
    )  # fmt: skip
    result = vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    assert result["eval/val/hits_1"] == result["eval/val/accuracy"]
    assert result["eval/val/hits_3"] == 1
    config.evaluators = F1  # which is of one label
    with pytest.raises(UserError, match=r"macro_f1: ValueError: .*; a metric takes scores"):
        vit_jax.train(config, tmp_path / "other", devices=ONE, quiet=True)
    assert not (tmp_path / "other").exists()


def test_a_value_that_is_no_number_is_never_the_best(tmp_path, vit):
    config = tiny_config(
        evaluators="tests.evaluators.bad_metrics:spread", best="max spread", total_steps=6,
        eval_every_steps=1, checkpoint__every_steps=6, **SMALL,
    )  # fmt: skip
    vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    measured = {row["step"]: row["eval/val/spread"] for row in rows(tmp_path / "run")
                if "eval/val/spread" in row}  # fmt: skip
    assert np.isnan(measured[1])
    best = json.loads(vit("evaluate", f"--workdir={tmp_path}/run/best", "--json")[1])
    assert measured[best["step"]] == np.nanmax(list(measured.values()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vector", "bad_metrics:vector: TypeError: it returns float64 [20]; a metric takes scores"),
        ("text", "TypeError: it returns <U4 []"),
        ("nan", "nan is nan for random scores, with each class twice among the labels"),
        ("fails", "bad_metrics:fails: RuntimeError: out of; a metric takes scores"),
        ("writes", "ValueError: assignment destination is read-only"),
        ("accuracy", "there is another metric accuracy; give it a name"),
        ("one|tests.evaluators.bad_metrics:one", "there is another metric one; give it a name"),
        ("odd", "'of val/test' cannot be the name of a metric"),
        ("one(k=3)", "unexpected keyword argument 'k' (it takes scores, labels, name)"),
        ("missing", "bad_metrics:missing: the module has no 'missing'"),
        ("number", "metric tests.evaluators.bad_metrics:number is no function: a metric takes"),
        ("Evaluator", "is no dataclass that is a vit_jax.evaluators.named.Evaluator, and no"),
    ],
)
def test_what_is_no_metric_is_one_line_before_a_run(vit, tmp_path, text, said):
    line = refused(
        vit, "train", "--config=digits.py", f"--workdir={tmp_path}/run",
        f"--config.evaluators=tests.evaluators.bad_metrics:{text}",
    )  # fmt: skip
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_metric_has_no_place_without_a_split_or_with_another_task(vit, tmp_path):
    arguments = ["train", f"--workdir={tmp_path}/run", f"--config.evaluators={F1}"]
    line = refused(vit, *arguments, "--config=digits.py", "--config.data.eval.split=")
    assert f"{F1} is measured on data.eval, which has no split" in line
    line = refused(vit, *arguments, "--config=detr.py:digits")
    assert f"{F1} is a function of scores and labels, which task=detection does not have" in line


def test_a_folder_from_elsewhere_runs_no_metric(trained, vit, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    line = refused(vit, "evaluate", f"--workdir={trained[0]}")
    assert f"{F1}: an evaluator that a work folder's config names is code" in line
    assert cli.main(["evaluate", f"--workdir={trained[0]}", "--config.evaluators=None"]) == 0
