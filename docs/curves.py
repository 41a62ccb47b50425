"""Draws training loss and held-out accuracy of runs from their `metrics.jsonl`.

    python docs/curves.py OUT.png LABEL=FILE [LABEL=FILE ...] [--over seconds|epoch]
        [--metric eval/val/accuracy]

The pictures of docs/results.md are made with it; needs matplotlib (`pip install .[plots]`).
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(path: str) -> list[dict]:
    """The rows, each evaluation given the epoch and seconds of its step."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if "loss" in row][-1]
    per_step = {key: last[key] / last["step"] for key in ("epoch", "seconds")}
    return [{key: x * row["step"] for key, x in per_step.items()} | row for row in rows]


def curve(rows: list[dict], over: str, unit: float, key: str, scale: float) -> tuple[list, list]:
    """x and y of one line."""
    return [row[over] / unit for row in rows], [scale * row[key] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("runs", nargs="+", metavar="LABEL=FILE")
    parser.add_argument("--over", choices=("seconds", "epoch"), default="epoch")
    parser.add_argument("--metric", default="eval/val/accuracy", help="of the right half, a share")
    options = parser.parse_args()

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    unit, name = (60, "minutes of training") if options.over == "seconds" else (1, "epoch")
    for run in options.runs:
        label, path = run.split("=", 1)
        rows = read(path)
        trained = [row for row in rows if "loss" in row]
        measured = [row for row in rows if options.metric in row]
        left.plot(*curve(trained, options.over, unit, "loss", 1), label=label, linewidth=1)
        right.plot(
            *curve(measured, options.over, unit, options.metric, 100), label=label, marker="."
        )
    for axes, title in ((left, "training loss"), (right, f"{options.metric}, %")):
        axes.set(title=title, xlabel=name)
        axes.grid(alpha=0.3)
    right.legend()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
