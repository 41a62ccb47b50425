"""Reads files that may be anything, and writes files that appear whole or not at all."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.errors import cannot_write

USUAL_BYTES = 2**17  # most image files are smaller, and are read at once
MOST_BYTES = 2**29  # of an image file: enough for stored.MAX_PIXELS of RGB without compression


class NotAFile(OSError):
    """A device, a pipe or a file without end stands where an image file is expected."""


def read_bytes(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file. It makes few system calls, because threads wait for each other at each
    of them. A pipe that nobody writes to is empty.

    Raises OSError: the file cannot be read, is a device, or holds more than `most` bytes.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        data = os.read(file, USUAL_BYTES)
        if len(data) < USUAL_BYTES:
            return data
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise NotAFile(None, "it is a device or a pipe, not a file", os.fspath(path))
        parts, got = [data], len(data)
        while got <= most and facts.st_size <= most:
            more = os.read(file, max(facts.st_size - got + 1, USUAL_BYTES))
            if not more:
                return b"".join(parts)
            parts.append(more)
            got += len(more)
        raise NotAFile(
            None, f"it holds {max(facts.st_size, got):,} bytes, more than the {most:,} to be read",
            os.fspath(path),
        )  # fmt: skip
    finally:
        os.close(file)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write a file or a folder to, and then renames it to `path`. So it
    appears whole or not at all. Raises UserError if it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of the value as JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the whole file in UTF-8, or leaves the old one."""
    with whole(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
