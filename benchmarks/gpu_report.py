"""Gathers what gpu.sh measured into one JSON and one Markdown file.

    python benchmarks/gpu_report.py PIECES OUT.json OUT.md

PIECES is a folder with a file a run: `NAME.json` of a benchmark, `NAME.json` of a training (its
`result.json`), or `NAME.txt`, the end of a log. Run again after each piece, so that a run that is
cut short leaves what it had.
"""

import json
import sys
from pathlib import Path
from typing import Any

from harness import table

TRAINING = ("accuracy", "steps", "train_seconds", "images_per_second")


def main(pieces: Path, to_json: Path, to_markdown: Path) -> None:
    """Reads every piece and writes both files."""
    found: dict[str, Any] = {}
    for file in sorted(pieces.glob("*.json"), key=lambda file: file.stat().st_mtime):
        found[file.stem] = json.loads(file.read_text())
    logs = {file.stem: file.read_text().strip() for file in sorted(pieces.glob("*.txt"))}
    to_json.write_text(json.dumps({"runs": found, "logs": logs}, indent=1) + "\n")
    to_markdown.write_text(markdown(to_markdown.stem, found, logs))


def markdown(title: str, found: dict[str, Any], logs: dict[str, str]) -> str:
    """Versions and hardware once, then a section a run."""
    lines = [f"# {title}", ""]
    benchmarks = [figures for figures in found.values() if "rows" in figures]
    for what in ("hardware", "versions") if benchmarks else ():
        pairs = (f"{key} {value}" for key, value in benchmarks[-1][what].items() if value)
        lines += [f"{what.capitalize()}: {', '.join(pairs)}.", ""]
    for name, figures in found.items():
        shown = (
            table(figures["rows"])
            if "rows" in figures
            else "\n".join(f"{key} {figures[key]}" for key in TRAINING if key in figures)
        )
        lines += [f"## {name}", "", "```", shown, "```", ""]
    for name, text in logs.items():
        lines += [f"## {name}", "", "```", text, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
