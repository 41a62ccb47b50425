"""Steps that are skipped: counted, told, and shown again; and traces of steps."""

import json

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config, told
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.training.replay import replay
from vit_jax.training.step import examples_hash

pytestmark = pytest.mark.long

ONE = jax.devices()[:1]


def test_a_step_whose_gradient_is_above_skip_norm_changes_nothing_and_is_told(tmp_path, capsys):
    norms = {}
    vit_jax.train(tiny_config(), tmp_path / "free", devices=ONE, quiet=True)
    norms = {row["step"]: row["grad_norm"] for row in rows(tmp_path / "free") if "loss" in row}
    limit = float(np.median(list(norms.values())))
    first = min(step for step, norm in norms.items() if norm > limit)
    config = tiny_config(optimizer__skip_norm=limit, total_steps=first, log_every_steps=first)
    config.checkpoint.every_steps = 1
    vit_jax.train(config, tmp_path / "skips", devices=ONE)
    row = rows(tmp_path / "skips")[0]
    assert (row["skipped_steps"], row["last_skipped_step"]) == (1, first)
    said = capsys.readouterr().err
    assert f"1 steps skipped, the last one {first}" in said
    assert f"examples {(first - 1) * 32:,} to {first * 32 - 1:,} of the order" in said
    assert f"--replay-step={first}" in said


@pytest.mark.parametrize("step", [2, 7])
def test_a_replayed_step_is_the_one_of_the_run(tmp_path, capsys, step):
    vit_jax.train(tiny_config(), tmp_path, devices=jax.devices(), quiet=True)
    before = {p: p.stat().st_mtime for p in tmp_path.rglob("*")}
    lines = replay(tiny_config(), tmp_path, step)
    loss, norm, _, examples = told(tmp_path)[step]
    start = "the beginning" if step < 5 else f"{tmp_path}/checkpoints/5"
    assert lines[0].startswith(
        f"step {step} from {start}: loss {loss:.6g}, gradient {norm:.6g}, rate "
    )
    assert lines[0].endswith(f"seed 0, examples {examples}")
    shown = [line.split() for line in lines[2 : lines.index("examples:")]]
    assert max(float(norm) for _, norm in shown) == float(shown[0][1])
    ids = [int(line.split()[0]) for line in lines[lines.index("examples:") + 1 :]]
    assert len(ids) == 32
    assert f"{int(examples_hash(np.array(ids))):08x}" == examples
    assert {p: p.stat().st_mtime for p in tmp_path.rglob("*")} == before


def test_a_step_that_the_run_does_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--replay-step lies in 1 … 10, not 11"):
        replay(tiny_config(), tmp_path, 11)


def test_the_hash_of_examples_is_its_definition():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**31, 100)
    total = 0
    for row, number in enumerate(ids.tolist()):
        x = number
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        total += (x ^ (x >> 16)) * (2 * row + 1)
    assert int(examples_hash(ids)) == total % 2**32
    assert int(examples_hash(ids[::-1].copy())) != total % 2**32


def test_a_trace_is_written_of_the_steps_asked_for(tmp_path, capsys):
    vit_jax.train(tiny_config(profile="3:2"), tmp_path, devices=ONE)
    assert "steps 3 to 4 traced" in capsys.readouterr().err
    assert len(list((tmp_path / "profile" / "0").rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("text", ["3", "0:2", "3:0", "3:2:x", "a:b"])
def test_a_trace_that_cannot_be_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"profile is FIRST:COUNT steps, .* as in 100:5"):
        vit_jax.train(tiny_config(profile=text), tmp_path / "run", devices=ONE, quiet=True)


def test_the_ledger_adds_up_to_the_time_of_the_run_and_is_kept(tmp_path):
    first = vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)["goodput"]
    assert set(first) == {"init", "compile", "data", "step", "evaluate", "checkpoint", "lost"}
    assert all(seconds >= 0 for seconds in first.values())
    assert first["lost"] == 0
    row = rows(tmp_path)[-2]  # that of the last loss
    assert row["seconds"] <= first["data"] + first["step"] + first["checkpoint"] + 1e-3
    again = vit_jax.train(
        tiny_config(total_steps=12), tmp_path, devices=ONE, quiet=True
    )["goodput"]  # fmt: skip
    assert all(again[part] >= first[part] - 1e-3 for part in ("init", "compile", "data"))


def test_steps_done_again_after_a_kill_are_lost_time(tmp_path):
    vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)
    for name in ("10",):
        (tmp_path / "checkpoints" / name).rename(tmp_path / name)  # as if killed before it
    (tmp_path / "result.json").unlink()
    seconds = max(row["seconds"] for row in rows(tmp_path) if "seconds" in row)
    at_five = json.loads((tmp_path / "checkpoints" / "5" / "about" / "metadata").read_text())
    kept = sum(at_five["goodput"][part] for part in ("data", "step", "checkpoint"))
    result = vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)
    assert result["goodput"]["lost"] == pytest.approx(seconds - kept, abs=0.01)


def test_the_command_shows_a_step(tmp_path, capsys):
    keys = ["--config=digits.py", "--config.total_steps=4", "--config.log_every_steps=1",
            "--config.eval_every_epochs=9"]  # fmt: skip
    assert cli.main(["train", *keys, f"--workdir={tmp_path}/run", "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["train", *keys, f"--workdir={tmp_path}/run", "--replay-step=3"]) == 0
    assert capsys.readouterr().out.startswith(f"step 3 from {tmp_path}/run/checkpoints/2: loss ")


def test_another_config_than_the_runs_is_refused(tmp_path):
    vit_jax.train(tiny_config(), tmp_path, devices=jax.devices(), quiet=True)
    with pytest.raises(UserError, match=r"belongs to another run; what differs:\s+optimizer.lr"):
        replay(tiny_config(optimizer__lr=1e-4), tmp_path, 7)
