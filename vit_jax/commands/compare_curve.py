"""Finds where a run leaves a reference, by the loss and the evaluations of each step.

vit compare-curve runs/photos docs/results/from-scratch-64.jsonl
vit compare-curve runs/b16 reference/metrics.jsonl --loss=0.03 --accuracy=0.01

RUN and REFERENCE are work folders, or files of rows like metrics.jsonl. Only steps that both have
are compared. The loss is averaged over the last five of these rows first. The exit code is 1 if the
run leaves the reference, else 0.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from vit_jax.commands.arguments import Options
from vit_jax.errors import UserError, printable
from vit_jax.records import Row, read_rows, reason

WINDOW = 5  # rows of the loss that are averaged, because it is noisy
Curve = dict[int, float]  # step -> value


OPTIONS: Options = {
    "run": dict(metavar="RUN"),
    "reference": dict(metavar="REFERENCE"),
    "--loss": dict(type=float, default=0.05,
                   help="allowed difference of a loss, as a share of the reference's (0.05)"),
    "--accuracy": dict(type=float, default=0.02,
                       help="allowed difference of an accuracy (0.02)"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    ours, theirs = _curves(options.run), _curves(options.reference)
    both = {key: sorted(ours[key].keys() & theirs[key].keys()) for key in ours if key in theirs}
    if not any(both.values()):
        raise UserError(f"{options.run} and {options.reference} have no metric at the same step")
    for key in sorted(key for key, steps in both.items() if not steps):
        print(f"{printable(key):32} not compared: no step in common")
    follows = [
        _follows(key, ours[key], theirs[key], steps,
                 options.loss if key.endswith("loss") else options.accuracy)
        for key, steps in both.items() if steps
    ]  # fmt: skip
    return int(not all(follows))


def _follows(key: str, ours: Curve, theirs: Curve, steps: list[int], allowed: float) -> bool:
    """Prints a line about a metric, and returns whether the run follows the reference in it."""
    window = WINDOW if key == "loss" else 1
    run, reference = (_smooth(curve, steps, window) for curve in (ours, theirs))
    unit = np.maximum(abs(reference), 1e-12) if key.endswith("loss") else 1.0
    with np.errstate(invalid="ignore"):  # the difference of two infinite losses
        gaps = abs(run - reference) / unit
    outside = np.flatnonzero(~(gaps <= allowed))  # also where a gap is NaN
    widest = int(np.argmax(gaps))
    verdict = f"leaves the reference at step {steps[outside[0]]}" if len(outside) else "within"
    print(
        f"{printable(key):32} {len(steps):5} rows to step {steps[-1]:,}: {verdict}; furthest at "
        f"step {steps[widest]:,} ({run[widest]:.4f}, reference {reference[widest]:.4f}, "
        f"allowed {allowed:g})"
    )
    return not len(outside)


def _smooth(curve: Curve, steps: list[int], window: int) -> np.ndarray:
    """The mean of the last `window` values at each step."""
    values = [curve[step] for step in steps]
    return np.array([np.mean(values[max(0, i - window) : i]) for i in range(1, len(steps) + 1)])


def rows_of(path: str, infinite: bool = False) -> list[Row]:
    """The rows of a work folder or file. A line about damaged rows goes to stderr. Raises UserError
    if the file cannot be read or holds no rows."""
    file = Path(path).expanduser()
    file = file / "metrics.jsonl" if file.is_dir() else file
    try:
        rows, damage = read_rows(file, infinite=infinite)
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(file)} cannot be read: {reason(error)}") from error
    if damage and not rows:
        raise UserError(f"{printable(file)} holds no rows of metrics: {damage}")
    if damage:
        print(f"vit: {damage}", file=sys.stderr)
    return rows


def _curves(path: str) -> dict[str, Curve]:
    """metric -> step -> value, for the loss, and the losses and accuracies of evaluations."""
    curves: dict[str, Curve] = {}
    for row in rows_of(path, infinite=True):  # because a loss that is NaN leaves the reference
        for key, value in row.items():
            measured = key.startswith("eval/") and ("accuracy" in key or key.endswith("/loss"))
            if key == "loss" or measured:
                curves.setdefault(key, {})[row["step"]] = float(value)
    return curves
