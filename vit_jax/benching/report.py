"""The report of a measurement: a table, JSON (`name`, `rows`, `ratios`, `versions`, `hardware`) and
CSV; and the options that all scripts of benchmarks/ share."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vit_jax import pages
from vit_jax.benching.machine import LOAD, cores, hardware, versions
from vit_jax.benching.timing import Row
from vit_jax.files import write_json, write_text

# Columns of the table: heading -> template of a cell. Times are shown in ms, sizes in MiB.
COLUMNS = {
    "case": "{case}", "side": "{side}", "stage": "{stage}",
    "median": "{median_s:,.3f} ms", "quartiles": "{q1_s:,.3f} .. {q3_s:,.3f}",
    "speed-up of ours [95%]": "{ratio:.3f} [{ratio_low:.3f}, {ratio_high:.3f}]",
    "until done": "{until_done_s:.3f} ms", "images/s": "{images_per_second:,.1f}",
    "trials": "{trials}", "steps": "{steps:,}", "best": "{best:.2%}",
    "a core": "{images_per_second_per_core:,.0f}", "an image": "{us_per_image:,.0f} µs",
    "waiting": "{waiting:.1%}", "TFLOP/s": "{flops_per_second:,.3f}", "MFU": "{mfu:.1%}",
    "of matmul": "{of_matmul:.1%}", "MB/s": "{bytes_per_second:,.0f}",
    "compiled in": "{compile_s:.1f} s", "step, compiler's": "{compiled_bytes:,.0f} MiB",
    "peak, device's": "{peak_device_bytes:,.0f} MiB",
    "peak, process's": "{peak_process_bytes:,.0f} MiB",
    "error": "{error:.2e}", "held": "{held_mb:.0f} MB",
}  # fmt: skip

# Unit of a figure in the table.
UNITS = dict.fromkeys(("median_s", "q1_s", "q3_s", "until_done_s"), 1e-3) | dict.fromkeys(
    ("compiled_bytes", "peak_device_bytes", "peak_process_bytes"), 2**20
) | {"flops_per_second": 1e12, "bytes_per_second": 1e6}  # fmt: skip


def table(rows: Iterable[Row]) -> str:
    """The rows in aligned columns. Columns without any figure are left out."""
    shown = [{name: row[name] / UNITS[name] if name in UNITS else row[name] for name in row}
             for row in rows]  # fmt: skip
    columns = [[heading, *(_cell(template, row) for row in shown)]
               for heading, template in COLUMNS.items()]  # fmt: skip
    return pages.aligned(zip(*(column for column in columns if any(column[1:])), strict=True))


def _cell(template: str, row: Row) -> str:
    try:
        return template.format_map(row)
    except KeyError:
        return ""


def figures(name: str, rows: list[Row]) -> dict[str, Any]:
    """Everything that the JSON of a measurement holds."""
    ratios = {f"{row['case']} / {row['side']}": row["ratio"] for row in rows if "ratio" in row}
    return {"name": name, "rows": rows, "ratios": ratios, "versions": versions(),
            "hardware": hardware()}  # fmt: skip


def busy() -> str | None:
    """A warning if other programs used much of the machine when this process began."""
    if cores() / 2 >= LOAD:
        return None
    return f"the machine was busy when this began: load {LOAD:.1f} on {cores()} cores"


def write(measured: dict[str, Any], to_json: str | None = None, to_csv: str | None = None) -> None:
    """Writes the files that are asked for. Raises UserError if one cannot be written."""
    if to_json:
        write_json(Path(to_json), measured)
    if to_csv:
        write_text(Path(to_csv), as_csv(measured["rows"]))


def as_csv(rows: list[Row]) -> str:
    """The rows as CSV, with columns in the order of their first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pages.as_csv([names, *([row.get(name) for name in names] for row in rows)])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every script in benchmarks/; `description` is the script's docstring."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="tiny sizes and few rounds")
    options.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    options.add_argument("--rounds", type=int, help="how often each side is measured")
    return options


def finish(name: str, rows: list[Row], options: argparse.Namespace) -> None:
    """The end of every script in benchmarks/: prints the table and writes the JSON."""
    print(table(rows))
    if line := busy():
        print(line)
    write(figures(name, rows), options.json)
