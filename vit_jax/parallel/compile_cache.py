"""Keeps compiled programs from one run to the next, in `.jax_cache` beside the work folders.

They are machine code, so they are read only from a folder that no other user can write to.
`JAX_COMPILATION_CACHE_DIR` names another folder, which is used unchecked. If it is empty, no
program is kept.
"""

import contextlib
import hashlib
import os
import stat
import sys
from pathlib import Path

import jax

from vit_jax.errors import printable

WORTH_KEEPING = 0.3  # seconds of compiling
NAME = ".jax_cache"
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def keep_compiled(workdir: str | Path) -> None:
    """Keeps what this process compiles for runs with the same parent folder. Prints a line instead
    if another user could have put programs there."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "://" in str(workdir):
        return
    place = _place(workdir)
    if why := refusal(place):
        print(
            f"vit: compiled programs are neither kept nor read, because {why}; "
            "JAX_COMPILATION_CACHE_DIR names another folder",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    if Path(workdir).is_dir():  # otherwise the run makes its folder first
        make_private(workdir)


def make_private(workdir: str | Path) -> None:
    """Makes the folder that `keep_compiled` has chosen, if any, writable for this user alone. JAX
    would make it with the permissions of the umask."""
    place = _place(workdir)
    if jax.config.values["jax_compilation_cache_dir"] != str(place):
        return
    for folder in (place.parent, place):
        with contextlib.suppress(OSError):  # it exists, or JAX reports that it can keep nothing
            folder.mkdir(mode=0o700)


def refusal(place: Path) -> str:
    """The reason why programs in a folder may be another user's; empty if they cannot be.

    This user must own the folder and its parent, and nobody else may write to them. The work
    folders' own parent must not be writable for everybody without a sticky bit, because then
    anybody could exchange folders in it. A group that may write there is trusted, because it could
    exchange the work folders as well.
    """
    with contextlib.suppress(OSError):
        mode = place.parent.parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"every user can exchange folders in {printable(place.parent.parent)}"
    for folder in (place.parent, place):
        try:
            facts = folder.lstat()
        except OSError:  # not there yet
            continue
        if facts.st_uid != os.geteuid():
            return f"{printable(folder)} is another user's"
        if not stat.S_ISDIR(facts.st_mode):
            return f"{printable(folder)} is no folder but a file or a link"
        if facts.st_mode & OTHERS:
            return f"other users can write to {printable(folder)}, which you can remove"
    return ""


def _place(workdir: str | Path) -> Path:
    return Path(workdir).expanduser().absolute().parent / NAME / _processor()


def _processor() -> str:
    """One name for all machines whose CPUs have the same instructions. Programs for a CPU are
    machine code, and other machines may share the folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "any"
    features = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]
