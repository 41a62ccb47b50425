"""Writers that a config names: what they get, and that none of their faults ends a run."""

import ast
import importlib.util
import inspect
import json
import threading
from pathlib import Path

import jax
import pytest

import vit_jax
from tests.digits_run import StopsAt, rows, tiny_config
from tests.parallel.jobs import Job
from vit_jax import cli
from vit_jax.config import config_hash, flat
from vit_jax.errors import RESTART, Stopped, UserError
from vit_jax.keys import WRITERS
from vit_jax.training.trackers import TRACKERS, Tracked
from vit_jax.training.writers import InBackground

ONE = jax.devices()[:1]
TOY, UNRELIABLE = (f"tests.extensions.toy_writer:{kind}" for kind in ("ToyWriter", "Unreliable"))


def calls(workdir, kind):
    lines = (workdir / "toy.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["call"] == kind]


def numbers(workdir):
    """The rows of metrics.jsonl without their texts."""
    return [{k: v for k, v in row.items() if not isinstance(v, str)} for row in rows(workdir)]


def test_a_named_writer_gets_every_row_the_config_and_the_end(tmp_path):
    workdir = tmp_path / "digits"
    vit_jax.train(tiny_config(writers=TOY), workdir, devices=ONE, quiet=True)
    assert [call["row"] for call in calls(workdir, "row")] == numbers(workdir)
    (opened,) = calls(workdir, "open")
    assert opened == {"call": "open", "id": "", "name": "digits", "last_step": 0}
    (told,) = calls(workdir, "hparams")
    assert told["hparams"] == json.loads((workdir / "config.json").read_text())
    assert [call["code"] for call in calls(workdir, "close")] == [0]
    assert list(workdir.glob("events.*")) == []  # TensorBoard was not named


def test_a_stopped_run_closes_its_writer_and_continues_the_same_run_of_it(tmp_path):
    config = tiny_config(writers=f"tensorboard, {TOY}", checkpoint__every_steps=100)
    with pytest.raises(Stopped) as stopped:
        vit_jax.train(config, tmp_path, devices=ONE, quiet=True, writers=[StopsAt(4)])
    assert stopped.value.code == RESTART
    assert [call["code"] for call in calls(tmp_path, "close")] == [RESTART]
    assert [call["row"] for call in calls(tmp_path, "row")] == numbers(tmp_path)
    last = numbers(tmp_path)[-1]["step"]
    vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert [(call["id"], call["last_step"]) for call in calls(tmp_path, "open")] == [
        ("", 0), ("toy-1", last)
    ]  # fmt: skip
    assert [call["row"] for call in calls(tmp_path, "row")] == numbers(tmp_path)
    assert [call["code"] for call in calls(tmp_path, "close")] == [RESTART, 0]
    assert len(list(tmp_path.glob("events.*"))) == 2


def test_a_writer_that_fails_in_the_middle_is_a_warning_and_a_count(tmp_path, capfd):
    config = tiny_config(writers=UNRELIABLE)
    result = vit_jax.train(config, tmp_path, devices=ONE)
    assert result["steps"] == 10
    kept = [row for row in numbers(tmp_path) if not 3 <= row["step"] <= 5]
    assert [call["row"] for call in calls(tmp_path, "row")] == kept
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("the network is down") == 1
    assert f"writer {UNRELIABLE} failed (ConnectionError: the network is down)" in told
    assert f"3 of {len(numbers(tmp_path))} rows of this start were not taken" in told
    # The same run without the writer.
    vit_jax.train(tiny_config(), tmp_path / "other", devices=ONE, quiet=True)
    assert [row.get("loss") for row in rows(tmp_path)] == [
        row.get("loss") for row in rows(tmp_path / "other")
    ]


def test_a_writer_that_does_not_open_is_an_error_at_first_and_later_a_warning(tmp_path, capfd):
    config = tiny_config(writers=UNRELIABLE, total_steps=2)
    (tmp_path / "away").touch()
    with pytest.raises(UserError, match="cannot be opened: ConnectionError: the server is away; w"):
        vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    (tmp_path / "away").unlink()
    vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    (tmp_path / "away").touch()
    result = vit_jax.train(tiny_config(writers=UNRELIABLE, total_steps=4), tmp_path, devices=ONE)
    assert result["steps"] == 4
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("the server is away") == 1
    assert "3 of 3 rows of this start were not taken" in told  # two steps and their evaluation


def test_an_error_of_the_run_closes_the_writer_too(tmp_path):
    config = tiny_config(writers=TOY, total_steps=4, eval_every_steps=2, best="max map")
    with pytest.raises(UserError, match="has no map: accuracy"):  # images have one label each
        vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert [call["code"] for call in calls(tmp_path, "close")] == [2]
    assert [call["row"] for call in calls(tmp_path, "row")] == numbers(tmp_path)


def test_a_damaged_file_of_identifiers_is_named(tmp_path):
    (tmp_path / "writers.json").write_text("{")
    with pytest.raises(UserError, match=r"writers.json cannot be read: .*remove it"):
        vit_jax.train(tiny_config(writers=TOY), tmp_path, devices=ONE, quiet=True)


@pytest.mark.parametrize(("writers", "line"), [
    ("tensorboard,wandbb", "writers is names of tensorboard, wandb, mlflow, trackio, joined by "
     "commas, or a writer of your own by its import path, not 'tensorboard,wandbb'"),
    pytest.param(
        "wandb", "writers=wandb: the package wandb is not installed: pip install "
        "'vit_jax[wandb]', or pip install wandb",
        marks=pytest.mark.skipif(importlib.util.find_spec("wandb") is not None,
                                 reason="wandb is installed here"),
    ),
    ("tests.extensions.toy_writer:None_", "tests.extensions.toy_writer:None_: the module has no "
     "'None_'"),
])  # fmt: skip
def test_an_unknown_writer_or_package_is_one_line_before_anything_is_written(
    tmp_path, capfd, writers, line
):
    arguments = ["train", "--config=digits.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*arguments, f"--config.writers={writers}"]) == 2
    assert capfd.readouterr().err == f"vit: error: {line}\n"
    assert not (tmp_path / "run").exists()


def test_the_names_of_writers_are_those_of_classes():
    assert {*WRITERS} == {"tensorboard", *TRACKERS}


@pytest.mark.parametrize("kind", [*TRACKERS.values(), InBackground])
def test_trackers_have_the_methods_of_clus_interface(kind):
    """Read as text, because clu's writers import TensorFlow."""
    folder = Path(importlib.util.find_spec("clu").submodule_search_locations[0])
    text = (folder / "metric_writers" / "interface.py").read_text("utf-8")
    (clus,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    wanted = {node.name: [argument.arg for argument in node.args.args]
              for node in clus.body if isinstance(node, ast.FunctionDef)}  # fmt: skip
    for name in ("write_hparams", "write_scalars", "flush", "close"):
        parameters = inspect.signature(getattr(kind, name)).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty]
        assert needed == wanted[name]


def test_a_trial_of_a_sweep_is_named_after_its_study_too(tmp_path):
    assert Tracked(tmp_path / "rates" / "0003", 0).name == "rates-0003"
    assert Tracked(tmp_path / "b16", 0).name == "b16"


def test_a_config_written_before_there_were_writers_has_the_same_hash():
    config = flat(tiny_config())
    before = {key: value for key, value in config.items() if key != "writers"}
    assert config["writers"] == "tensorboard"
    assert config_hash(config) == config_hash(before)


@pytest.mark.long
def test_a_writer_that_hangs_delays_neither_training_nor_the_end_of_it():
    said, taken, hangs = [], [], threading.Event()

    class Hangs:
        def write_scalars(self, step, scalars):
            taken.append(step)
            hangs.wait()

    writer = InBackground("hangs", Hangs, said.append)
    writer.begun(again=False)
    for step in range(5):
        writer.write_scalars(step, {})
    writer.flush()
    writer.close(code=RESTART)  # which waits for seconds, not for ever
    assert taken == [0]
    assert said == [
        "writer hangs: 5 of 5 rows of this start were not taken; metrics.jsonl has them"
    ]
    hangs.set()


@pytest.mark.long
def test_the_first_process_of_a_job_alone_writes(tmp_path):
    with Job(tmp_path / "run", writers=TOY) as job:
        job.finish()
    assert len(calls(tmp_path / "run", "open")) == 1
    assert [call["row"] for call in calls(tmp_path / "run", "row")] == numbers(tmp_path / "run")
