"""Models compared at equal compute: the rows of a study, how much compute one model needs where
another reaches the same (arXiv 2010.11929, figure 5), and the page.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from vit_jax import pages
from vit_jax.files import write_text
from vit_jax.sweeping.study import IDENTITY, finished

if TYPE_CHECKING:
    from optuna import Study

DRAWS = 2_000  # resamples of the bootstrap
COUNTED = ("/examples", "/damaged_images")  # what evaluations say beside their metrics
LEVELS = 33  # values at which two curves are compared


@dataclasses.dataclass(frozen=True)
class Size:
    """What a model costs."""

    params: int
    macs: int  # of one image


@dataclasses.dataclass(frozen=True)
class Row:
    """One trained model. `flops` are 6 for each multiply-add of each image."""

    trial: int
    model: str
    seed: int
    params: int
    macs: int
    examples: int
    flops: float
    seconds: float
    images_per_second: float
    value: float
    # The other evaluators' metrics by name, such as eval/fewshot/accuracy_10.
    further: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def achieved(self) -> float:
        """Arithmetic per second in training."""
        return 6 * self.macs * self.images_per_second


def rows_of(study: "Study", folder: Path, sizes: Mapping[str, Size]) -> list[Row]:
    """A row for each trial that finished, in the order of the trials."""
    own = study.user_attrs[IDENTITY]["metric"].rpartition("/")[0] + "/"
    rows = []
    for trial in sorted(finished(study), key=lambda trial: trial.number):
        name, size = trial.params["model.name"], sizes[trial.params["model.name"]]
        result = json.loads((folder / f"{trial.number:04d}" / "result.json").read_text("utf-8"))
        examples = result["examples_seen"]
        rows.append(Row(
            trial.number, name, trial.params["seed"], size.params, size.macs, examples,
            6.0 * size.macs * examples, result["train_seconds"], result["images_per_second"],
            float(trial.value or 0.0),
            {key: value for key, value in result.items()
             if key.startswith("eval/") and not key.startswith(own) and not key.endswith(COUNTED)},
        ))  # fmt: skip
    return rows


# -- equal results -----------------------------------------------------------------------------

# Compute of one budget -> the values of its seeds.
Curve = Mapping[float, Sequence[float]]


def ratio(ours: Curve, theirs: Curve, sign: int = 1) -> float | None:
    """How many times our compute they need for the same value: the geometric mean over all values
    that both curves reach. None if there is no such value.

    A curve is the best mean value of its seeds at any compute up to here, and is linear in the
    logarithm of compute between two budgets. With a `sign` of -1, low values are the better ones.
    """
    curves = [_frontier(curve, sign) for curve in (ours, theirs)]
    low, high = max(values[0] for _, values in curves), min(values[-1] for _, values in curves)
    if low > high:
        return None
    at = np.linspace(low, high, LEVELS)
    our_cost, their_cost = (np.interp(at, values, cost) for cost, values in curves)
    return float(np.exp(np.mean(their_cost - our_cost)))


def _frontier(curve: Curve, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of compute, and the values reached by then, which strictly increase."""
    cost: list[float] = []
    values: list[float] = []
    for flops in sorted(curve):
        value = sign * float(np.mean(curve[flops]))
        if not values or value > values[-1]:
            cost.append(math.log(flops))
            values.append(value)
    return np.array(cost), np.array(values)


def interval(
    ours: Curve, theirs: Curve, sign: int = 1, draws: int = DRAWS
) -> tuple[float, float] | None:
    """The 95% interval of `ratio` by the bootstrap over seeds (percentiles). None with one seed, or
    if the curves of fewer than half of the resamples meet."""
    if min(len(values) for curve in (ours, theirs) for values in curve.values()) < 2:
        return None
    rng = np.random.default_rng(0)

    def drawn(curve: Curve) -> Curve:
        return {flops: rng.choice(list(v), len(v)).tolist() for flops, v in curve.items()}

    ratios = [ratio(drawn(ours), drawn(theirs), sign) for _ in range(draws)]
    met = [value for value in ratios if value is not None]
    if len(met) < draws / 2:
        return None
    low, high = np.percentile(met, (2.5, 97.5))
    return float(low), float(high)


def curves_of(rows: Sequence[Row], cost: str = "flops") -> dict[str, dict[float, list[float]]]:
    """For each model, the values of the seeds at each compute. Seconds of one budget are the mean
    over its seeds."""
    curves: dict[str, dict[float, list[float]]] = {}
    for (model, _), own in _budgets(rows).items():
        at = float(np.mean([getattr(row, cost) for row in own]))
        curves.setdefault(model, {})[at] = [row.value for row in own]
    return curves


