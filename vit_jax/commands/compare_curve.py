"""Says where a run leaves a reference: its loss and its evaluations, step by step.

vit compare-curve runs/photos docs/results/from-scratch-64.jsonl
vit compare-curve runs/b16 reference/metrics.jsonl --loss=0.03 --accuracy=0.01

RUN and REFERENCE are work folders or files of rows as metrics.jsonl. The loss is averaged over
the last five rows that both have before it is compared. Exit code 1 where the run leaves the
reference, else 0.
"""

import argparse
import sys
from pathlib import Path

from vit_jax.errors import UserError, printable
from vit_jax.records import Row, read_rows, reason

WINDOW = 5  # rows of loss that are averaged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument(
        "--loss", type=float, default=0.05, help="allowed, of the reference's (0.05)"
    )
    parser.add_argument("--accuracy", type=float, default=0.02, help="allowed, absolute (0.02)")


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    ours, theirs = _curves(options.run), _curves(options.reference)
    shared = {key: sorted(ours[key].keys() & theirs[key].keys()) for key in ours if key in theirs}
    shared = {key: steps for key, steps in shared.items() if steps}
    if not shared:
        raise UserError(f"{options.run} and {options.reference} have no metric at the same step")
    left = False
    for key in sorted((ours.keys() & theirs.keys()) - shared.keys()):
        print(f"{printable(key):32} not compared: no step in common")
    for key, steps in shared.items():
        loss = key.endswith("loss")
        if key == "loss":  # noisy: the mean of the last few rows that both have
            ours[key], theirs[key] = _smooth(ours[key], steps), _smooth(theirs[key], steps)
        gaps = {}
        for step in steps:
            of = max(abs(theirs[key][step]), 1e-12) if loss else 1.0
            gaps[step] = (ours[key][step] - theirs[key][step]) / of
        allowed = options.loss if loss else options.accuracy
        away = [step for step in steps if not abs(gaps[step]) <= allowed]
        widest = max(steps, key=lambda step: abs(gaps[step]))
        told = f"leaves the reference at step {away[0]}" if away else "within"
        left = left or bool(away)
        print(
            f"{printable(key):32} {len(steps):5} rows to step {steps[-1]:,}: {told}; furthest at "
            f"step {widest:,} ({ours[key][widest]:.4f}, reference {theirs[key][widest]:.4f}, "
            f"allowed {allowed:g})"
        )
    return int(left)


def _smooth(curve: dict[int, float], steps: list[int]) -> dict[int, float]:
    """Means over the last `WINDOW` of the steps."""
    values = [curve[step] for step in steps]
    recent = [values[max(0, end - WINDOW) : end] for end in range(1, len(steps) + 1)]
    return {step: sum(few) / len(few) for step, few in zip(steps, recent, strict=True)}


def rows_of(path: str, infinite: bool = False) -> list[Row]:
    """The rows of a work folder or file; what is damaged in it is said. Raises UserError where it
    cannot be read, or holds something else than rows."""
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


def _curves(path: str) -> dict[str, dict[int, float]]:
    """metric -> step -> value, of loss, losses of evaluations and accuracies."""
    curves: dict[str, dict[int, float]] = {}
    for row in rows_of(path, infinite=True):  # a loss that is NaN leaves the reference
        for key, value in row.items():
            told = key.startswith("eval/") and ("accuracy" in key or key.endswith("/loss"))
            if key == "loss" or told:
                curves.setdefault(key, {})[row["step"]] = float(value)
    return curves
