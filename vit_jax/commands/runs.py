"""Lists runs by their files: status, last step, best metric, goodput.

vit runs runs
vit runs runs --json
"""

import argparse
import json
from pathlib import Path

from vit_jax.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("dir", metavar="DIR", help="a folder that is searched for runs, or one run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from vit_jax.launch import runs

    folder = Path(options.dir)
    rows = [runs.describe(path) for path in runs.find(folder)]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print("\n".join(runs.table(rows, folder)) if rows else f"no runs in {printable(folder)}")
    return 0