def _budgets(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The seeds of each model and number of examples."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.examples), []).append(row)
    return groups


def ratios(rows: Sequence[Row], sign: int = 1, cost: str = "flops") -> list[list[Any]]:
    """A head, then a row for each model beside the first one."""
    curves = curves_of(rows, cost)
    reference, *others = curves
    table: list[list[Any]] = [["model", f"{cost} for the same, {reference} = 1", "95% interval"]]
    for model in others:
        times = ratio(curves[reference], curves[model], sign)
        limits = interval(curves[reference], curves[model], sign)
        table.append([
            model, "no value that both reach" if times is None else f"{times:.2f}",
            "" if limits is None else f"{limits[0]:.2f} to {limits[1]:.2f}",
        ])  # fmt: skip
    return table


# -- files --------------------------------------------------------------------------------------

HEAD = (
    "trial", "model", "seed", "params", "macs", "examples", "flops", "seconds",
    "images_per_second", "flops_per_second",
)  # fmt: skip


def write(
    study: "Study", folder: Path, config: ConfigDict | None, sizes: Mapping[str, Size],
    more: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Writes `study.csv` and `study.html`; returns their names. `more` are further parts of the
    page."""
    rows, metric = rows_of(study, folder, sizes), study.user_attrs[IDENTITY]["metric"]
    further = dict.fromkeys(key for row in rows for key in row.further)
    cells = [
        [row.trial, row.model, row.seed, row.params, row.macs, row.examples, row.flops,
         row.seconds, row.images_per_second, round(row.achieved), round(row.value, 6),
         *(row.further.get(key, "") for key in further)]
        for row in rows
    ]  # fmt: skip
    texts = {
        "study.csv": pages.as_csv([[*HEAD, metric, *further], *cells]),
        "study.html": page(study, rows, metric, more),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)


def page(study: "Study", rows: Sequence[Row], metric: str, more: Sequence[str] = ()) -> str:
    """The page: results against compute, seconds and parameters, ratios, speeds, the table."""
    trials = study.get_trials(deepcopy=False)
    parts = [pages.paragraph(
        f"{len(rows)} of {len(trials)} trials finished. Compute is 6 FLOPs for each multiply-add "
        "of each image. A point is the mean over the seeds of one model and budget."
    )]  # fmt: skip
    if not rows:
        return pages.page("Architectures compared", *parts)
    sign = 1 if study.direction.name == "MAXIMIZE" else -1
    for cost, words in (("flops", "training FLOPs"), ("seconds", "seconds of training")):
        parts += _chart(rows, metric, cost, words)
        if len({row.model for row in rows}) > 1:
            parts += [
                pages.heading(f"{words[0].upper()}{words[1:]} for the same {metric}"),
                pages.table(ratios(rows, sign, cost)),
            ]
    parts.append(pages.paragraph(
        "A ratio is the geometric mean over all values that both models reach, between budgets on "
        "a line in the logarithm of compute. Its interval is a bootstrap over the seeds."
    ))  # fmt: skip
    parts += _chart(rows, metric, "params", "parameters")
    for key in dict.fromkeys(key for row in rows for key in row.further):
        own = [row for row in rows if key in row.further]
        own = [dataclasses.replace(row, value=row.further[key]) for row in own]
        parts += _chart(own, key, "flops", "training FLOPs")
    parts += [pages.heading("Sizes and speeds"), pages.table(speeds(rows, metric, sign))]
    cells = [
        [pages.Link(row.trial, f"{row.trial:04d}/"), row.model, row.seed, f"{row.examples:,}",
         f"{row.flops:.3g}", f"{row.seconds:.1f}", f"{row.value:.4f}"]
        for row in rows
    ]  # fmt: skip
    head = ["trial", "model", "seed", "examples", "FLOPs", "seconds", metric]
    parts += [pages.heading("All trials"), pages.table([head, *cells])]
    return pages.page("Architectures compared", *parts, *more)


def _chart(rows: Sequence[Row], metric: str, cost: str, words: str) -> list[str]:
    """A heading, and a line for each model through its budgets."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for (model, _), own in _budgets(rows).items():
        at, value = (float(np.mean([getattr(row, of) for row in own])) for of in (cost, "value"))
        lines.setdefault(model, []).append((at, value))
    lines = {model: sorted(points) for model, points in lines.items()}
    return [pages.heading(f"{metric} against {words}"), pages.curves(lines, words, log=True)]


def speeds(rows: Sequence[Row], metric: str, sign: int) -> list[list[Any]]:
    """A head, then for each model its size, the median of its speed, and its best value."""
    table: list[list[Any]] = [
        ["model", "parameters", "multiply-adds", "images/s", "GFLOP/s", f"best {metric}"]
    ]
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        speed = float(np.median([row.images_per_second for row in own]))
        best = sign * max(sign * row.value for row in own)
        table.append([
            model, f"{own[0].params:,}", f"{own[0].macs:,}", f"{speed:,.1f}",
            f"{6 * own[0].macs * speed / 1e9:,.1f}", f"{best:.4f}",
        ])  # fmt: skip
    return table
