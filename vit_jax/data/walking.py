"""Finds the images below a folder, for everything that reads folders.

A file with the usual ending of an image is taken for one, because folders hold millions of files.
Every other file is judged by its first bytes. Pipes and devices are not opened, and each folder is
entered once, however many links lead to it.
"""

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from vit_jax.data.formats import HEAD, format_of, named_as_image
from vit_jax.errors import UserError, printable

T = TypeVar("T")
_LONGEST_ENDING = 12  # characters that a message calls an ending


class Below(NamedTuple):
    """Images as sorted paths relative to the folder, and the numbers of other files by ending."""

    images: list[str]
    left_out: Counter[str]


def images_below(folder: str | os.PathLike) -> Below:
    """The images at any depth, except hidden files and folders. Links are followed, except to a
    folder that holds the link or was entered before.

    Raises UserError: a folder cannot be read.
    """
    root = os.fspath(folder)
    images: list[str] = []
    left_out, inside, known = Counter[str](), [""], set[tuple[int, int]]()
    while inside:
        place = inside.pop()
        folders = []
        for entry in entries(os.path.join(root, place)):
            if named_as_image(entry.name):  # no need to ask the disk
                images.append(place + entry.name)
            elif _is_folder(entry):
                folders.append((entry.is_symlink(), entry.name))
            elif (kind := left_out_as(entry)) is None:
                images.append(place + entry.name)
            else:
                left_out[kind] += 1
        new = [
            f"{place}{name}/" for _, name in sorted(folders) if _enters(root, place + name, known)
        ]
        inside += reversed(new)
    return Below(sorted(images), left_out)


def _enters(root: str, place: str, known: set[tuple[int, int]]) -> bool:
    """Whether a walk from `root` enters this folder for the first time. `known` are the folders
    that it must not enter: its root, those above it, and those it has entered. The first two are
    only looked up when the walk meets a folder inside its root."""

    def identity(folder: str | os.PathLike) -> tuple[int, int]:
        facts = os.stat(folder)
        return facts.st_dev, facts.st_ino

    if not known:
        for top in {Path(os.path.abspath(root)), Path(os.path.realpath(root))}:
            known |= {identity(folder) for folder in (top, *top.parents)}
    number = len(known)
    known.add(identity(os.path.join(root, place)))
    return len(known) > number


def entries(folder: str | os.PathLike) -> Iterator[os.DirEntry[str]]:
    """What lies directly in a folder, except hidden files and folders.

    Raises UserError: the folder cannot be read.
    """
    try:
        with os.scandir(os.fspath(folder)) as inside:
            yield from (entry for entry in inside if entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error


def folders_in(root: Path) -> list[str]:
    """The sorted names of a folder's folders, except hidden ones."""
    return sorted(entry.name for entry in entries(root) if _is_folder(entry))


def files_in(root: Path) -> Counter[str]:
    """The numbers of files that lie directly in a folder, by ending."""
    return Counter(left_out_as_named(e.name) for e in entries(root) if not _is_folder(e))


def holds_images(folder: Path) -> bool:
    """Whether an image lies directly in the folder."""
    return any(not _is_folder(e) and left_out_as(e) is None for e in entries(folder))


def left_out_as(entry: os.DirEntry) -> str | None:
    """How an entry that is no folder is counted; None for an image."""
    try:
        if named_as_image(entry.name):
            return None
        if not entry.is_file():
            broken = entry.is_symlink() and not os.path.exists(entry.path)
            return "broken link" if broken else "pipe, socket or device"
        return None if format_of(first_bytes(entry.path)) else left_out_as_named(entry.name)
    except OSError:
        return "unreadable"


def left_out_as_named(name: str) -> str:
    """How a file that is no image is counted, by its ending."""
    ending = PurePath(name).suffix.lower()
    return ending if 1 < len(ending) <= _LONGEST_ENDING else "without an ending"


def first_bytes(path: str | os.PathLike, count: int = HEAD) -> bytes:
    """The beginning of a regular file; nothing of any other. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return b""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return os.read(file, count)
    finally:
        os.close(file)


def left_out_text(left_out: Counter[str]) -> str:
    """`3 files are left out: 2 .txt, 1 without an ending`."""
    total = left_out.total()
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    parts = [f"{count:,} {printable(kind)}" for kind, count in kinds[:5]]
    if kinds[5:]:
        parts.append(f"{sum(count for _, count in kinds[5:]):,} others")
    return f"{total:,} file{' is' if total == 1 else 's are'} left out: {', '.join(parts)}"


def with_progress(items: Iterable[T], total: int | None, title: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal and nothing in a log."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, title, total, console=Console(stderr=True), transient=True)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
