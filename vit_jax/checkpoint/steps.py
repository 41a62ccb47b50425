"""Which names in a folder are checkpoints of steps. All commands and the run itself ask here.

A step's folder is named by its number as Python writes it, in ASCII, and holds a `state`. Orbax
counts any folder with such a name, also an empty one. This module imports no JAX.
"""

import re
from pathlib import Path

from vit_jax.errors import UserError, printable

STATE = "state"  # the folder of a checkpoint's arrays
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_LIKE_A_NUMBER = re.compile(r"[-+]?\d+")  # in any script


def number(name: str) -> int | None:
    """The step that a name is of; None where it is no step's name."""
    return int(name) if _NUMBER.fullmatch(name) else None


def steps(folder: Path) -> list[int]:
    """The steps in rising order whose checkpoints lie in a folder; none where it cannot be read."""
    return sorted(step for step in _numbered(folder) if (folder / str(step) / STATE).is_dir())


def strays(folder: Path) -> dict[Path, str]:
    """What else in a folder has the name of a step, or one like it: path -> what it is."""
    found = {}
    for name in sorted(p.name for p in _entries(folder) if _LIKE_A_NUMBER.fullmatch(p.name)):
        path = folder / name
        if number(name) is None:
            found[path] = "is no step's name"
        elif not path.is_dir():
            found[path] = "is no checkpoint but a file"
        elif not (path / STATE).is_dir():
            empty = not _entries(path)
            found[path] = "is no checkpoint but " + (
                "an empty folder" if empty else f"a folder without {STATE}"
            )
    return found


def unfinished(folder: Path) -> list[Path]:
    """The folders that have a step's name and hold no state: a checkpoint that lost its files."""
    return [folder / str(step) for step in sorted(_numbered(folder) - set(steps(folder)))]


def latest(folder: Path) -> int | None:
    """The last step in a folder; None where there is none.

    Raises UserError where a later one has no state, because the run would else go on from an
    earlier step without a word.
    """
    found, lost = steps(folder), unfinished(folder)
    if lost and int(lost[-1].name) > max(found, default=-1):
        raise UserError(
            f"{printable(lost[-1])} {strays(folder)[lost[-1]]}: `vit ckpt prune {printable(folder)}"
            " --damaged` removes it"
        )
    return found[-1] if found else None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []


def _numbered(folder: Path) -> set[int]:
    """Of the folders in a folder that have a step's name."""
    named = ((number(path.name), path) for path in _entries(folder))
    return {step for step, path in named if step is not None and path.is_dir()}
