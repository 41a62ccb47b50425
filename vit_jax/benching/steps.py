"""Time, MFU and memory of a run's compiled training step or forward pass. The peers of
benchmarks/peer_sides.py, which are no part of the package, can be measured in turns with it.

If a batch does not fit into memory, it is halved for all sides.
"""

import contextlib
import dataclasses
import gc
import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.benching import machine
from vit_jax.benching.timing import Row, alternate, compare, in_a_row, summary
from vit_jax.config import base, flat
from vit_jax.errors import UserError, nearest
from vit_jax.models.detector_configs import NEVER_TRAINED
from vit_jax.models.registry import find_family
from vit_jax.parallel.chips import peak_flops
from vit_jax.sizes import microbatches
from vit_jax.training.memory import step_bytes
from vit_jax.training.resolve import known
from vit_jax.training.run import Run, run_of

OURS, MATMUL = "vit_jax", "matmul"
FLOPS_PER_MAC = {"step": 6, "forward": 2}

# Config keys for work of our step that the peers' steps do not do.
NOT_THEIRS = (
    "mixup", "cutmix", "ema", "optimizer.clip_norm", "optimizer.freeze", "optimizer.layer_decay",
    "model.dropout", "model.attention_dropout", "model.drop_path",
)  # fmt: skip

# Task -> the source of a plain run's shapes; of the first the size of a batch, classes, a side.
NOISE = {
    "classification": "synthetic:examples={},classes={},size={}",
    "detection": "coco",
    "masked": "synthetic:examples={},classes={},size={}",
}

DRAWN = 256  # examples of noise whose entries are drawn; more of them repeat these

Say = Callable[[str], None]


class NotMeasured(Exception):
    """The reason why a peer is left out."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Asynchronous work: `start` queues it once, `wait` waits for what `start` returned."""

    name: str
    start: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    about: Row = dataclasses.field(default_factory=dict)
    high_water: Callable[[], Row] = dict


# (`step` or `forward`, run, batch with normalised images) -> work, or NotMeasured
Peer = Callable[[str, Run, dict[str, np.ndarray]], Work]


def find_peers(text: str) -> dict[str, Peer]:
    """The peers that `text` names, separated by commas, from benchmarks/ beside the package.

    Raises UserError for an unknown name, or if the package is not in a checkout.
    """
    names = [name for name in text.split(",") if name]
    if not names:
        return {}
    folder = Path(__file__).parents[2] / "benchmarks"
    if not (folder / "peer_sides.py").is_file():
        raise UserError(
            "--against: the peers stand in benchmarks/ of a checkout, and this vit_jax is in none: "
            "run from one (PYTHONPATH=CHECKOUT), or leave --against out"
        )
    sys.path.insert(0, str(folder))
    peers = importlib.import_module("peer_sides").PEERS
    for name in names:
        if name not in peers:
            raise UserError(f"--against: no peer {name!r}; {nearest(name, peers)}")
    return {name: peers[name] for name in names}


def plain_run(name: str, batch_size: int, classes: int, devices: Any = None, **fields: Any) -> Run:
    """A run on noise with AdamW at a constant rate, without clipping, mixup or dropout, because the
    peers can do the same. `fields` are fields of the model. A detector's batches have the shapes of
    COCO's, and what a DETR never trains is frozen, as in the peers."""
    family, preset, _ = find_family(name)
    c = base(name, family.task)
    c.batch_size, c.total_steps = batch_size, 1_000_000
    c.model.update(fields)
    c.model.update({field: 0.0 for field in family.fields if field.endswith("dropout")})
    size = c.model.image_size or name.rpartition("_")[2]
    c.data.train.source = NOISE[family.task].format(batch_size, classes, size)
    c.data.train.pipeline, c.data.eval.split = "decode", ""
    c.optimizer.weight_decay, c.schedule.name = 1e-4, "constant"
    if preset.get("norm") == "frozen":
        c.optimizer.freeze = NEVER_TRAINED
    return run_of(c, devices=devices or jax.devices()[:1], data=known)


