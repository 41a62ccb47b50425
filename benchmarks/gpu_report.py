"""Gathers what gpu.sh measured into one JSON and one Markdown file.

    python benchmarks/gpu_report.py PIECES OUT.json OUT.md "PLATFORM DEVICE"

PIECES is a folder with a file a run: `NAME.json` of a benchmark, of a training (its `result.json`)
or of an evaluation, or `NAME.txt`, the end of a log. Run again after each piece, so that a run that
is cut short leaves what it had. Where the platform is no GPU, both files say so.
"""

import json
import sys
from pathlib import Path
from typing import Any

from harness import table

SHOWN = ("accuracy", "top5_accuracy", "loss", "steps", "train_seconds", "images_per_second")


def main(pieces: str, to_json: str, to_markdown: str, device: str) -> None:
    """Reads every piece and writes both files."""
    found: dict[str, Any] = {}
    files = Path(pieces).glob("*.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        found[file.stem] = json.loads(file.read_text(encoding="utf-8"))
    logs = {
        file.stem: file.read_text(encoding="utf-8").strip()
        for file in sorted(Path(pieces).glob("*.txt"))
    }
    gpu = device.startswith("gpu ")
    whole = {"device": device, "gpu": gpu, "runs": found, "logs": logs}
    Path(to_json).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    Path(to_markdown).write_text(
        markdown(Path(to_markdown).stem, device, gpu, found, logs), encoding="utf-8"
    )


def markdown(
    title: str, device: str, gpu: bool, found: dict[str, Any], logs: dict[str, str]
) -> str:
    """Versions and hardware once, then a section a run."""
    lines = [f"# {title}", ""]
    if not gpu:
        lines += [f"No GPU was had: these are figures of {device}.", ""]
    benchmarks = [figures for figures in found.values() if "rows" in figures]
    for what in ("hardware", "versions") if benchmarks else ():
        pairs = (f"{key} {value}" for key, value in benchmarks[-1][what].items() if value)
        lines += [f"{what.capitalize()}: {', '.join(pairs)}.", ""]
    for name, figures in found.items():
        shown = (
            table(figures["rows"])
            if "rows" in figures
            else "\n".join(f"{key} {figures[key]}" for key in SHOWN if key in figures)
        )
        lines += [f"## {name}", "", "```", shown, "```", ""]
    for name, text in logs.items():
        lines += [f"## {name}", "", "```", text, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
