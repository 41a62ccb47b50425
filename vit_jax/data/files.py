"""Images that lie on disk as files: folders of classes, and tables that name files."""

import csv
import hashlib
import math
import os
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.source import NoSplit, known_split
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".npy",
)  # fmt: skip
SPLIT_NAMES = ("train", "val", "validation", "test")


class Names:
    """Many file names in one block of bytes: a million of them are no million objects."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, name: str) -> None:
        self._bytes += os.fsencode(name)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(bytes(self._bytes[self._ends[index] : self._ends[index + 1]]))

    def hash(self, labels: np.ndarray) -> str:
        """Of all names in order and of what belongs to each, in one pass over the block."""
        digest = hashlib.blake2b(self._bytes, digest_size=16)
        digest.update(self._ends)
        digest.update(f"{labels.shape}".encode() + labels.astype("<i4").tobytes())
        return digest.hexdigest()


class Files:
    """Files by number, below one folder, with labels [N] or [N, max_labels] (filled with -1)."""

    notes: tuple[str, ...] = ()

    def __init__(self, root: Path, names: Names, labels: np.ndarray, classes: list[str]):
        self.root, self.classes = root, classes
        self._names, self._labels = names, labels
        self.max_labels = labels.shape[1] if labels.ndim == 2 else 1
        self.channels = self._channels()

    def _channels(self) -> int:
        """Three, but for NumPy files those of the first one."""
        if self.path(0).suffix != ".npy":
            return 3
        try:
            shape = np.load(self.path(0), mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError):
            return 3
        return shape[2] if len(shape) == 3 else 1

    @property
    def names_hash(self) -> str:
        """Of the examples' names, in order, and their labels: the same wherever the files lie."""
        return self._names.hash(self._labels)

    def path(self, index: int) -> Path:
        """The file of an example."""
        return self.root / self._names[index]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self._labels[index]
        several = [int(one) for one in label if one >= 0] if label.ndim else int(label)
        return {"image": read_bytes(os.path.join(self.root, self._names[index])), "label": several}

    def describe(self, index: int) -> str:
        """The path, as it may be shown on a terminal."""
        return printable(str(self.path(index)))


def held_out(name: str) -> bool:
    """Whether an image without a split belongs to `val`: a tenth does, by a hash of its name."""
    return zlib.crc32(os.fsencode(name)) % 10 == 0


