"""SHA-256 of every file of a checkpoint, written beside them before the checkpoint appears."""

import hashlib
import json
from pathlib import Path

from vit_jax.errors import UserError

NAME = "checksums.json"
MARKER = "commit_success.txt"  # Orbax writes it last
UNCHECKED = (NAME, MARKER, "_CHECKPOINT_METADATA")  # the last has the time when it was committed


def of_file(path: Path) -> str:
    """The checksum of one file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[str]:
    """Names of what is checked, relative to the checkpoint."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in UNCHECKED)
    return sorted(str(p.relative_to(folder)) for p in found)


def write(folder: Path) -> None:
    """Writes the checksums of all files that are there now."""
    sums = {name: of_file(folder / name) for name in files(folder)}
    (folder / NAME).write_text(json.dumps(sums, indent=0), encoding="utf-8")


def damages(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files, of which every `parts`-th is looked at: a line each.
    One that was saved without checksums has nothing wrong."""
    path = checkpoint / NAME
    if not path.is_file():
        return []
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return [f"{NAME} is cut short"]
    lines = []
    for name in sorted(sums)[part::parts]:
        try:
            if of_file(checkpoint / name) != sums[name]:
                lines.append(f"{name} is not what was saved")
        except OSError as error:
            lines.append(f"{name}: {error.strerror}")
    return lines


def check(checkpoint: Path, part: int = 0, parts: int = 1) -> None:
    """Raises UserError where a file is not what was saved."""
    if found := damages(checkpoint, part, parts):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"{checkpoint} is damaged: {found[0]}{more}; `vit ckpt prune {checkpoint.parent} "
            "--damaged` removes it, and the run goes on from the one before"
        )
