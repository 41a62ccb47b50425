"""Status, last step, best metric and goodput of runs, read from their files without JAX, also while
they run. A file that is missing or half written is reported, and the rest is read all the same."""

import fcntl
import os
import stat
from pathlib import Path
from typing import Any

from vit_jax import ranking, records
from vit_jax.checkpoint import steps
from vit_jax.errors import UserError
from vit_jax.pages import aligned
from vit_jax.records import COUNT, OBJECT_OF_NUMBERS, Kinds, reason

MARKS = {"metrics.jsonl", "result.json", "checkpoints", ".lock"}  # of a work folder
OF_CONFIG: Kinds = {
    "total_steps": COUNT, "data.eval.split": records.TEXT_OR_NULL,
    "best": (ranking.WANTED, lambda value: value is None or ranking.fits(value)),
}  # fmt: skip
OF_RESULT: Kinds = {"steps": COUNT, "goodput": OBJECT_OF_NUMBERS, "ended": records.TEXT}
OF_CHECKPOINT: Kinds = {"goodput": OBJECT_OF_NUMBERS}


def find(folder: Path) -> list[Path]:
    """The work folders below a folder, or the folder itself. Raises UserError: there is none."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: vit runs takes one that holds runs, such as runs")
    runs = []
    for path, folders, files in os.walk(folder):
        if MARKS & {*folders, *files}:
            runs.append(Path(path))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return runs


def describe(run: Path) -> dict[str, Any]:
    """One row of the table: `status` (done, running, stopped: it has a checkpoint, or begun: it has
    none), `step` of `total_steps`, `metric` and its `best` value, `goodput` (the share of its time
    that steps took), and `problems` with its files."""
    problems: list[str] = []
    config = _json(run / "config.json", problems, OF_CONFIG)
    there = (run / "result.json").exists()
    result = _json(run / "result.json", problems, OF_RESULT) if there else {}
    saved, total = steps.steps(run / "checkpoints"), config.get("total_steps")
    last, evaluations = _rows(run / "metrics.jsonl", problems)
    own, best_of = ranking.ranked_by(config.get("best") or ranking.OLDEST)
    metric = f"eval/{config.get('data.eval.split') or 'val'}/{own}"
    values = [row[metric] for row in evaluations if metric in row]
    step = max([*saved[-1:], last.get("step", 0), result.get("steps", 0)])
    # A run that `stop_after` ended has fewer steps, unless it was continued since.
    whole_length = total if "ended" not in result else max(saved, default=0)
    done = bool(result) and result.get("steps", 0) >= (whole_length or 0)
    seconds = result.get("goodput", {}) if done else _ledger(run, saved, problems)
    whole = sum(seconds.values())
    strays = steps.strays(run / "checkpoints").items()
    problems += [f"checkpoints/{path.name} {what}" for path, what in strays]
    status = "running" if locked(run) else "done" if done else "stopped" if saved else "begun"
    return {
        "run": str(run), "status": status, "step": step, "total_steps": total,
        "metric": metric if values else None, "best": best_of(values, default=None),
        "goodput": round(seconds.get("step", 0.0) / whole, 4) if whole else None,
        "problems": problems,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], folder: Path) -> str:
    """The rows as text in aligned columns."""
    cells = [("run", "status", "step", "best", "goodput", "")]
    for row in rows:
        run, best = Path(row["run"]), row["best"]
        of = row["total_steps"]
        cells.append((
            str(run.relative_to(folder)) if run != folder else run.name, row["status"],
            f"{row['step']}/{'?' if of is None else of}",
            "–" if best is None else ranking.in_words(row["metric"].split("/", 1)[1], best),
            "–" if row["goodput"] is None else f"{row['goodput']:.1%}", "; ".join(row["problems"]),
        ))  # fmt: skip
    return aligned(cells)


def _json(file: Path, problems: list[str], may: Kinds = records.NOTHING) -> dict[str, Any]:
    """The content of a file. If it cannot be read, nothing, and one more problem."""
    try:
        return records.load(file, may=may)
    except FileNotFoundError:
        problems.append(f"no {file.name}")
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read ({reason(error)})")
    return {}


def _rows(file: Path, problems: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(The last row, all rows of evaluations.)"""
    try:
        rows, damage = records.read_rows(file, having=b'"eval/')
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        problems.append(f"{file.name} cannot be read ({reason(error)})")
        return {}, []
    problems += [damage.replace(str(file), file.name)] if damage else []
    return rows[-1] if rows else {}, rows


def _ledger(run: Path, saved: list[int], problems: list[str]) -> dict[str, float]:
    """Seconds of a run by part, up to its last checkpoint."""
    if not saved:
        return {}
    file = run / "checkpoints" / str(saved[-1]) / "about" / "metadata"
    return _json(file, problems, OF_CHECKPOINT).get("goodput", {})


def locked(run: Path) -> bool:
    """Whether a living run holds the folder, also one of another host if the file system supports
    that. The lock is released at once, and a run that starts tries more than once."""
    try:
        with open(
            run / ".lock", "rb", 0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as lock:
            if stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock, or none that can be used
        pass
    return False
