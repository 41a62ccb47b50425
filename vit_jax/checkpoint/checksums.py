"""SHA-256 of every file of a checkpoint, written beside them before the checkpoint appears."""

import hashlib
import json
from pathlib import Path

from vit_jax.errors import UserError, printable
from vit_jax.records import TEXT, load, reason

NAME = "checksums.json"
MARKER = "commit_success.txt"  # the file that Orbax writes last
UNCHECKED = (NAME, MARKER, "_CHECKPOINT_METADATA")  # the last contains the time of the commit


def of_file(path: Path) -> str:
    """The checksum of one file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[str]:
    """Names of the files that have checksums, relative to the checkpoint."""
    checked = (p for p in folder.rglob("*") if p.is_file() and p.name not in UNCHECKED)
    return sorted(str(p.relative_to(folder)) for p in checked)


def write(folder: Path) -> None:
    """Writes the checksums of all files that are in the folder now."""
    sums = {name: of_file(folder / name) for name in files(folder)}
    (folder / NAME).write_text(json.dumps(sums, indent=0), encoding="utf-8")


def known(checkpoint: Path) -> bool:
    """Whether a checkpoint was saved with checksums."""
    path = checkpoint / NAME
    return path.exists() or path.is_symlink()


def damages(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """A line for each damaged file of a checkpoint. Process `part` of `parts` reads its share.

    A file without a checksum counts as damaged, and a checksum without a file too. A checkpoint
    that was saved without checksums has no damages.
    """
    if not known(checkpoint):
        return []
    try:
        sums = load(checkpoint / NAME)
        on_disk = set(files(checkpoint))
    except (OSError, ValueError) as error:
        return [f"{NAME} cannot be read: {reason(error)}"]
    lines = []
    for name in sorted(on_disk | sums.keys())[part::parts]:
        try:
            if name not in on_disk:
                wrong = " is not there"
            elif name not in sums:
                wrong = f" has no checksum in {NAME}"
            elif not TEXT[1](sums[name]):
                wrong = f" has a checksum in {NAME} that is none"
            else:
                same = of_file(checkpoint / name) == sums[name]
                wrong = "" if same else " is not what was saved"
        except OSError as error:
            wrong = f": {error.strerror}"
        if wrong:
            lines.append(f"{printable(name)}{wrong}")
    return lines


def check(checkpoint: Path, part: int = 0, parts: int = 1) -> None:
    """Raises UserError if a file is not what was saved."""
    if lines := damages(checkpoint, part, parts):
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UserError(
            f"{checkpoint} is damaged: {lines[0]}{more}; `vit ckpt prune {checkpoint.parent} "
            "--damaged` removes it, and the run goes on from the one before"
        )
