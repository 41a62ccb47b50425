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

from vit_jax.data.formats import FORMAT_OF, HEAD, format_of
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
    left_out, entered, inside = Counter[str](), _Entered(root), [""]
    while inside:
        place = inside.pop()
        folders = []
        try:
            with os.scandir(os.path.join(root, place)) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if name[name.rfind(".") :].lower() in FORMAT_OF:  # no need to ask the disk
                        images.append(place + name)
                    elif _is_folder(entry):
                        folders.append((entry.is_symlink(), name))
                    elif (kind := left_out_as(entry)) is None:
                        images.append(place + name)
                    else:
                        left_out[kind] += 1
        except OSError as error:
            raise unreadable(os.path.join(root, place), error) from error
        new = [f"{place}{name}/" for _, name in sorted(folders) if entered.first(place + name)]
        inside += reversed(new)
    return Below(sorted(images), left_out)


def unreadable(folder: str | os.PathLike, error: OSError) -> UserError:
    """The error for a folder that cannot be listed."""
    return UserError(f"cannot read the folder {printable(os.fspath(folder))}: {error.strerror}")


def folders_in(root: Path) -> list[str]:
    """The sorted names of a folder's folders, except hidden ones."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and _is_folder(e))
    except OSError as error:
        raise unreadable(root, error) from error


def files_in(root: Path) -> Counter[str]:
    """The numbers of files that lie directly in a folder, by ending."""
    with os.scandir(root) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and not _is_folder(e)]
    return Counter(map(left_out_as_named, names))


def left_out_as(entry: os.DirEntry) -> str | None:
    """How an entry that is no folder is counted; None for an image."""
    try:
        if entry.name[entry.name.rfind(".") :].lower() in FORMAT_OF:
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


class _Entered:
    """The folders that a walk must not enter: its root, those above it, and those it has entered.
    The first two are only looked up when the walk meets a folder inside its root."""

    def __init__(self, root: str):
        self._root = root
        self._known: set[tuple[int, int]] = set()

    def first(self, place: str) -> bool:
        """Whether the walk enters the folder for the first time."""
        if not self._known:
            for root in {Path(os.path.abspath(self._root)), Path(os.path.realpath(self._root))}:
                self._known |= {_identity(folder) for folder in (root, *root.parents)}
        identity = _identity(os.path.join(self._root, place))
        new = identity not in self._known
        self._known.add(identity)
        return new


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino
