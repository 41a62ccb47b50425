"""Speed and memory of models against the number of pixels, and the exponents of both: attention
between all positions costs N², along axes N^1.5, over a window N.
"""

import copy
import csv
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vit_jax import pages
from vit_jax.benching import steps
from vit_jax.benching.timing import in_a_row
from vit_jax.files import write_text
from vit_jax.models import Model
from vit_jax.models.layers import ParamKeys
from vit_jax.training.resolve import known
from vit_jax.training.run import run_of

ROUNDS = 3  # of each time, of which the median counts


@dataclasses.dataclass(frozen=True)
class Point:
    """One model at one resolution. Times and bytes are of one image, with the backward pass."""

    model: str
    side: int  # pixels
    batch: int
    step_s: float
    of_matmul: float  # share of the rate of matrix products
    step_bytes: float  # temporaries of the training step
    layer_s: float  # of the family's layer; nan if it names none
    layer_bytes: float
    device: str  # that it was measured on

    @property
    def pixels(self) -> int:
        return self.side**2


def measure(
    configs: Mapping[str, ConfigDict], sides: Sequence[int], file: Path, say: steps.Say
) -> list[Point]:
    """Measures each model at each side on this machine, with noise, and adds a row to the CSV
    `file` for each. What already stands there of this device is not measured again.

    The batch shrinks as the images grow, so that it has the pixels of the config's own batch. Where
    it takes too much memory, it is halved.
    """
    device = jax.devices()[0].device_kind
    points = [point for point in read(file) if point.device == device]
    have = {(point.model, point.side) for point in points}
    for name, config in configs.items():
        for side in sides:
            if (name, side) in have:
                continue
            points.append(_point(name, config, side, say))
            say(f"{name} at {side} x {side} pixels: {1 / points[-1].step_s:,.1f} images/s")
            write_text(file, pages.as_csv([NAMES, *map(dataclasses.astuple, points)]))
    return points


NAMES = [field.name for field in dataclasses.fields(Point)]


def read(file: Path) -> list[Point]:
    """The rows of a CSV; none if there is no file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as rows:
        return [
            Point(row["model"], int(row["side"]), int(row["batch"]), float(row["step_s"]),
                  float(row["of_matmul"]), float(row["step_bytes"]), float(row["layer_s"]),
                  float(row["layer_bytes"]), row["device"])
            for row in csv.DictReader(rows)
        ]  # fmt: skip


def _point(name: str, config: ConfigDict, side: int, say: steps.Say) -> Point:
    own, shards = config.model.image_size or side, jax.device_count()
    own = own if isinstance(own, int) else max(own)
    batch = max(1, config.batch_size * own**2 // side**2 // shards) * shards
    changed = copy.deepcopy(config)
    changed.preflight = False  # a batch that does not fit is halved
    changed.model.image_size, changed.batch_size = side, batch
    run = run_of(changed, (), data=known)
    row, *_ = steps.measure(
        run, "step", say=lambda _: None, peers={}, real=False, rounds=ROUNDS, count=1
    )
    images = row["batch_size"]
    layer_s, layer_bytes = layer(run.model, images // shards or 1)
    return Point(
        name, side, images, row["median_s"] / images, row["of_matmul"],
        row["temporary_bytes"] * shards / images, layer_s, layer_bytes,
        jax.devices()[0].device_kind,
    )  # fmt: skip


def layer(model: Model, batch: int) -> tuple[float, float]:
    """Seconds and bytes of temporaries of the gradient of the family's layer, for one image."""
    if (make := model.family.layer) is None:
        return float("nan"), float("nan")
    module, shape = make(model.config, ParamKeys(jax.random.key(0)))
    graph, params = nnx.split(module, nnx.Param)
    x = jnp.asarray(
        np.random.default_rng(0).standard_normal((batch, *shape)), jnp.dtype(model.config.dtype)
    )

    def total(params: Any, x: jax.Array) -> jax.Array:
        out = nnx.merge(graph, params)(x)
        return jnp.square(out[0] if isinstance(out, tuple) else out).sum(dtype=jnp.float32)

    gradient: Any = jax.jit(jax.grad(total, (0, 1))).lower(params, x).compile()
    side = in_a_row(lambda: gradient(params, x), jax.block_until_ready, 1)
    side()  # the first may choose algorithms
    seconds = float(np.median([side() for _ in range(ROUNDS)]))
    return seconds / batch, gradient.memory_analysis().temp_size_in_bytes / batch


def exponent(points: Iterable[Point], what: str) -> float:
    """The slope of log(`what`) over log(pixels), by least squares; nan with fewer than two."""
    pairs = [(point.pixels, getattr(point, what)) for point in points]
    if len(pairs) < 2 or not all(value > 0 for _, value in pairs):
        return float("nan")
    x, y = np.log(np.array(pairs, float)).T
    return float(np.polyfit(x, y, 1)[0])


def parts(points: Sequence[Point]) -> list[str]:
    """The parts of a page: speeds, shares of matrix products and bytes at each side, exponents.
    None if nothing was measured."""
    if not points:
        return []
    models = {p.model: [q for q in points if q.model == p.model] for p in points}
    sides = sorted({point.side for point in points})
    by = {(point.model, point.side): point for point in points}

    def at(name: str, side: int, text: str, value: Any) -> str:
        return text.format(value(by[name, side])) if (name, side) in by else ""

    made = [
        pages.heading("Seconds of training for one image, against pixels"),
        pages.curves({m: [(p.pixels, p.step_s) for p in own] for m, own in models.items()},
                     "pixels of an image", log=True),
    ]  # fmt: skip
    for title, text, value in (
        ("Images a second in training", "{:,.1f}", lambda p: 1 / p.step_s),
        ("Share of the rate of matrix products", "{:.1%}", lambda p: p.of_matmul),
        ("MiB of temporaries for one image", "{:,.2f}", lambda p: p.step_bytes / 2**20),
        ("Milliseconds of the layer for one image", "{:,.3f}", lambda p: p.layer_s * 1e3),
    ):
        rows = [[name, *(at(name, side, text, value) for side in sides)] for name in models]
        made += [
            pages.heading(title),
            pages.table([["model", *(f"{side} x {side}" for side in sides)], *rows]),
        ]
    fitted = [
        [name, *(f"{exponent(own, what):.2f}" for what in FITTED)] for name, own in models.items()
    ]
    return [
        *made, pages.heading("Exponents: N is the number of pixels"),
        pages.table([["model", *FITTED.values()], *fitted]),
        pages.paragraph(
            "Cost grows as N to the exponent, fitted to all sides by least squares of the "
            "logarithms. The layer is the one that sets the family apart. Its time includes the "
            f"backward pass. Measured on {points[0].device}."
        ),
    ]  # fmt: skip


FITTED = {
    "step_s": "time of a step", "step_bytes": "memory of a step", "layer_s": "time of the layer",
    "layer_bytes": "memory of the layer",
}  # fmt: skip
