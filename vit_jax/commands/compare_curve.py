"""Says where a run leaves a reference: its loss and its evaluations, step by step.

vit compare-curve runs/digits docs/results/digits.jsonl
vit compare-curve runs/b16 reference/metrics.jsonl --loss=0.03 --accuracy=0.01

RUN and REFERENCE are work folders or files of rows as metrics.jsonl. Losses are averaged over the
last five rows before they are compared. Exit code 1 where the run leaves the reference, else 0.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError

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
    for key, steps in shared.items():
        loss = key.endswith("loss")
        gaps = {
            step: (ours[key][step] - theirs[key][step]) / (abs(theirs[key][step]) if loss else 1.0)
            for step in steps
        }
        allowed = options.loss if loss else options.accuracy
        away = [step for step in steps if not abs(gaps[step]) <= allowed]
        widest = max(steps, key=lambda step: abs(gaps[step]))
        told = f"leaves the reference at step {away[0]}" if away else "within"
        left = left or bool(away)
        print(
            f"{key:32} {len(steps):5} rows to step {steps[-1]:,}: {told}; furthest at step "
            f"{widest:,} ({ours[key][widest]:.4f}, reference {theirs[key][widest]:.4f}, allowed "
            f"{allowed:g})"
        )
    return int(left)


def _curves(path: str) -> dict[str, dict[int, float]]:
    """metric -> step -> value, of loss, losses of evaluations and accuracies."""
    file = Path(path).expanduser()
    file = file / "metrics.jsonl" if file.is_dir() else file
    try:
        rows: list[Any] = [json.loads(line) for line in file.read_text().splitlines()]
        steps = [int(row["step"]) for row in rows]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no rows of metrics: {error}") from error
    curves: dict[str, dict[int, float]] = {}
    recent: list[float] = []
    for step, row in zip(steps, rows, strict=True):
        for key, value in row.items():
            if key == "loss":
                recent = [*recent[1 - WINDOW :], float(value)]
                curves.setdefault(key, {})[step] = sum(recent) / len(recent)
            elif key.startswith("eval/") and ("accuracy" in key or key.endswith("/loss")):
                curves.setdefault(key, {})[step] = float(value)
    return curves
