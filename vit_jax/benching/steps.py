"""A run's training step or forward pass, as it is compiled for training: how long it takes, what
share of the machine that is, what memory; beside the peers of benchmarks/peer_sides.py, in turns.

A batch that does not fit is halved for all sides. The peers themselves are no part of the package.
"""

import contextlib
import dataclasses
import gc
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.benching import machine
from vit_jax.benching.timing import Row, alternate, compare, in_a_row, summary
from vit_jax.config import flat
from vit_jax.errors import UserError, nearest
from vit_jax.parallel.chips import peak_flops
from vit_jax.ranges import microbatches
from vit_jax.training.memory import step_bytes
from vit_jax.training.run import Run

OURS, MATMUL = "vit_jax", "matmul"
FLOPS_PER_MAC = {"step": 6, "forward": 2}

# What a config may ask of our step that peers' do not do.
NOT_THEIRS = (
    "mixup", "cutmix", "ema", "optimizer.clip_norm", "optimizer.freeze", "optimizer.layer_decay",
    "model.dropout", "model.attention_dropout", "model.drop_path",
)  # fmt: skip

Say = Callable[[str], None]


class NotMeasured(Exception):
    """Why a peer is left out."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A side: work that is started, and how to wait for what the last start gave."""

    name: str
    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    about: Row = dataclasses.field(default_factory=dict)
    high_water: Callable[[], Row] = dict


# what, run, normalised images [B, H, W, C], labels [B] -> its side; raises NotMeasured
Peer = Callable[[str, Run, np.ndarray, np.ndarray], Work]


def find_peers(names: Iterable[str]) -> dict[str, Peer]:
    """The peers by name, from the benchmarks/ beside the package.

    Raises UserError for names that there are not, and where the package is in no checkout.
    """
    folder = Path(__file__).parents[2] / "benchmarks"
    names = list(names)
    if names and not (folder / "peer_sides.py").is_file():
        raise UserError(
            "--against: the peers stand in benchmarks/ of a checkout, and this vit_jax is in none: "
            "run from one (PYTHONPATH=CHECKOUT), or leave --against out"
        )
    if not names:
        return {}
    sys.path.insert(0, str(folder))
    known = importlib.import_module("peer_sides").PEERS
    for name in names:
        if name not in known:
            raise UserError(f"--against: no peer {name!r}; {nearest(name, known)}")
    return {name: known[name] for name in names}


def measure(
    run: Run, what: str, *, peers: Mapping[str, Peer], real: bool, rounds: int, count: int,
    say: Say, label: str = "", within: float = math.inf,
) -> list[Row]:  # fmt: skip
    """A row a side, then one of matrix products in the same turns; each measurement is `count` in a
    row. `what` is `step` or `forward`. No round is begun after `within` seconds of rounds.

    Raises UserError where even the smallest batch takes too much memory.
    """
    while True:
        try:
            return _measured(run, what, peers, real, rounds, count, say, label, within)
        except Exception as error:
            if not machine.out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0][:100]
        # Here, where nothing holds what the attempt had.
        gc.collect()
        say(f"a batch of {run.config.batch_size:,} takes too much memory ({reason}): halved")
        run = _halved(run)


def _halved(run: Run) -> Run:
    size, shards = run.config.batch_size // 2, run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    if not size or size % shards:
        raise UserError(
            f"not even a batch of {run.config.batch_size} fits into memory: a smaller model, "
            "--config.model.remat=full, or --config.mesh.fsdp=-1 over more devices"
        )
    passes = [m for m in microbatches(size, shards) if m <= max(run.config.microbatch, shards)]
    return run.changed({"batch_size": size, "microbatch": max(passes)})


