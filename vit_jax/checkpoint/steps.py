"""Decides which folders are checkpoints, for the run and for all commands. Imports no JAX.

The folder of a step has the step's number as its name, in ASCII as Python writes it, and contains a
folder `state`. Orbax counts every folder with such a name, even an empty one.
"""

import re
import shutil
import time
from pathlib import Path

from vit_jax.errors import UserError, printable

STATE = "state"  # the folder of a checkpoint's arrays
PARTIAL = "*.orbax-checkpoint-tmp"  # folders of saves that are not finished
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_LIKE_A_NUMBER = re.compile(r"[-+]?\d+")  # digits of any script


def number(name: str) -> int | None:
    """The step of a folder's name; None if it is not the name of a step."""
    return int(name) if _NUMBER.fullmatch(name) else None


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints in ascending order; empty if it cannot be read."""
    return sorted(step for step in _numbered(folder) if (folder / str(step) / STATE).is_dir())


def strays(folder: Path) -> dict[Path, str]:
    """Files and folders that have a name like a step but are no checkpoint: path -> the reason."""
    described = {}
    for name in sorted(p.name for p in _entries(folder) if _LIKE_A_NUMBER.fullmatch(p.name)):
        path = folder / name
        if number(name) is None:
            described[path] = "is no step's name"
        elif not path.is_dir():
            described[path] = "is no checkpoint but a file"
        elif not (path / STATE).is_dir():
            empty = not _entries(path)
            described[path] = "is no checkpoint but " + (
                "an empty folder" if empty else f"a folder without {STATE}"
            )
    return described


def unfinished(folder: Path) -> list[Path]:
    """The folders that have a step's name but no state: checkpoints that lost their files."""
    return [folder / str(step) for step in sorted(_numbered(folder) - set(steps(folder)))]


def latest(folder: Path) -> int | None:
    """The last step in a folder; None if there is none.

    Raises UserError if a folder of a later step has no state. Otherwise the run would continue from
    an earlier step, and the user would not know.
    """
    complete, lost = steps(folder), unfinished(folder)
    if lost and int(lost[-1].name) > max(complete, default=-1):
        raise UserError(
            f"{printable(lost[-1])} {strays(folder)[lost[-1]]}: `vit ckpt prune {printable(folder)}"
            " --damaged` removes it"
        )
    return complete[-1] if complete else None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []


def _numbered(folder: Path) -> set[int]:
    """The steps of a folder's subfolders that have a step's name."""
    named = ((number(path.name), path) for path in _entries(folder))
    return {step for step, path in named if step is not None and path.is_dir()}


def remove_partial(folder: Path) -> None:
    """Removes what a failed save left. Orbax's threads may still write into it for a moment. What
    cannot be removed is left to the next start."""
    for partial in folder.glob(PARTIAL):
        for _ in range(20):
            shutil.rmtree(partial, ignore_errors=True)
            if not partial.exists():
                break
            time.sleep(0.1)
