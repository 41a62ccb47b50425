"""Lists runs: status, last step, best metric, goodput; from their files alone.

vit runs runs
vit runs runs --json
"""

import argparse
import json
from pathlib import Path

from vit_jax.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("dir", metavar="DIR", help="folder of runs, searched, or one run")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    from vit_jax.launch import runs

    folder = Path(options.dir)
    rows = [runs.describe(found) for found in runs.find(folder)]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print("\n".join(runs.table(rows, folder)) if rows else f"no runs in {printable(folder)}")
    return 0
