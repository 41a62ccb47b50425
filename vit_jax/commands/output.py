"""What commands print, and the files that options name."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError, cannot_write, printable
from vit_jax.files import write_json


def say(line: str) -> None:
    """Prints a line of progress, to standard error."""
    print(line, file=sys.stderr, flush=True)


def tell(value: Any, text: str, to: str | None, indent: int | None = 1) -> None:
    """Prints the text of a result, or its value as JSON if `to` is `-`. Writes the value to the
    file that any other `to` names."""
    print(json.dumps(value, indent=indent) if to == "-" else text)
    if to not in (None, "-"):
        write_json(Path(to), value)


def check_files(options: argparse.Namespace) -> None:
    """Raises UserError if an option names no possible file, before the work begins."""
    for name in ("json", "csv", "output", "arrays", "features"):
        text = getattr(options, name, None)
        if text is None or text == "-":
            continue
        file = Path(text)
        folder = file.absolute().parent
        try:
            if not text:
                raise UserError(f"--{name}= names no file")
            if file.is_dir():
                raise UserError(f"--{name}={printable(file)} is a folder: name a file in it")
            if not folder.is_dir():
                raise UserError(
                    f"--{name}={printable(file)}: there is no folder {printable(folder)}; make it "
                    "first"
                )
        except OSError as error:  # a name that is too long
            raise cannot_write(file, error) from error