def measure(run: Run, what: str, *, say: Say, **how: Any) -> list[Row]:
    """Returns one row for each side, and one for the matrix products, measured in the same turns.

    Args:
      run: its batch is halved until all sides fit into memory. Of several sizes of images, the
        largest is measured.
      what: `step` or `forward`.
      say: is called with a line about everything that is left out or changed.
      how: `peers`; `real` data; `rounds`; `count` steps in one measurement; `label` of the case;
        and `within`: no round begins after this number of seconds.

    Raises UserError if even the smallest batch needs too much memory.
    """
    run = run.of_one_size
    while True:
        try:
            return _measured(run, what, say, **how)
        except Exception as error:
            if not machine.out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0][:100]
        gc.collect()  # after `except`, when nothing refers to the arrays any more
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
    run: Run, what: str, say: Say, *, peers: Mapping[str, Peer], real: bool, rounds: int,
    count: int, label: str = "", within: float = math.inf,
) -> list[Row]:  # fmt: skip
    c, device, model = run.config, run.mesh.devices.flat[0], run.model
    waits: list[float] = []
    before = machine.high_water(device)
    with contextlib.ExitStack() as at_end:
        if real:
            feed = run.train_batches(0, 10**9 // c.batch_size)
            at_end.callback(feed.close)

            def take() -> dict[str, jax.Array]:
                began = time.perf_counter()
                _, taken = next(feed)
                waits.append(time.perf_counter() - began)
                return taken
        else:
            batch = synthetic_batch(run)
            take = lambda: batch  # noqa: E731
        works = [OUR_WORK[what](run, take)]
        _warm_up(works[0], say)
        # An older peak belongs to another model, or to a batch that did not fit.
        peaks = machine.high_water(device).items()
        works[0].about.update({name: size for name, size in peaks if size > before.get(name, 0)})
        for name, peer in peers.items():
            shown = batch | {"image": model.data_config.normalise(batch["image"])}
            try:
                works.append(peer(what, run, jax.tree.map(np.asarray, shown)))
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
        row |= {"mfu": flops / (peak * run.mesh.size), "peak_flops": peak} if peak else {}
        row |= work.about | work.high_water()
    if real:
        measured = len(times[OURS]) * count
        rows[0]["waiting"] = sum(waits[-measured:]) / (count * float(times[OURS].sum()))
    of_machine = {"case": case, "side": f"{MATMUL}, {c.model.dtype}", **summary(products),
                  "flops_per_second": rate} | ({"mfu": rate / peak} if peak else {})  # fmt: skip
    return [*rows, of_machine]


def more_than_peers(run: Run) -> str | None:
    """A line about the work of our step that the peers do not do."""
    keys = flat(run.config)
    more = [f"{key}={keys[key]}" for key in NOT_THEIRS if keys.get(key)]
    return f"ours does what peers do not: {', '.join(more)}" if more else None


def synthetic_batch(run: Run) -> dict[str, jax.Array]:
    """A batch of noise on the devices, with the shapes and shardings of the run's own batches."""
    rng = np.random.default_rng(0)
    like = run.abstract_batch(run.config.batch_size)
    entries = run.task.entries(run.resolved.data.facts)
    rows = [entries.noise(rng) for _ in range(min(run.config.batch_size, DRAWN))]
    again = np.arange(run.config.batch_size) % len(rows)
    made = {name: np.stack([row[name] for row in rows])[again] for name in entries.filler}
    made["image"] = rng.integers(256, size=like["image"].shape, dtype=np.uint8)
    for name in like.keys() - made.keys():  # `id` and `damaged`, which the loss does not read
        made[name] = np.full(like[name].shape, -1, like[name].dtype)
    return {name: jax.device_put(made[name], one.sharding) for name, one in like.items()}


def _warm_up(work: Work, say: Say) -> None:
    """Runs the work once, because the first time may compile and choose algorithms."""
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

    return Work(OURS, start, about=about)


def _our_forward(run: Run, take: Callable) -> Work:
    model, where = run.model, run.shardings["params"]
    images = run.abstract_batch(run.config.batch_size)["image"]
    began = time.perf_counter()
    forward = jax.jit(
        lambda params, pixels: model.apply(params, model.data_config.normalise(pixels))[0],
        compiler_options=run.compiler_options,
    )
    compiled = forward.lower(run.abstract_sharded_state["params"], images).compile()
    about = _compiled(compiled, began)
    params = jax.jit(model.init_fn, out_shardings=where)(jax.random.key(run.config.seed))
    return Work(OURS, lambda: compiled(params, take()["image"]), about=about)


def _compiled(compiled: Any, began: float) -> Row:
    return {
        "compile_s": time.perf_counter() - began, "compiled_bytes": step_bytes(compiled),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }  # fmt: skip


OUR_WORK = {"step": _our_step, "forward": _our_forward}
