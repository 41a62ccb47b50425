"""What the files of runs say of them, without JAX and while they run: status, last step, best
metric, goodput. A file that is missing or half written is told of, and the rest is told all the
same."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError

MARKS = {"metrics.jsonl", "result.json", "checkpoints", ".lock"}  # of a work folder
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that hold the last row


def find(folder: Path) -> list[Path]:
    """The work folders in a folder, or it itself. Raises UserError where there is no folder."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: vit runs takes one that holds runs, such as runs")
    found = []
    for path, folders, files in os.walk(folder):
        if MARKS & {*folders, *files}:
            found.append(Path(path))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def describe(run: Path) -> dict[str, Any]:
    """One row: `status` (done, running, stopped: its checkpoints are there, or begun: none is),
    `step` of `total_steps`, `metric` and its `best` value, `goodput` (the share of its time in
    steps that count), `problems` with its files."""
    problems: list[str] = []
    config = _json(run / "config.json", problems)
    result = _json(run / "result.json", problems) if (run / "result.json").exists() else {}
    steps, total = _checkpoints(run), config.get("total_steps")
    last, evaluations = _rows(run / "metrics.jsonl")
    metric = f"eval/{config.get('data.eval.split') or 'val'}/accuracy"
    values = [row[metric] for row in evaluations if metric in row]
    step = max([*steps[-1:], last.get("step", 0), result.get("steps", 0)])
    done = bool(result) and (total is None or result.get("steps", 0) >= total)
    seconds = result.get("goodput", {}) if done else _ledger(run, steps, problems)
    whole = sum(seconds.values())
    status = "running" if locked(run) else "done" if done else "stopped" if steps else "begun"
    return {
        "run": str(run), "status": status, "step": step, "total_steps": total,
        "metric": metric if values else None, "best": max(values, default=None),
        "goodput": round(seconds.get("step", 0.0) / whole, 4) if whole else None,
        "problems": problems,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    """Lines for a person."""
    cells = [("run", "status", "step", "best", "goodput", "")]
    for row in rows:
        run, best = Path(row["run"]), row["best"]
        of = row["total_steps"]
        cells.append((
            str(run.relative_to(folder)) if run != folder else run.name, row["status"],
            f"{row['step']}/{'?' if of is None else of}",
            "–" if best is None else f"{row['metric'].split('/', 1)[1]} {best:.2%}",
            "–" if row["goodput"] is None else f"{row['goodput']:.1%}", "; ".join(row["problems"]),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()


def _json(file: Path, problems: list[str]) -> dict[str, Any]:
    """What a file holds; nothing, and a problem more, where that cannot be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"no {file.name}")
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read ({error})")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{file.name} is no object")
    return {}


def _checkpoints(run: Path) -> list[int]:
    folder = run / "checkpoints"
    with contextlib.suppress(OSError):
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
    return []


def _rows(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the last row, all rows of evaluations). A torn last line is one that is being written."""
    last: dict[str, Any] = {}
    evaluations = []
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        for at_end, lines in ((False, data.split(b"\n")), (True, data[-TAIL:].split(b"\n"))):
            for line in lines:
                if at_end or b'"eval/' in line:
                    with contextlib.suppress(ValueError):
                        row = json.loads(line)
                        if isinstance(row, dict) and at_end:
                            last = row
                        elif isinstance(row, dict):
                            evaluations.append(row)
    return last, evaluations


def _ledger(run: Path, steps: list[int], problems: list[str]) -> dict[str, float]:
    """Seconds of a run by part, up to its last checkpoint."""
    if not steps:
        return {}
    return _json(run / "checkpoints" / str(steps[-1]) / "about" / "metadata", problems).get(
        "goodput", {}
    )


def locked(run: Path) -> bool:
    """Whether a living run holds the folder, also one of another host where the file system
    tells. The lock is let go at once; a run that starts tries more than once."""
    try:
        with (run / ".lock").open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
