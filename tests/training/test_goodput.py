"""The ledger: on a clock of the test's own steps, and in runs of which one part is known to be
slow."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

import vit_jax
from tests.digits_run import tiny_config, with_data
from vit_jax.benching import saving
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.evaluators.named import Classification
from vit_jax.parallel.preemption import StopSignals
from vit_jax.parallel.watchdog import Watchdog
from vit_jax.training.goodput import PARTS, Ledger
from vit_jax.training.loop import fit
from vit_jax.training.progress import Progress
from vit_jax.training.run import run_of
from vit_jax.training.start import first_state

pytestmark = pytest.mark.long

ONE = jax.devices()[:1]


def test_every_moment_is_of_one_part_also_when_read_in_the_middle_of_one():
    began = time.monotonic()
    ledger = Ledger({"step": 5.0}, began)
    ledger.turn("step")
    with ledger.spent("checkpoint"):
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            inside = ledger.seconds  # as the loop does for what it saves
    after = ledger.seconds
    assert after["checkpoint"] >= inside["checkpoint"] >= 0.04
    assert after["checkpoint"] >= 0.05
    assert after["step"] >= 5.0
    whole = sum(ledger.seconds.values()) - 5.0
    took = time.monotonic() - began
    assert sum(after.values()) - 5.0 <= whole <= took
    assert whole >= after["checkpoint"]
    assert list(after) == list(PARTS)


# -- runs of which one part is known to be slow --------------------------------------------
STEPS, BATCH = 12, 64  # batches of 64 passes of one image each: some 0.1 s a step


class SleepingSource:
    """A source that sleeps `seconds` once a batch, and counts what it has slept."""

    def __init__(self, source, seconds):
        self.source, self.seconds, self.calls, self.slept = source, seconds, 0, 0.0

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.calls += 1
        if self.calls % BATCH == 1:
            began = time.monotonic()
            time.sleep(self.seconds)
            self.slept += time.monotonic() - began
        return self.source[index]


@dataclasses.dataclass(frozen=True)
class SleepingEvaluator(Classification):
    seconds: float = 1.0
    slept: list = dataclasses.field(default_factory=list)

    def measure(self, rows, names):
        began = time.monotonic()
        time.sleep(self.seconds)
        self.slept.append(time.monotonic() - began)
        return super().measure(rows, names)


class Watched:
    """A compiled step whose outputs a thread waits for: the seconds in which steps were queued."""

    def __init__(self, step):
        self.step, self.busy, self._done = step, 0.0, 0.0
        self._thread = ThreadPoolExecutor(1)

    def __call__(self, state, batch):
        began = time.monotonic()
        state, metrics = self.step(state, batch)
        self._thread.submit(self._wait, began, metrics["loss"])
        return state, metrics

    def _wait(self, began, output):
        jax.block_until_ready(output)
        now = time.monotonic()
        self.busy += now - max(began, self._done)
        self._done = now


def config(**changes):
    return tiny_config(batch_size=BATCH, microbatch=1, total_steps=STEPS, log_every_steps=5,
                       eval_every_steps=6, data__threads=1, **changes)  # fmt: skip


@pytest.fixture(scope="module")
def slow():
    """A run of slow steps, and its compiled step."""
    run = run_of(config(data__eval__split=""), devices=ONE)
    return run, run.compile_train_step()


def spent(run, step, folder, every_steps=100):
    """The seconds that a run of all steps books on each part, and those in which steps ran."""
    start, step = first_state(run, folder), Watched(step)
    best = ("accuracy", max)
    checkpoints = Checkpoints(folder / "checkpoints", 3, True, every_steps=every_steps, best=best)
    progress = Progress(folder, run, start, quiet=True)
    with StopSignals() as stop, Watchdog(300) as watchdog:
        fit(run, step, start, checkpoints, progress, stop, watchdog)
    progress.close()
    return progress.ledger.seconds, step.busy


def share(told, part):
    """Of what a run does after its compilation."""
    return told[part] / sum(told[one] for one in ("data", "step", "evaluate", "checkpoint"))


def test_slow_steps_are_steps_however_often_a_run_saves(slow, tmp_path):
    saves = {row["side"]: row["median_s"] for row in saving.measure(slow[0], str(tmp_path), 2)}
    often, busy_often = spent(*slow, tmp_path / "often", every_steps=4)
    seldom, busy_seldom = spent(*slow, tmp_path / "seldom")
    assert often["step"] == pytest.approx(busy_often, rel=0.3)
    assert seldom["step"] == pytest.approx(busy_seldom, rel=0.3)
    more = 2 * saves["save: until on disk"]  # two saves more, each of which may wait for another
    a_step = busy_often / STEPS  # of those queued at a save, up to four would be booked on it
    assert often["checkpoint"] - seldom["checkpoint"] < 2 * more + 2 * a_step


def test_a_slow_source_is_data_less_the_time_in_which_steps_are_still_queued(slow, tmp_path):
    run, step = slow
    source = SleepingSource(run.train_source, 0.4)
    began = time.monotonic()
    told, busy = spent(with_data(run, train=source), step, tmp_path)
    took = time.monotonic() - began  # a machine that does much else adds to the waiting for data
    assert told["step"] == pytest.approx(busy, rel=0.3)
    assert 0.7 * (source.slept - busy) < told["data"] < took - 0.7 * busy


def test_a_source_that_sleeps_less_than_a_step_takes_is_not_waited_for(slow, tmp_path):
    run, step = slow
    alone, busy = spent(run, step, tmp_path / "alone")
    source = SleepingSource(run.train_source, 0.4 * busy / STEPS)
    told, busy = spent(with_data(run, train=source), step, tmp_path / "sleeping")
    assert told["step"] == pytest.approx(busy, rel=0.3)
    assert told["data"] < alone["data"] + 0.5 * source.slept


def test_a_slow_evaluator_is_evaluation_and_the_steps_before_it_are_not(slow, tmp_path):
    run, (_, step) = run_of(config(), devices=ONE), slow
    spent(run, step, tmp_path / "compiles")
    sleeping = SleepingEvaluator(name="val", seconds=1.0)
    slow_one = dataclasses.replace(run.evaluators[0], evaluator=sleeping)
    run = dataclasses.replace(
        run, resolved=dataclasses.replace(run.resolved, evaluators=(slow_one,))
    )
    began = time.monotonic()
    told, busy = spent(run, step, tmp_path / "measured")
    took = time.monotonic() - began  # a machine that does much else adds to the evaluation itself
    assert len(sleeping.slept) == 2
    assert sum(sleeping.slept) <= told["evaluate"] < took - 0.7 * busy
    assert told["step"] == pytest.approx(busy, rel=0.3)


def test_a_slow_compilation_is_compilation(tmp_path):
    took = [0.0]
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **more: (
            took.append(seconds)
            if "backend_compile" in name and "train_step" in more.get("fun_name", "train_step")
            else None
        )
    )
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        told = vit_jax.train(
            tiny_config(total_steps=2, data__eval__split=""), tmp_path, devices=ONE, quiet=True
        )["goodput"]
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    longest = max(took)  # that of the training step, whatever the first state's took
    assert told["compile"] > longest > told["step"]
    assert told["compile"] > 2 * (told["step"] + told["data"])
