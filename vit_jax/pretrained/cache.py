"""The folder of downloaded files. No name leads out of it, and no other user can plant a file.

Several users may share a cache, and addresses and indexes come from others. Therefore a name is
checked before it becomes a path, a folder that another user can change is refused, and no file is
written through a link.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import unquote

from vit_jax.errors import UserError, printable

LONGEST = 200  # bytes of a name; disks allow 255, but NAME.part.json is longer
CHOOSE = "choose another folder with VIT_JAX_CACHE"

_MODES = {"r": os.O_RDONLY, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}
_MODES["w"] = os.O_WRONLY | os.O_CREAT  # `open_own` empties it after its checks


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of downloaded files. The address of a file decides its path."""

    folder: Path

    def place(self, address: str, path: str) -> Path:
        """The path for an address. Each address has a folder, so equal names do not collide."""
        name = PurePosixPath(unquote(path)).name or "download"
        if not fits(name):
            raise UserError(
                f"{printable(address)}: {printable(name)[:LONGEST]} cannot be a file's name: "
                "download it by hand and give its path"
            )
        own = hashlib.sha256(address.encode()).hexdigest()[:12]
        return self.folder / own / shortened(name)

    def guard(self, place: Path) -> None:
        """Raises UserError if another user can change a folder from the cache down to `place`."""
        for folder in self._folders(place):
            with contextlib.suppress(FileNotFoundError):
                # The cache itself may be a link, because the user names it. No folder below may.
                facts = os.stat(folder, follow_symlinks=folder == self.folder)
                if reason := distrust(facts, os.geteuid()):
                    raise UserError(f"the cache {folder} is not trusted: {reason}; {CHOOSE}")

    @contextlib.contextmanager
    def lock(self, place: Path, wait: Callable[[], None]) -> Iterator[None]:
        """Makes the folder of `place` and locks it for this process. If another process has the
        lock, calls `wait` and waits."""
        for folder in self._folders(place):
            folder.mkdir(0o755, parents=True, exist_ok=True)
        self.guard(place)
        with open_own(place.with_name(".lock"), "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _folders(self, place: Path) -> list[Path]:
        """The folders from the cache down to the parent of `place`."""
        return [folder for folder in reversed(place.parents) if folder.is_relative_to(self.folder)]


def distrust(facts: os.stat_result, user: int) -> str:
    """The reason why the user with this number cannot trust a folder; empty if there is none.

    Root, and a group that may write, are trusted. Root itself trusts every owner, because in a
    container it works in folders of the user who started the container.
    """
    if not stat.S_ISDIR(facts.st_mode):
        return "it is a link or a file, not a folder"
    if user and facts.st_uid not in (0, user):
        return f"it belongs to another user (number {facts.st_uid})"
    if facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX:
        return "every user can write to it (if it is yours, chmod o-w helps)"
    return ""


def fits(name: str) -> bool:
    """Whether a name is printable and cannot lead out of the folder that it is in."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\")


def shortened(name: str) -> str:
    """A name cut to LONGEST bytes, with its ending kept.

    >>> shortened("é" * 200 + ".npz") == "é" * 98 + ".npz"
    True
    """
    ending = PurePosixPath(name).suffix.encode()[-20:]
    start = name.encode().removesuffix(ending)[: LONGEST - len(ending)]
    return (start + ending).decode(errors="ignore")


def open_own(path: Path, mode: str) -> io.BufferedIOBase:
    """Opens a file for "r"eading, "w"riting or "a"ppending, and never follows a link to it.

    Raises UserError for a link, a folder or a pipe, and, unless it is opened for reading, for a
    file with a second name (a hard link).
    """
    flags = _MODES[mode] | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
        raise _planted(path) from error
    facts = os.fstat(number)
    if not stat.S_ISREG(facts.st_mode) or (mode != "r" and facts.st_nlink != 1):
        os.close(number)
        raise _planted(path)
    if mode == "w":
        os.ftruncate(number, 0)
    return cast(io.BufferedIOBase, os.fdopen(number, mode + "b"))


def write(path: Path, text: str) -> None:
    """Replaces a small file by `text`. If that fails, the old file stays."""
    new = path.with_name(path.name + ".new")
    try:
        with open_own(new, "w") as file:
            file.write(text.encode())
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _planted(path: Path) -> UserError:
    return UserError(
        f"{path} is a link, a folder or a pipe where a file of the download belongs: delete it, or "
        f"{CHOOSE}"
    )