def _measured(
    run: Run, what: str, peers: Mapping[str, Peer], real: bool, rounds: int, count: int, say: Say,
    label: str, within: float,
) -> list[Row]:  # fmt: skip
    c, device, model = run.config, run.mesh.devices.flat[0], run.model
    waits: list[float] = []
    before = machine.high_water(device)
    with contextlib.ExitStack() as at_end:
        if real:
            feed = run.train_batches(0, 10**9 // c.batch_size)
            at_end.callback(feed.close)
            take = _timed_next(feed, waits)
        else:
            batch = synthetic_batch(run)
            take = lambda: batch  # noqa: E731
        works = [OUR_WORK[what](run, take)]
        _warm_up(works[0], say)
        # What was held before, by a batch that did not fit or another model, is not this one's.
        held = machine.high_water(device).items()
        about = works[0].about | {name: peak for name, peak in held if peak > before.get(name, 0)}
        for name, peer in peers.items():
            shown = model.data_config.normalise(batch["image"])
            try:
                works.append(peer(what, run, np.asarray(shown), np.asarray(batch["label"])))
            except NotMeasured as reason:
                say(f"{name} is not measured: {reason}")
                continue
            _warm_up(works[-1], say)
        product, flops_of_product = machine.matmul(device, c.model.dtype)
        sides = {work.name: in_a_row(work.start, work.wait, count) for work in works}
        times = alternate(sides | {MATMUL: product}, rounds, within=within)
    case = f"{label or model.name}, {what}, batch {c.batch_size}, {c.model.dtype}"
    products = times.pop(MATMUL)
    rate = flops_of_product / float(np.median(products))
    peak = peak_flops(device.device_kind, c.model.dtype)
    rows = compare(case, times, OURS)
    for row, work in zip(rows, works, strict=True):
        per_second = c.batch_size / row["median_s"]
        flops = FLOPS_PER_MAC[what] * model.macs * per_second
        row |= {
            "batch_size": c.batch_size, "images_per_second": per_second, "flops_per_second": flops,
            "of_matmul": flops / (rate * run.mesh.size),
        }  # fmt: skip
        if peak:
            row |= {"mfu": flops / (peak * run.mesh.size), "peak_flops": peak}
        row |= about if row is rows[0] else work.about | work.high_water()
    if real:
        rows[0]["waiting"] = sum(waits[-len(times[OURS]) * count :]) / (
            count * float(times[OURS].sum())
        )
    of_machine: Row = {"case": case, "side": f"{MATMUL}, {c.model.dtype}", **summary(products)}
    of_machine["flops_per_second"] = rate
    if peak:
        of_machine["mfu"] = rate / peak
    return [*rows, of_machine]


def more_than_peers(run: Run) -> str | None:
    """A line on what our step does and peers' do not."""
    keys = flat(run.config)
    more = [f"{key}={keys[key]}" for key in NOT_THEIRS if keys.get(key)]
    return f"ours does what peers do not: {', '.join(more)}" if more else None


def synthetic_batch(run: Run) -> dict[str, jax.Array]:
    """One batch of noise on the devices, as the run's own would be."""
    rng, classes = np.random.default_rng(0), run.config.model.num_classes
    most = {"image": 256, "label": classes}
    return {
        name: jax.device_put(
            rng.integers(most[name], size=leaf.shape).astype(leaf.dtype)
            if name in most else np.full(leaf.shape, -1, leaf.dtype),
            leaf.sharding,
        )
        for name, leaf in run.abstract_batch(run.config.batch_size).items()
    }  # fmt: skip


def _timed_next(feed: Any, waits: list[float]) -> Callable[[], dict[str, jax.Array]]:
    def take() -> dict[str, jax.Array]:
        began = time.perf_counter()
        _, batch = next(feed)
        waits.append(time.perf_counter() - began)
        return batch

    return take


def _warm_up(work: Work, say: Say) -> None:
    """The first one, which may compile and choose algorithms: its time is told, not counted."""
    began = time.perf_counter()
    work.wait(work.start())
    compiled = f"compiled in {work.about['compile_s']:.1f} s, " if work.about else ""
    say(f"{work.name}: {compiled}the first took {time.perf_counter() - began:.2f} s")


def _our_step(run: Run, take: Callable) -> Work:
    began = time.perf_counter()
    step = run.compile_train_step()
    about = _compiled(run.compiled_step, began)
    state = run.init_state()

    def start() -> jax.Array:
        nonlocal state
        state, metrics = step(state, take())
        return metrics["loss"]

    return Work(OURS, start, jax.block_until_ready, about)


def _our_forward(run: Run, take: Callable) -> Work:
    model, where = run.model, run.shardings["params"]
    shapes = run.abstract_sharded_state["params"], run.abstract_batch(run.config.batch_size)
    began = time.perf_counter()
    forward = jax.jit(
        lambda params, pixels: model.apply(params, model.data_config.normalise(pixels))[0],
        compiler_options=run.compiler_options,
    )
    compiled = forward.lower(shapes[0], shapes[1]["image"]).compile()
    about = _compiled(compiled, began)
    params = jax.jit(model.init_fn, out_shardings=where)(jax.random.key(run.config.seed))
    return Work(OURS, lambda: compiled(params, take()["image"]), jax.block_until_ready, about)


def _compiled(compiled: Any, began: float) -> Row:
    return {"compile_s": time.perf_counter() - began, "compiled_bytes": step_bytes(compiled)}


OUR_WORK = {"step": _our_step, "forward": _our_forward}
