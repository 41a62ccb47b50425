"""Evaluators named in a config: measured in training at their own intervals, and by a command."""

import csv
import json

import jax
import numpy as np
import pytest
from made_images import encoded, folder_of_images, smooth
from PIL import Image

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax import cli
from vit_jax.checkpoint import manager
from vit_jax.errors import UserError
from vit_jax.evaluators.named import parse
from vit_jax.training.evaluation import measure, measured
from vit_jax.training.run import run_of

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    counts = {"train/cat": 8, "train/dog": 12, "val/cat": 3, "val/dog": 4}
    return folder_of_images(tmp_path_factory.mktemp("photos"), counts)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run with a moving average and every evaluator, four of them on data of their own."""
    workdir = tmp_path_factory.mktemp("trained")
    evaluators = (
        f"fewshot('folder:{photos}', n=(1, 3), split='val', pipeline='decode|resize')"
        f"|knn('folder:{photos}', split='val', every_steps=6, pipeline='decode|resize')"
        "|linear_probe(grid=(0.1, 1.0), every_epochs=0.2)"
        "|classification(split='train', name='fit')"
    )
    config = tiny_config(
        ema=0.9, evaluators=evaluators, model__channels=3, total_steps=12, eval_every_steps=4,
        data__train__source="synthetic:examples=96,classes=4,size=8",
        data__train__pipeline="decode",
    )  # fmt: skip
    result = vit_jax.train(config, workdir, devices=ONE, quiet=True)
    return workdir, config, result


def test_each_evaluator_measures_at_its_own_interval_and_at_the_end(trained):
    workdir, _, result = trained
    steps: dict[str, list[int]] = {}
    for row in rows(workdir):
        for name in {key.split("/")[1] for key in row if key.startswith("eval/")}:
            steps.setdefault(name, []).append(row["step"])
    assert steps["val"] == steps["fewshot"] == steps["fit"] == [4, 8, 12]
    assert steps["knn"] == [6, 12]
    assert steps["linear_probe"] == list(range(1, 13))  # a fifth of three steps: each
    assert steps["val_ema"] == steps["val"]
    assert 0 <= result["eval/fewshot/accuracy_3"] <= 1
    assert result["eval/fewshot/examples"] == 7
    assert result["eval/fit/examples"] == 96


def test_the_command_tells_what_training_told_of_both_kinds_of_weights(trained, capsys):
    workdir, _, result = trained
    for weights, suffix in (("trained", ""), ("ema", "_ema")):
        command = ["evaluate", f"--workdir={workdir}", f"--weights={weights}", "--json"]
        assert cli.main(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["loss"] == pytest.approx(result[f"eval/val{suffix}/loss"], rel=1e-5)
        for key in ("fewshot/accuracy_3", "knn/accuracy_20", "fit/accuracy"):
            name, metric = key.split("/")
            assert found[key] == pytest.approx(result[f"eval/{name}{suffix}/{metric}"], abs=1e-6)
    assert result["eval/val/loss"] != result["eval/val_ema/loss"]


def test_without_a_moving_average_there_is_none_to_measure(tmp_path, capsys):
    vit_jax.train(tiny_config(total_steps=1), tmp_path, devices=ONE, quiet=True)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--weights=ema"]) == 2
    assert "trained without --config.ema" in capsys.readouterr().err


def test_the_average_is_named_as_weights(trained, tmp_path):
    workdir, config, result = trained
    model, params, _ = vit_jax.load_pretrained(workdir / "ema", say=None)
    run = run_of(config, devices=ONE)
    assert model.on(None).config == run.model.config  # here there is no GPU
    loss = measure(run, params, print)["loss"]
    assert loss == pytest.approx(result["eval/val_ema/loss"], rel=1e-5)
    tuned = tiny_config(init=str(workdir / "ema"), total_steps=1, model__channels=3,
                        data__train__source="synthetic:examples=96,classes=4,size=8")  # fmt: skip
    vit_jax.train(tuned, tmp_path / "tuned", devices=ONE, quiet=True)
    with pytest.raises(UserError, match=r"trained without --config.ema"):
        vit_jax.load_pretrained(tmp_path / "tuned" / "ema", say=None)


def test_a_report_has_the_confusion_and_the_worst_mistakes(trained, tmp_path, capsys):
    workdir, _, _ = trained
    assert cli.main(["evaluate", f"--workdir={workdir}", f"--report={tmp_path}/r", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    table = list(csv.reader((tmp_path / "r" / "confusion.csv").open()))
    counts = np.array([[int(n) for n in row[1:]] for row in table[1:]])
    assert table[0][1:] == ["0", "1", "2", "3"]
    assert counts.sum() == 96
    assert counts.trace() / 96 == accuracy
    mistakes = list(csv.DictReader((tmp_path / "r" / "mistakes.csv").open()))
    assert len(mistakes) == 96 - counts.trace()
    sure = [float(row["confidence"]) for row in mistakes]
    assert sure == sorted(sure, reverse=True)
    for name in ("confusion.png", "mistakes.png"):
        assert min(Image.open(tmp_path / "r" / name).size) >= 128
    assert cli.main(["evaluate", f"--workdir={workdir}", "--report=/proc/none"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_schedule_free_training_is_measured_at_its_average(tmp_path, capsys):
    config = tiny_config(optimizer__name="schedule_free", schedule__name="constant", mixup=0.0)
    result = vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["loss"]
    assert found == pytest.approx(result["eval/val/loss"], rel=1e-5)
    run = run_of(config, devices=ONE)
    state = manager.restore(manager.find(tmp_path), run.abstract_state, run.shardings)
    ((_, plain, _),) = measured(run, run.evaluators, state, print)
    assert plain["loss"] == pytest.approx(found, rel=1e-5)


# -- ImageNet's sets of the same classes


@pytest.fixture
def imagenet(tmp_path):
    """Ten classes; `r` has two of them alone, `val` is named as ImageNet's."""
    counts = {f"train/n{c:02d}": 4 for c in range(10)}
    counts |= {"r/test/n03": 5, "r/test/n07": 4}
    root = folder_of_images(tmp_path / "in", counts)
    for number in range(1, 21):
        folder = root / "val" / f"n{number % 10:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"ILSVRC2012_val_{number:08d}.JPEG"
        file.with_suffix(".jpeg").write_bytes(encoded(smooth(20, 20)))
    return root


