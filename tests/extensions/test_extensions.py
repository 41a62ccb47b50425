"""A family and a task of one's own, each in one file beside this one, through public seams alone:
trained, resumed bit for bit, planned, and evaluated on eight devices."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import rows, told
from tests.xla_flags import xla_flags
from vit_jax import cli
from vit_jax.checkpoint import manager
from vit_jax.config import base
from vit_jax.errors import UserError

OWN = {
    "family": {"model.name": "tests.extensions.toy_family:FAMILY", "model.branch_scale": 0.5},
    "task": {"task": "tests.extensions.toy_task:Quadrants", "model.name": "vit_mu_patch4_8"},
}
EXTENSIONS = {"family": OWN["family"], "task": OWN["task"], "both": OWN["task"] | OWN["family"]}
METRIC = {"family": "accuracy", "task": "error", "both": "error"}


def config(name, **changes):
    c = base()
    tree = {
        "batch_size": 128, "total_steps": 10, "log_every_steps": 1, "eval_every_steps": 5,
        "checkpoint.every_steps": 5, "data.train.pipeline": "decode|shift(1)",
        "data.eval.pipeline": "decode", "optimizer.lr": 0.003, "optimizer.weight_decay": 0.1,
        "optimizer.layer_decay": 0.8, "mesh.fsdp": 2, "mesh.min_shard_size": 1,
    }  # fmt: skip
    with c.unlocked():
        for key, value in (tree | EXTENSIONS[name] | changes).items():
            c.update_from_flattened_dict({key: value})
    return c


@pytest.fixture(scope="module", params=EXTENSIONS)
def trained(request, tmp_path_factory):
    """(name, work folder, result) of a run that ended by itself."""
    workdir = tmp_path_factory.mktemp(request.param)
    return request.param, workdir, vit_jax.train(config(request.param), workdir, quiet=True)


def test_it_trains_and_its_own_metric_is_the_best(trained):
    name, workdir, result = trained
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert min(losses[5:]) < losses[0]
    assert next(iter(result)) == METRIC[name]
    evaluated = [row for row in rows(workdir) if f"eval/val/{METRIC[name]}" in row]
    assert [row["step"] for row in evaluated] == [5, 10]
    assert result[METRIC[name]] == evaluated[-1][f"eval/val/{METRIC[name]}"]
    assert ("loss/top" in result) == (METRIC[name] == "error")


def test_its_own_metric_is_listed(trained, capsys):
    name, workdir, _ = trained
    metric, best_of = METRIC[name], min if METRIC[name] == "error" else max
    key = f"eval/val/{metric}"
    measured = [row[key] for row in rows(workdir) if key in row]
    assert cli.main(["runs", str(workdir), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["metric"], run["best"]) == (key, best_of(measured))
    assert cli.main(["ckpt", "list", str(workdir), "--json"]) == 0
    assert [row[metric] for row in json.loads(capsys.readouterr().out)] == measured


def test_it_resumes_bit_for_bit(trained, tmp_path):
    name = trained[0]
    vit_jax.train(config(name, **{"total_steps": 5, "schedule.name": "constant"}), tmp_path / "a",
                  quiet=True)  # fmt: skip
    vit_jax.train(config(name, **{"total_steps": 10, "schedule.name": "constant"}), tmp_path / "a",
                  quiet=True)  # fmt: skip
    vit_jax.train(config(name, **{"schedule.name": "constant"}), tmp_path / "b", quiet=True)
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_it_is_evaluated_from_its_checkpoint_on_eight_devices(trained, capsys):
    name, workdir, result = trained
    assert len(jax.devices()) == 8
    assert cli.main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["examples"] == 355
    np.testing.assert_allclose(measured[METRIC[name]], result[METRIC[name]], rtol=1e-5)


def in_a_process(*arguments):
    """(exit code, output, errors) of `vit`, in a process that has imported nothing."""
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": xla_flags()}, timeout=300,
        check=False,
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


def test_another_process_takes_ones_own_run_and_no_other(trained, tmp_path, monkeypatch):
    """The checkpoint's signature vouches for the import path; weights need a flag."""
    name, workdir, result = trained
    if name != "family":
        return
    code, out, err = in_a_process("evaluate", f"--workdir={workdir}", "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"] == pytest.approx(result["accuracy"])
    image = tmp_path / "digit.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    code, out, err = in_a_process("predict", workdir, image)
    assert code == 2
    assert "comes from a file" in err
    code, out, err = in_a_process("predict", workdir, image, "--trust-code")
    assert code == 0, err
    assert "digit.png: " in out
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another_user"))
    code, out, err = in_a_process("evaluate", f"--workdir={workdir}", "--json")
    assert code == 2
    assert "--trust-code" in err


def test_it_is_planned(trained, tmp_path, capsys):
    name, _, _ = trained
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from tests.extensions.test_extensions import config\n"
        f"def get_config():\n    return config({name!r})\n"
    )
    assert cli.main(["plan", f"--config={recipe}", "--topology=local"]) == 0
    assert "mesh data 4 × fsdp 2" in capsys.readouterr().out


def test_a_field_of_ones_own_is_a_config_key(tmp_path, capsys):
    family = "--config.model.name=tests.extensions.toy_family:FAMILY"
    describe = ["describe", "--config=digits.py", family]
    assert cli.main([*describe, "--config.model.branch_scale=0.25"]) == 0
    assert "model.branch_scale = 0.25 " in capsys.readouterr().out
    assert cli.main([*describe, "--config.model.branch_scale=-1"]) == 2
    assert "branch_scale is a positive number, not -1.0" in capsys.readouterr().err
    assert cli.main([*describe, "--config.model.branch_scale=wide"]) == 2
    assert "'model.branch_scale' takes a number, not 'wide'" in capsys.readouterr().err
    assert cli.main([*describe, "--config.model.branch_scal=1"]) == 2
    assert "did you mean model.branch_scale" in capsys.readouterr().err
    assert cli.main(["describe", "--config=digits.py", "--config.model.branch_scale=1"]) == 2
    assert "unknown config key 'model.branch_scale'" in capsys.readouterr().err
    c = base("tests.extensions.toy_family:FAMILY")
    c.model.branch_scale = 2.0
    with pytest.raises(TypeError):
        c.model.branch_scale = "wide"


def test_a_family_that_a_file_names_is_not_imported(trained, tmp_path, capsys, monkeypatch):
    """A work folder from elsewhere is data."""
    name, workdir, _ = trained
    if name == "task":
        return
    (tmp_path / "elsewhere.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.chdir(tmp_path)
    checkpoint = manager.find(workdir)
    about = json.loads((checkpoint / manager.ABOUT).read_text())
    about["config"]["model.name"] = "elsewhere:FAMILY"
    from vit_jax.pretrained.own import described

    with pytest.raises(UserError, match=r"'elsewhere:FAMILY' comes from a file"):
        described(checkpoint, about)
