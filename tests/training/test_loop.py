"""The loop waits for no step, ends after too many bad ones, and keeps what it promises."""

import json

import jax
import numpy as np
import pytest
from vit_jax.launch import runs

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import NON_FINITE, Stopped, UserError
from vit_jax.parallel.preemption import StopSignals
from vit_jax.parallel.watchdog import Watchdog
from vit_jax.training.loop import fit
from vit_jax.training.progress import Progress
from vit_jax.training.run import run_of
from vit_jax.training.start import first_state

ONE = jax.devices()[:1]


class Guarded:
    """A scalar that may be read on the host only from step `ready` on."""

    now = 0

    def __init__(self, value, ready):
        self.value, self.ready = value, ready

    def __array__(self, dtype=None, copy=None):
        if Guarded.now < self.ready:
            raise AssertionError(f"read at step {Guarded.now}, before step {self.ready}")
        return np.asarray(self.value, dtype)

    def item(self):
        return self.__array__().item()

    __float__ = __int__ = __bool__ = __index__ = tolist = item


def test_no_metric_is_read_before_the_next_interval(tmp_path):
    config = tiny_config(log_every_steps=4, total_steps=12, data__eval__split="",
                         checkpoint__every_steps=100)  # fmt: skip
    run = run_of(config, devices=ONE)
    compiled = run.compile_train_step()

    def step(state, batch):
        state, metrics = compiled(state, batch)
        Guarded.now += 1
        # A row of step s is due at step s + 4; at the end everything is.
        due = min((Guarded.now + 3) // 4 * 4 + 4, 12)
        return state, jax.tree.map(lambda value: Guarded(value, due), metrics)

    start = first_state(run, tmp_path)
    where, best = tmp_path / "checkpoints", ("accuracy", max)
    checkpoints = Checkpoints(where, 3, True, every_steps=100, best=best)
    progress = Progress(tmp_path, run, start, quiet=True)
    with StopSignals() as stop, Watchdog(300) as watchdog:
        fit(run, step, start, checkpoints, progress, stop, watchdog)
    progress.close()
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 12]


@pytest.mark.parametrize("log_every_steps", [1, 60])
def test_too_many_non_finite_steps_end_the_run_with_77_and_no_result(tmp_path, log_every_steps):
    config = tiny_config(optimizer__name="sgd", optimizer__weight_decay=0.0, total_steps=60,
                         optimizer__lr=1e30, optimizer__clip_norm=None, max_skipped_steps=3,
                         schedule__warmup_steps=0, eval_every_steps=60,
                         log_every_steps=log_every_steps)  # fmt: skip
    with pytest.raises(Stopped, match="steps in a row up to step") as stopped:
        vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert stopped.value.code == NON_FINITE
    assert not (tmp_path / "result.json").exists()


def test_result_names_every_final_metric_and_matches_the_rows(tmp_path):
    result = vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored == result
    last = [row for row in rows(tmp_path) if "eval/val/accuracy" in row][-1]
    assert result["accuracy"] == last["eval/val/accuracy"] == result["eval/val/accuracy"]
    assert result["steps"] == 10
    assert result["loss"] == [row for row in rows(tmp_path) if "loss" in row][-1]["loss"]
    for key in ("train_seconds", "images_per_second", "config_hash"):
        assert key in result
    assert json.loads((tmp_path / "classes.json").read_text()) == [str(i) for i in range(10)]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["total_steps"] == 10
    assert config["model.hidden_size"] == 32
    card = (tmp_path / "model_card.md").read_text()
    for fact in (f"accuracy {result['accuracy']:.2%}", "355 images", "8×8 px", "10 steps"):
        assert fact in card


def test_a_finished_run_started_again_only_tells_its_result(tmp_path):
    first = vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)
    before = rows(tmp_path)
    again = vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)
    spent, before_that = again.pop("goodput"), first.pop("goodput")
    assert again == first
    assert spent["step"] == pytest.approx(before_that["step"], abs=0.5)
    assert spent["init"] > before_that["init"]  # the second start
    assert rows(tmp_path) == before


def test_tensorboard_events_hold_the_rows_without_tensorflow(tmp_path):
    vit_jax.train(tiny_config(), tmp_path, devices=ONE, quiet=True)
    from tensorboardX.proto.event_pb2 import Event

    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
        data = data[16 + length :]
    for row in rows(tmp_path):
        if "loss" in row:
            assert found[row["step"], "loss"] == pytest.approx(row["loss"], rel=1e-6)
    assert (10, "eval/val/accuracy") in found


def test_a_writer_of_the_caller_is_told_every_number(tmp_path):
    class Kept:
        def __init__(self):
            self.told, self.calls = {}, []

        def write_scalars(self, step, scalars):
            self.told.setdefault(step, {}).update(scalars)

        def flush(self):
            self.calls.append("flush")

        def close(self):
            self.calls.append("close")

    kept = Kept()
    config = tiny_config(log_every_steps=2, total_steps=4)
    vit_jax.train(config, tmp_path, devices=ONE, writers=[kept], quiet=True)
    written = {}
    for row in rows(tmp_path):
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        written.setdefault(row["step"], {}).update(numbers)
    assert kept.told == written
    assert "loss" in kept.told[2]
    assert kept.calls.count("close") == 1
    assert kept.calls[-1] == "close"


def test_checkpoints_are_ranked_as_the_config_says(tmp_path):
    config = tiny_config(total_steps=6, eval_every_steps=2, best="min loss")
    result = vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    measured = [row["eval/val/loss"] for row in rows(tmp_path) if "eval/val/loss" in row]
    assert next(iter(result.items())) == ("loss", measured[-1])
    assert runs.describe(tmp_path)["best"] == min(measured)


def test_a_metric_that_no_evaluation_has_is_named_before_anything_is_written(tmp_path):
    config = tiny_config(total_steps=4, eval_every_steps=2, best="max accurcy")
    with pytest.raises(
        UserError, match=r"best is 'max accurcy'.*no accurcy: did you mean accuracy"
    ):
        vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"best.*max or min and a metric"):
        vit_jax.train(tiny_config(best="accuracy"), tmp_path / "other", devices=ONE, quiet=True)


def test_a_best_one_that_is_not_kept_is_not_saved(tmp_path):
    config = tiny_config(total_steps=8, eval_every_steps=1, checkpoint__every_steps=8,
                         checkpoint__keep_best=False)  # fmt: skip
    vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["8"]
