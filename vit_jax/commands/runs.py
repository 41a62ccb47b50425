"""Lists runs by their files: status, last step, best metric, goodput.

vit runs runs
vit runs runs --json
"""

import argparse
from pathlib import Path

from vit_jax.commands.arguments import Options
from vit_jax.commands.output import tell
from vit_jax.errors import printable

OPTIONS: Options = {
    "dir": dict(metavar="DIR", help="a folder that is searched for runs, or one run"),
    "--json": dict(action="store_true", help="print JSON"),
}


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from vit_jax.launch import runs

    folder = Path(options.dir)
    rows = [runs.describe(path) for path in runs.find(folder)]
    text = runs.table(rows, folder) if rows else f"no runs in {printable(folder)}"
    tell(rows, text, "-" if options.json else None)
    return 0
