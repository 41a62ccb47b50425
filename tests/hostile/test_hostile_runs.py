"""Work folders that somebody else made, or that something has damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import vit_jax
from tests.digits_run import tiny_config
from tests.hostile import made
from vit_jax.checkpoint import checksums


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(total_steps=2, checkpoint__every_steps=1, model__num_layers=1)
    vit_jax.train(config, workdir, devices=jax.devices()[:1], quiet=True)
    return workdir


def about(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Rewrites what a checkpoint says of itself, and its checksums."""

    def make(run: Path) -> None:
        checkpoint = run / "checkpoints" / "2"
        file = checkpoint / "about" / "metadata"
        told = json.loads(file.read_text())
        file.write_text(json.dumps(change(told) or told))
        checksums.write(checkpoint)

    return make


def config(**keys: Any) -> Callable[[Path], None]:
    return about(lambda told: told["config"].update(
        {key.replace("__", "."): value for key, value in keys.items()}))  # fmt: skip


CODE = "__import__('os').system('touch PWNED')"
FOREIGN: dict[str, Callable[[Path], None]] = {
    "a source of NumPy's": config(
        data__eval__source="numpy.testing:measure", data__eval__split=CODE
    ),
    "a source of the folder's": config(data__eval__source="canary.evil:op"),
    "an operation": config(data__eval__pipeline="decode|canary:op"),
    "an operation of training": config(data__train__pipeline="decode|os:system('touch PWNED')"),
    "an evaluator's source": config(evaluators="knn('canary.evil:op')"),
    "a builder": config(data__eval__source="tfds:canary.evil:op"),
}  # fmt: skip
EDITED: dict[str, Callable[[Path], None]] = {
    "no config": about(lambda told: told.pop("config") and None),
    "a list": about(lambda told: told.update(config=[])),
    "a text": about(lambda told: told.update(config="x")),
    "about a list": about(lambda told: [1]),
    "classes of numbers": about(lambda told: told.update(classes=list(range(10)))),
    "another number of classes": about(lambda told: told.update(classes=["a"])),
    "an unknown key": config(no__such=1), "a size of text": config(model__hidden_size="x"),
    "10**9 layers": config(model__num_layers=10**9),
    "a width of 10**9": config(model__hidden_size=10**9),
    "an image of 10**7": config(model__image_size=[10**7, 10**7]),
    "no image size": config(model__image_size=None), "std of 0": config(data__std=0.0),
    "mean of NaN": config(data__mean=float("nan")),
    "a pipeline of 5": config(data__eval__pipeline=5),
    "an unknown model": config(model__name="evil"),
    "a huge resize": config(data__eval__pipeline="decode|resize(1000000)"),
}  # fmt: skip


def sums(text: str) -> Callable[[Path], None]:
    return lambda run: (run / "checkpoints" / "2" / checksums.NAME).write_text(text) and None


def half_of_sums(run: Path) -> None:
    file = run / "checkpoints" / "2" / checksums.NAME
    told = json.loads(file.read_text())
    file.write_text(json.dumps(dict(list(told.items())[::2])))


STATE: dict[str, Callable[[Path], object]] = {
    "no sums": sums("{}"), "a list of sums": sums("[]"), "sums of numbers": sums('{"a": 1}'),
    "half of the sums": half_of_sums,
    "a file more": lambda run: (run / "checkpoints" / "2" / "state" / "evil").write_text("x"),
}  # fmt: skip


@pytest.fixture
def run(trained, tmp_path) -> Path:
    (tmp_path / "canary").mkdir()
    for file in ("__init__", "evil"):
        (tmp_path / "canary" / f"{file}.py").write_text("open('PWNED', 'w').close()\nop = print\n")
    (tmp_path / "cat.png").write_bytes(made.image())
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_run_runs_nothing(vit, run, name):
    FOREIGN[name](run)
    vit.refused("evaluate", "--workdir=run", cwd=run.parent, says="--trust-code")
    answer = vit("predict", "run", "cat.png", cwd=run.parent)
    assert answer["code"] in (0, 2)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("name", EDITED)
def test_an_edited_checkpoint_is_told_in_one_line(vit, run, name, command):
    EDITED[name](run)
    where = ["--workdir=run"] if command == "evaluate" else ["run", "cat.png"]
    answer = vit(command, *where, cwd=run.parent)
    if answer["code"] == 0:  # what a command does not read does no harm
        assert command == "predict" or name == "unread"
    else:
        assert (answer["code"], answer["err"].count("vit: error: ")) == (2, 1), answer["err"]


@pytest.mark.parametrize("name", STATE)
def test_checksums_that_say_too_little_are_a_finding(vit, run, name):
    STATE[name](run)
    answer = vit("ckpt", "verify", "run", cwd=run.parent)
    assert answer["code"] in (1, 2)
    assert "2" in answer["out"] + answer["err"]


@pytest.mark.parametrize("name", ["²", "007", "-1", "99", "9" * 30, "x\x1b[2J"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_step_is_not_taken_for_one(vit, run, name, kind):
    place = run / "checkpoints" / name
    place.mkdir() if kind == "folder" else place.write_text("x")
    for command in (["runs", "."], ["ckpt", "list", "run"], ["evaluate", "--workdir=run"]):
        answer = vit(*command, cwd=run.parent)
        assert answer["code"] in (0, 2)
        assert answer["err"].count("\n") <= 3


TORN = {
    "torn": '{"step": 3, "lo', "a list": "[1, 2]\n", "text": '{"step": "x", "loss": "y"}\n',
    "null": '{"step": null}\n', "endless": '{"step": 2, "loss": 1e999}\n',
    "nested": "[" * 10**5 + "\n",
    "zeros": "\0" * 500, "not UTF-8": "\udcff\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TORN)
def test_a_damaged_row_is_read_past(vit, run, name):
    with (run / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write(TORN[name])
    assert vit("runs", ".", cwd=run.parent)["code"] == 0
    page = run.parent / "c.html"
    for command in (["compare", "run", "--output=c.html"], ["compare-curve", "run", "run"]):
        answer = vit(*command, cwd=run.parent, writes=(page, run.parent / ".c.html.part"))
        assert answer["code"] in (0, 1, 2)


EDITS = ("", "[]", "5", '{"steps": null}', '{"steps": []}', "[" * 10**5,
         '{"total_steps": "x", "goodput": [], "accuracy": "y"}')  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "result.json", "classes.json"])
@pytest.mark.parametrize("text", EDITS)
def test_an_edited_file_of_a_run_is_told_or_read_past(vit, run, file, text):
    (run / file).write_text(text)
    for command in (["runs", "."], ["compare", "run", "run"]):
        assert vit(*command, cwd=run.parent)["code"] in (0, 2)


def test_a_lock_that_is_a_pipe_is_not_waited_for(vit, run):
    (run / ".lock").unlink(missing_ok=True)
    os.mkfifo(run / ".lock")
    assert vit("runs", ".", cwd=run.parent)["code"] in (0, 2)
