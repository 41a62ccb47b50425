"""What was measured, as a table, as JSON and as CSV: `name`, `rows`, `ratios`, `versions`,
`hardware`."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vit_jax.benching.machine import LOAD, cores, hardware, versions
from vit_jax.benching.timing import Row
from vit_jax.errors import cannot_write

# Columns of the table: heading, and the text of a row's cell.
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("case", lambda r: r["case"]),
    ("side", lambda r: r["side"]),
    ("stage", lambda r: r["stage"]),
    ("median", lambda r: f"{r['median_s'] * 1e3:,.3f} ms"),
    ("quartiles", lambda r: f"{r['q1_s'] * 1e3:,.3f} .. {r['q3_s'] * 1e3:,.3f}"),
    ("speed-up of ours [95%]",
     lambda r: f"{r['ratio']:.3f} [{r['ratio_low']:.3f}, {r['ratio_high']:.3f}]"),
    ("until done", lambda r: f"{r['until_done_s'] * 1e3:.3f} ms"),
    ("images/s", lambda r: f"{r['images_per_second']:,.1f}"),
    ("trials", lambda r: f"{r['trials']}"),
    ("steps", lambda r: f"{r['steps']:,}"),
    ("best", lambda r: f"{r['best']:.2%}"),
    ("a core", lambda r: f"{r['images_per_second_per_core']:,.0f}"),
    ("an image", lambda r: f"{r['us_per_image']:,.0f} µs"),
    ("waiting", lambda r: f"{r['waiting']:.1%}"),
    ("TFLOP/s", lambda r: f"{r['flops_per_second'] / 1e12:,.3f}"),
    ("MFU", lambda r: f"{r['mfu']:.1%}"),
    ("of matmul", lambda r: f"{r['of_matmul']:.1%}"),
    ("MB/s", lambda r: f"{r['bytes_per_second'] / 1e6:,.0f}"),
    ("compiled in", lambda r: f"{r['compile_s']:.1f} s"),
    ("step, compiler's", lambda r: f"{r['compiled_bytes'] / 2**20:,.0f} MiB"),
    ("peak, device's", lambda r: f"{r['peak_device_bytes'] / 2**20:,.0f} MiB"),
    ("peak, process's", lambda r: f"{r['peak_process_bytes'] / 2**20:,.0f} MiB"),
    ("error", lambda r: f"{r['error']:.2e}"),
    ("held", lambda r: f"{r['held_mb']:.0f} MB"),
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


def figures(name: str, rows: list[Row]) -> dict[str, Any]:
    """All that is kept of a measurement."""
    return {
        "name": name,
        "rows": rows,
        "ratios": {f"{r['case']} / {r['side']}": r["ratio"] for r in rows if "ratio" in r},
        "versions": versions(),
        "hardware": hardware(),
    }


def busy() -> str | None:
    """A line where other programs had much of the machine as this one began."""
    if cores() / 2 >= LOAD:
        return None
    return f"the machine was busy when this began: load {LOAD:.1f} on {cores()} cores"


def write(found: dict[str, Any], to_json: str | None = None, to_csv: str | None = None) -> None:
    """Writes the files asked for; of a CSV's rows each has every column."""
    from vit_jax.files import write_json, write_text

    try:
        if to_json:
            write_json(Path(to_json), found)
        if to_csv:
            write_text(Path(to_csv), as_csv(found["rows"]))
    except OSError as error:
        raise cannot_write(Path(error.filename or to_json or to_csv or ""), error) from error


def as_csv(rows: list[Row]) -> str:
    """The rows under one heading, in the order in which their columns appear."""
    text = io.StringIO(newline="")
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
