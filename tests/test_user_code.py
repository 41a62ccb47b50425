"""Code that a config names is run where this user typed the config, or trained by it."""

import json
import sys

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.checkpoint import checksums
from vit_jax.errors import UserError
from vit_jax.user_code import imported, only

ONE = jax.devices()[:1]
OURS = """
import pathlib
from vit_jax.data.memory import digits

def images(split, note=""):
    with pathlib.Path("ran").open("a") as file:
        file.write(f"{split} {note}\\n")
    return digits("", "val", None)

def inverted(image, rng, size):
    return 255 - image
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose data and whose operation are this user's own."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "ours_of_test").mkdir()
        (folder / "ours_of_test" / "__init__.py").write_text("")
        (folder / "ours_of_test" / "code.py").write_text(OURS)
        config = tiny_config(
            total_steps=1,
            checkpoint__every_steps=1,
            data__train__source="ours_of_test.code:images",
            data__train__pipeline="decode|ours_of_test.code:inverted",
        )
        vit_jax.train(config, folder / "work", devices=ONE, quiet=True)
        (folder / "ran").unlink()
        yield folder


def about(run):
    return run / "work" / "checkpoints" / "1" / "about" / "metadata"


def evaluate(run, *options):
    return cli.main(["evaluate", f"--workdir={run / 'work'}", *options])


def test_evaluate_runs_the_code_of_a_run_that_this_user_trained(run, capsys):
    assert evaluate(run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 355
    assert (run / "ran").read_text().split() == ["val"]


def test_evaluate_runs_no_code_of_a_folder_from_elsewhere(run, monkeypatch, tmp_path, capsys):
    (run / "ran").unlink(missing_ok=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # another user's home
    assert evaluate(run) == 2
    said = capsys.readouterr().err
    assert "ours_of_test.code:images" in said
    assert "--trust-code" in said
    assert not (run / "ran").exists()
    assert evaluate(run, "--trust-code") == 0
    assert (run / "ran").exists()


def test_what_is_typed_now_is_run_whoever_trained(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    typed = ["--data=ours_of_test.code:images:typed",
             "--config.data.train.pipeline=decode|ours_of_test.code:inverted"]  # fmt: skip
    assert evaluate(run, *typed) == 0
    assert "val typed" in (run / "ran").read_text()


def test_a_config_that_was_changed_behind_the_signature_vouches_for_nothing(run, capsys):
    file = about(run)
    stored = json.loads(file.read_text())
    assert stored["imports"] == ["ours_of_test.code:images", "ours_of_test.code:inverted"]
    before, sums = file.read_bytes(), checksums.NAME
    old = (file.parents[1] / sums).read_bytes()
    stored["config"]["data.eval.split"] = "__import__('os')"
    file.write_text(json.dumps(stored))
    checksums.write(file.parents[1])
    try:
        assert evaluate(run) == 2
        assert "--trust-code" in capsys.readouterr().err
    finally:
        file.write_bytes(before)
        (file.parents[1] / sums).write_bytes(old)


def test_a_run_of_no_code_has_no_signature(tmp_path):
    config = tiny_config(total_steps=1, checkpoint__every_steps=1)
    vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    stored = json.loads((tmp_path / "checkpoints" / "1" / "about" / "metadata").read_text())
    assert not {"imports", "signature"} & set(stored)


def test_the_gate_is_shut_for_every_path_that_is_not_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "canary_of_gate.py").write_text("x = 1")
    with only(lambda path: path == "math:sqrt"):
        assert imported("math:sqrt", "a function")(9) == 3
        with pytest.raises(UserError, match=r"canary_of_gate:x: a function .* is code"):
            imported("canary_of_gate:x", "a function")
    assert "canary_of_gate" not in sys.modules
    assert np.int64(imported("canary_of_gate:x", "a number")) == 1
