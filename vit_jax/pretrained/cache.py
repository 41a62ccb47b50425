"""The folder of downloaded files: names that stay inside it, and files that nobody else planted.

Several users may share a cache, and addresses and indexes come from others. So a name is checked
before it becomes a path, a folder that another user can change is refused, and what is written here
is never written through a link.
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

LONGEST = 200  # bytes of a name; disks take 255, and what stands beside it has a longer one
CHOOSE = "choose another folder with VIT_JAX_CACHE"

_MODES = {"r": os.O_RDONLY, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}
_MODES["w"] = os.O_WRONLY | os.O_CREAT  # cut to nothing once it is known to be a file of its own


@dataclasses.dataclass(frozen=True)
class Cache:
    """Files by address below one folder."""

    folder: Path

    def place(self, address: str, path: str) -> Path:
        """A readable name in a folder of the address's own: equal names never meet."""
        name = PurePosixPath(unquote(path)).name or "download"
        if not fits(name):
            raise UserError(
                f"{printable(address)}: {printable(name)[:LONGEST]} cannot be a file's name: "
                "download it by hand and give its path"
            )
        own = hashlib.sha256(address.encode()).hexdigest()[:12]
        return self.folder / own / shortened(name)

    def guard(self, place: Path) -> None:
        """Raises UserError where another user can change what lies in the folders of the place."""
        for folder in self._folders(place):
            with contextlib.suppress(FileNotFoundError):
                # The cache itself may be a link: the user has named it. What is below it is ours.
                facts = os.stat(folder, follow_symlinks=folder == self.folder)
                if reason := distrust(facts, os.geteuid()):
                    raise UserError(f"the cache {folder} is not trusted: {reason}; {CHOOSE}")

    @contextlib.contextmanager
    def lock(self, place: Path, wait: Callable[[], None]) -> Iterator[None]:
        """One process at a time in the folder of the place, which is made. The others wait for it,
        after `wait()`, and find the file."""
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
        """From the cache itself down to the place's parent."""
        return [folder for folder in reversed(place.parents) if folder.is_relative_to(self.folder)]


def distrust(facts: os.stat_result, user: int) -> str:
    """Why a folder is not trusted by the user of that number; empty where it is. A group that may
    write is trusted, as is root. Root itself trusts every owner: in a container it is given the
    folders of the user who started it."""
    if not stat.S_ISDIR(facts.st_mode):
        return "it is a link or a file, not a folder"
    if user and facts.st_uid not in (0, user):
        return f"it belongs to another user (number {facts.st_uid})"
    if facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX:
        return "every user can write to it (chmod o-w helps where it is yours)"
    return ""


def fits(name: str) -> bool:
    """Whether it names a file in a folder and nothing outside, on any disk and on a terminal."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\")


def shortened(name: str) -> str:
    """At most LONGEST bytes of a name, with its ending.

    >>> shortened("é" * 200 + ".npz") == "é" * 98 + ".npz"
    True
    """
    ending = PurePosixPath(name).suffix.encode()[-20:]
    start = name.encode().removesuffix(ending)[: LONGEST - len(ending)]
    return (start + ending).decode(errors="ignore")


def open_own(path: Path, mode: str) -> io.BufferedIOBase:
    """Opens a file for "r"eading, "w"riting or "a"ppending, and never follows a link to it.

    Raises UserError: a link, a folder, a pipe, or, for writing, a file that has another name too.
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
    """Writes a small file whole, or leaves the old one."""
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