class Folder(Files):
    """`PATH/SPLIT/CLASS/*`, or `PATH/CLASS/*` of which a tenth is held out as `val` by a hash of
    its name. Classes are the sorted folder names."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        root = Path(rest).expanduser()
        if not rest or not root.is_dir():
            raise UserError(
                f"folder:{rest}: there is no folder {root.absolute()}; it should hold "
                "SPLIT/CLASS/*.jpg or CLASS/*.jpg"
            )
        inside = _folders(root)
        splits = [name for name in inside if name in SPLIT_NAMES]
        hashed = not splits and not (root / split).is_dir()
        if hashed:
            known_split(f"folder:{rest} (CLASS/* without splits)", split)
        elif split not in inside:
            raise NoSplit(
                f"folder:{rest} has no split {split!r}: it has {', '.join(splits)} "
                "(--config.data.eval.split= leaves evaluation out)"
            )
        root = root if hashed else root / split
        found = inside if hashed else _folders(root)
        classes = found if classes is None else list(classes)
        extra = sorted(set(found) - set(classes))
        if extra:
            raise UserError(
                f"{root} has the class {extra[0]!r}"
                + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
                + f", which training does not know ({len(classes)} classes, such as "
                f"{', '.join(classes[:3])}): add it to the training split or take it out"
            )
        names, counts, left_out = Names(), np.zeros(len(classes), np.int64), 0
        number = {name: label for label, name in enumerate(classes)}
        labels: list[np.ndarray] = []
        for name in found:
            before = len(names)
            for file in _images(root / name):
                path = f"{name}/{file}"
                if hashed and held_out(path) != (split == "val"):
                    left_out += 1
                else:
                    names.append(path)
            counts[number[name]] = len(names) - before
            labels.append(np.full(len(names) - before, number[name], np.int32))
        if not len(names) and left_out:
            raise UserError(
                f"{root} has {left_out} images, of which the hash of their names puts none in "
                f"{split!r}: make the folders train/CLASS and val/CLASS, or leave evaluation out "
                "with --config.data.eval.split="
            )
        if not len(names):
            raise UserError(
                f"{root} holds no images ({', '.join(IMAGE_SUFFIXES[:4])} …) in folders of "
                "their classes"
            )
        super().__init__(root, names, np.concatenate(labels), classes)
        self.notes = self._notes([name for name in found if not counts[number[name]]])

    def _notes(self, empty: list[str]) -> tuple[str, ...]:
        notes = []
        if empty:
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            notes.append(f"{self.root}: the class {empty[0]!r}{more} has no images")
        if len(self.classes) == 1:
            notes.append(f"{self.root} holds one class alone, {self.classes[0]!r}")
        return tuple(notes)


class Table(Files):
    """`csv:FILE` with the columns `image` (a path, from the table's folder), `label` (a class, or
    several separated by `;`) and, if it has one, `split`; without, a tenth is held out as `val`.
    Classes are the sorted names, by number where all are numbers."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        file = Path(rest).expanduser()
        if not file.is_file():
            raise UserError(
                f"csv:{rest}: there is no file {file.absolute()}; it should have the columns "
                "image, label and, if there are splits, split"
            )
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                table = csv.DictReader(lines)
                missing = {"image", "label"} - set(table.fieldnames or ())
                if missing:
                    raise UserError(
                        f"{file} has no column {sorted(missing)[0]!r}: it has "
                        f"{', '.join(table.fieldnames or ['none'])}"
                    )
                rows = [_row(row, file, table.line_num) for row in table]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file} is no table of comma-separated values: {error}") from error
        if "split" not in (table.fieldnames or ()):
            known_split(f"{file} (no column split)", split)
            rows = [(i, of, "val" if held_out(i) else "train") for i, of, _ in rows]
        splits = sorted({str(where) for _, _, where in rows})
        rows = [row for row in rows if row[2] == split]
        every = {name for _, of, _ in rows for name in of}
        if not rows:
            raise NoSplit(f"{file} has no split {split!r}: it has {', '.join(splits) or 'no rows'}")
        if classes is None:
            numbers = all(name.isdecimal() for name in every)
            classes = sorted(every, key=(lambda name: (int(name), name)) if numbers else None)
        number = {name: label for label, name in enumerate(classes)}
        names, widest = Names(), max(len(of) for _, of, _ in rows)
        for image, _, _ in rows:
            names.append(image)
        several = any(len(of) != 1 for _, of, _ in rows)
        labels = np.full((len(rows), max(1, widest)), -1, np.int32)
        for row, (image, of, _) in enumerate(rows):
            for column, name in enumerate(of):
                if name not in number:
                    raise UserError(
                        f"{file}: {image} has the class {name!r}, which training does not know"
                    )
                labels[row, column] = number[name]
        super().__init__(file.parent, names, labels if several else labels[:, 0], classes)


def _row(row: dict[str, Any], file: Path, line: int) -> tuple[str, list[str], str | None]:
    """Image, classes and split. Raises UserError for a row that lacks one or has more."""
    for column, value in row.items():
        if column is None or value is None or (column in ("image", "split") and not value.strip()):
            what = "more columns than the first line" if column is None else f"no {column}"
            raise UserError(f"{file}, line {line} has {what}")
    return row["image"], _labels(row["label"], file, line), row.get("split")


def _labels(text: str | None, file: Path, line: int) -> list[str]:
    """The classes of a row. Raises UserError for what is a number but names none."""
    names = [name.strip() for name in (text or "").split(";") if name.strip()]
    for name in names:
        try:
            number = float(name)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise UserError(f"{file}, line {line}: the label {name!r} is no class")
    return names


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """Image files below a class's folder, as sorted paths relative to it."""
    found, inside = [], [""]
    while inside:
        place = inside.pop()
        with os.scandir(folder / place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(IMAGE_SUFFIXES):  # and is not asked what it is
                    found.append(place + entry.name)
                elif entry.is_dir() and not (entry.is_symlink() and _leads_back(entry.path)):
                    inside.append(f"{place}{entry.name}/")
    return sorted(found)


def _leads_back(link: str) -> bool:
    """Whether a link to a folder leads to one that holds it, and so round for ever."""
    target = os.path.realpath(link)
    return (os.path.realpath(os.path.dirname(link)) + os.sep)[: len(target) + 1] == target + os.sep