def test_a_subset_and_real_labels_are_measured_by_name(imagenet, tmp_path):
    real = tmp_path / "real.json"
    # Every image is the same, so that one class is predicted for all: it is in twelve label sets.
    labels = [[]] * 4 + [list(range(10))] * 12 + [[99]] * 4
    real.write_text(json.dumps(labels))
    config = tiny_config(
        data__train__source=f"folder:{imagenet}", data__train__pipeline="decode|resize",
        data__eval__pipeline="decode|resize", batch_size=8, total_steps=1, model__channels=3,
        evaluators=f"classification('folder:{imagenet}/r', 'test', subset=True, name='r')"
        f"|real(labels='{real}')",
    )  # fmt: skip
    result = vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    assert result["eval/real/real_accuracy"] == 12 / 16
    assert result["eval/r/examples"] == 9
    assert result["eval/r/top5_accuracy"] == 1.0  # it has the choice of two
    with pytest.raises(UserError, match=r"0.jpg' is no validation image of ImageNet"):
        vit_jax.train(
            tiny_config(
                data__train__source=f"folder:{imagenet}", data__train__pipeline="decode|resize",
                data__eval__pipeline="decode|resize", batch_size=8, total_steps=1,
                model__channels=3, evaluators=f"real(labels='{real}', split='train')",
            ),
            tmp_path / "other", devices=ONE, quiet=True,
        )  # fmt: skip


# -- what cannot be measured


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fewshots('folder:x')", "unknown evaluator 'fewshots': did you mean fewshot"),
        ("knn(", "cannot be read"),
        ("knn(neighbours=3)", "unexpected keyword argument 'neighbours'.*it takes source, split"),
        ("knn|knn", "two evaluators are called 'knn'"),
        ("knn + 1", "write them as"),
        ("knn(open('x'))", "is no text in quotes, number or list"),
        ("knn(nowhere)", "nowhere is no text in quotes"),
        ("fewshot(n=())", "n is a list of numbers above 0"),
        ("fewshot(n=(True,))", "n is a list of numbers above 0"),
        ("knn(k=5)", "k is a list of numbers above 0"),
        ("knn(k=(2.5,))", "k is a list of numbers above 0"),
        ("knn(temperature=0)", "temperature is a list of numbers above 0"),
        ("linear_probe(grid=1)", "grid is a list"),
        ("linear_probe(grid=(-1.0,))", "grid is a list"),
        ("knn(5)", "source is a text in quotes"),
        ("fewshot(every_steps=0)", "every_steps is a number above 0"),
        ("fewshot(every_steps=1.5)", "every_steps is a number above 0"),
        ("fewshot(every_steps=2, every_epochs=1)", "exclude each other"),
        ("real()", "real.json is had from https://github.com/google-research/reassessed-imagenet"),
    ],
)
def test_a_string_that_names_no_evaluators_is_one_clear_line(text, says):
    with pytest.raises(UserError, match=says):
        parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("knn('folder:/none')", "there is no folder /none"),
        ("knn(split='test')", "no split 'test'"),
        ("classification(name='val')", "two evaluators are called 'val'"),
        ("classification('folder:{photos}')", "has the class 'cat'"),
    ],
)
def test_an_evaluator_without_its_data_is_refused_before_the_run(text, says, photos, tmp_path):
    config = tiny_config(evaluators=text.format(photos=photos))
    with pytest.raises(UserError, match=says):
        vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    assert not (tmp_path / "run").exists()


def test_evaluators_stay_where_they_are_wherever_the_command_is_given(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(photos.parent)
    config = tiny_config(
        total_steps=1, model__channels=3, data__train__source="synthetic:classes=2,size=8",
        evaluators=f"knn('folder:{photos.name}', pipeline='decode|resize')", data__eval__split="",
    )  # fmt: skip
    config.evaluators = config.evaluators.replace("pipeline", "split='val', pipeline")
    vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", f"--workdir={tmp_path}/run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["knn/examples"] == 7


def test_a_split_without_labels_is_refused(tmp_path, monkeypatch):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "sets.py").write_text(
        "import numpy as np\n"
        "class Published:\n"
        "    classes = ['cat', 'dog']\n"
        "    def __init__(self, split):\n"
        "        self.split = split\n"
        "    def __len__(self):\n"
        "        return 4\n"
        "    def __getitem__(self, index):\n"
        "        label = index % 2 if self.split == 'train' else -1\n"
        "        return {'image': np.full((8, 8, 3), index, np.uint8), 'label': label}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config(evaluators="knn('published.sets:Published', split='test')")
    said = "knn: published.sets:Published, split 'test', has no labels"
    with pytest.raises(UserError, match=said):
        vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
