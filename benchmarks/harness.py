"""The options that every benchmark here shares, and its report. Timing, statistics and the table
are those of `vit bench` (vit_jax/benching/)."""

import argparse
from typing import Any

from vit_jax.benching.machine import cores
from vit_jax.benching.report import busy, figures, table, write
from vit_jax.benching.timing import Row, Side, alternate, compare, in_a_row, summary, timed

__all__ = [
    "Row", "Side", "alternate", "compare", "cores", "in_a_row", "parser", "report", "summary",
    "table", "timed",
]  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; `description` is its docstring."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="tiny sizes and few rounds")
    made.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    made.add_argument("--rounds", type=int, help="repetitions of each side")
    return made


def report(name: str, rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """Prints the table and writes the JSON: `name`, `rows`, `ratios`, `versions`, `hardware`."""
    found = figures(name, rows)
    print(table(rows))
    if line := busy():
        print(line)
    write(found, options.json)
    return found
