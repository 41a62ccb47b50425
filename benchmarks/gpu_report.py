"""Gathers what gpu.sh measured into one JSON and one Markdown file.

    python benchmarks/gpu_report.py PIECES OUT.json OUT.md "PLATFORM DEVICE"

PIECES is a folder with one file for each run: `NAME.json` of a benchmark, of a training (its
`result.json`) or of an evaluation, or `NAME.txt`, the end of a log. It is run again after each
piece, so that a run that is cut short leaves its results. If the platform is no GPU, both files
say so.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vit_jax.benching.report import table

SHOWN = ("accuracy", "top5_accuracy", "loss", "steps", "train_seconds", "images_per_second")


def main(pieces: str, to_json: str, to_markdown: str, device: str) -> None:
    """Reads every piece and writes both files."""
    files = sorted(Path(pieces).glob("*.json"), key=lambda file: file.stat().st_mtime)
    texts = sorted(Path(pieces).glob("*.txt"))
    runs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    logs = {file.stem: file.read_text(encoding="utf-8").strip() for file in texts}
    gpu = device.startswith("gpu ")
    report = {"device": device, "gpu": gpu, "runs": runs, "logs": logs}
    Path(to_json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    title = f"# {Path(to_markdown).stem}\n\n"
    title += "" if gpu else f"No GPU was had: these are figures of {device}.\n\n"
    Path(to_markdown).write_text(title + markdown(runs, logs), encoding="utf-8")


def markdown(runs: dict[str, Any], logs: dict[str, str]) -> str:
    """Versions and hardware once, then a section for each run and each log."""
    lines = []
    benchmarks = [figures for figures in runs.values() if "rows" in figures]
    for what in ("hardware", "versions") if benchmarks else ():
        pairs = (f"{key} {value}" for key, value in benchmarks[-1][what].items() if value)
        lines += [f"{what.capitalize()}: {', '.join(pairs)}.", ""]
    sections = {
        name: table(figures["rows"]) if "rows" in figures
        else "\n".join(f"{key} {figures[key]}" for key in SHOWN if key in figures)
        for name, figures in runs.items()
    }  # fmt: skip
    for name, text in [*sections.items(), *logs.items()]:
        lines += [f"## {name}", "", "```", text, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
