"""Compiled programs are kept from one run to the next, in `.jax_cache` beside the work folders.

They are machine code, so they are read from a folder that this user alone can write.
`JAX_COMPILATION_CACHE_DIR` names another place, which is used as it is; empty, it keeps nothing.
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
    """Keeps what this process compiles for runs with the same parent folder; says in a line where
    another user could have put programs there."""
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
    if Path(workdir).is_dir():  # of a run that is there; else its folder is made first
        make_private(workdir)


def make_private(workdir: str | Path) -> None:
    """Makes the folder of programs that `keep_compiled` has chosen, if it has, for this user alone:
    JAX would make it as the umask says."""
    place = _place(workdir)
    if jax.config.values["jax_compilation_cache_dir"] != str(place):
        return
    for folder in (place.parent, place):
        with contextlib.suppress(OSError):  # it is there, or JAX says that nothing can be kept
            folder.mkdir(mode=0o700)


def refusal(place: Path) -> str:
    """Why programs in a folder may be another user's; empty where they are not.

    The folder and the one around it are this user's, and nobody else may write there. In the work
    folders' own parent a folder could be exchanged where everybody may write and it has no sticky
    bit. A group that may write there is trusted: it could exchange the work folders as well.
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
    """One name for machines whose CPUs have the same instructions: programs for a CPU are machine
    code, and a shared folder is seen from others."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "any"
    told = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
