"""What every benchmark here shares: alternating timing, what can honestly be said of the times,
the table and the JSON.

A side is a function that does its work once and returns the seconds it took (`timed` makes one of
a function that blocks until it is done). Sides are measured in turns, in an order that rotates, so
that whatever else the machine does falls on all of them alike. Times are summarised by medians and
quartiles. A ratio is a speed-up, the other side's time over ours, taken within each round; its
median is reported, with a 95% interval by bootstrap over the rounds.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Side = Callable[[], float]
Row = dict[str, Any]

LOAD = os.getloadavg()[0]  # of the machine before this run
REST = 0.01  # seconds between two sides, for the threads of the one before to go to sleep
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "tensorflow", "pillow",
    "simplejpeg", "opencv-python-headless", "grain",
)  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; `description` is its docstring."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="tiny sizes and few rounds")
    made.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    made.add_argument("--rounds", type=int, help="repetitions of each side")
    return made


def timed(work: Callable[[], Any]) -> Side:
    """A side of a function that returns when its work is done."""

    def side() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return side


def alternate(
    sides: Mapping[str, Side], rounds: int, *, warmup: int = 2, rest: float = REST
) -> dict[str, np.ndarray]:
    """Seconds of every side in every round; element r of all of them was measured in round r.

    Each round runs each side once, beginning one side later than the round before. The first
    `warmup` rounds are left out.
    """
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            seconds = sides[name]()
            if turn >= warmup:
                times[name].append(seconds)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def summary(seconds: np.ndarray) -> Row:
    """Median and quartiles, in seconds, and the number of rounds."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"median_s": median, "q1_s": low, "q3_s": high, "rounds": len(seconds)}


def speed_up(
    ours: np.ndarray, theirs: np.ndarray, *, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """How many times faster we are, and the ends of its 95% interval.

    The median over rounds of theirs / ours (both of one round, so that a slow spell of the machine
    cancels), and percentiles of that median over rounds drawn anew with replacement.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"sides of one run, not {len(ours)} and {len(theirs)} rounds")
    ratios = theirs / ours
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def compare(case: str, times: Mapping[str, np.ndarray], ours: str) -> list[Row]:
    """A row for each side; those of the others hold our speed-up over them."""
    rows = []
    for side, seconds in times.items():
        row: Row = {"case": case, "side": side, **summary(seconds)}
        if side != ours:
            row["ratio"], row["ratio_low"], row["ratio_high"] = speed_up(times[ours], seconds)
        rows.append(row)
    return rows


def versions() -> dict[str, str | None]:
    """Of Python and of what is measured; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, JAX's devices, and the load before."""
    import jax

    devices = jax.devices()
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "load_before": round(LOAD, 2),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# Columns of the table: heading, and the text of a row's cell.
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("case", lambda r: r["case"]),
    ("side", lambda r: r["side"]),
    ("median", lambda r: f"{r['median_s'] * 1e3:.3f} ms"),
    ("quartiles", lambda r: f"{r['q1_s'] * 1e3:.3f} .. {r['q3_s'] * 1e3:.3f}"),
    ("speed-up of ours [95%]",
     lambda r: f"{r['ratio']:.3f} [{r['ratio_low']:.3f}, {r['ratio_high']:.3f}]"),
    ("until done", lambda r: f"{r['until_done_s'] * 1e3:.3f} ms"),
    ("images/s", lambda r: f"{r['images_per_second']:.1f}"),
    ("trials", lambda r: f"{r['trials']}"),
    ("steps", lambda r: f"{r['steps']:,}"),
    ("best", lambda r: f"{r['best']:.2%}"),
    ("held", lambda r: f"{r['held_mb']:.0f} MB"),
    ("MFU", lambda r: f"{r['mfu']:.1%}"),
)  # fmt: skip


def table(rows: Iterable[Row]) -> str:
    """Rows in aligned columns. A figure that a row lacks is left empty; a column of such, out."""
    columns = []
    for heading, text in COLUMNS:
        cells = [_cell(text, row) for row in rows]
        if any(cells):
            width = max(map(len, [heading, *cells]))
            columns.append([cell.ljust(width) for cell in [heading, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _cell(text: Callable[[Row], str], row: Row) -> str:
    try:
        return text(row)
    except KeyError:
        return ""


def report(name: str, rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """Prints the table and writes the JSON: `name`, `rows`, `ratios`, `versions`, `hardware`."""
    figures = {
        "name": name,
        "rows": rows,
        "ratios": {f"{r['case']} / {r['side']}": r["ratio"] for r in rows if "ratio" in r},
        "versions": versions(),
        "hardware": hardware(),
    }
    print(table(rows))
    if cores() / 2 < LOAD:
        print(f"the machine was busy when this began: load {LOAD:.1f} on {cores()} cores")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return figures
