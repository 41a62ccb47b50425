"""Images that lie on disk as files: folders of classes, and tables that name files."""

import csv
import hashlib
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from vit_jax.data import formats
from vit_jax.data.layout import layout, refuse_crossed, refuse_no_classes
from vit_jax.data.splits import (
    NoSplit,
    choose,
    held_out,
    in_order,
    meaning,
    passed_over,
    too_few,
)
from vit_jax.data.walking import files_in, first_bytes, folders_in, images_below, told
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes

NUMPY_HEADER = 2**14  # bytes: more than NumPy reads of one
LONGEST_LINE = 2**20  # characters of a table's
MOST_NOTES = 3  # classes with a line each of what they leave out


class Names:
    """Many file names in one block of bytes: a million of them are no million objects."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, name: str) -> None:
        self.extend((name,))

    def extend(self, names: Iterable[str]) -> None:
        whole, ends = self._bytes, self._ends
        for name in names:
            whole += os.fsencode(name)
            ends.append(len(whole))

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
        try:
            start = BytesIO(first_bytes(self.path(0), NUMPY_HEADER))
            if formats.format_of(start.getvalue()[: formats.HEAD]) != "NumPy":
                return 3
            old = np.lib.format.read_magic(start) == (1, 0)
            read = (
                np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            )
            shape, _, _ = read(start)
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

    def name(self, index: int) -> str:
        """The file of an example, from the root."""
        return self._names[index]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self._labels[index]
        several = [int(one) for one in label if one >= 0] if label.ndim else int(label)
        return {"image": read_bytes(os.path.join(self.root, self._names[index])), "label": several}

    def describe(self, index: int) -> str:
        """The path, as it may be shown on a terminal."""
        return printable(str(self.path(index)))


class Folder(Files):
    """`PATH/SPLIT/CLASS/*`, or `PATH/CLASS/*` of which a tenth of each class is held out as `val`
    by a hash of its name. Classes are the sorted folder names."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        place = _place(rest, split, training=classes is None)
        root, found = place.root, folders_in(place.root)
        refuse_no_classes(root, found)
        classes = found if classes is None else list(classes)
        _refuse_unknown(root, found, classes)
        names, empty, elsewhere = Names(), [], 0
        number = {name: label for label, name in enumerate(classes)}
        labels: list[np.ndarray] = []
        left_out: dict[str, Counter[str]] = {}
        for name in found:
            images, others = images_below(root / name)
            if others:
                left_out[name] = others
            if not images:
                empty.append(name)
            paths = [f"{name}/{image}" for image in images]
            if not place.named:
                mine = held_out(paths) == (place.split == "val")
                elsewhere += int((~mine).sum())
                paths = [path for path, take in zip(paths, mine, strict=True) if take]
            names.extend(paths)
            labels.append(np.full(len(paths), number[name], np.int32))
        if not len(names) and elsewhere:
            raise NoSplit(
                f"{printable(root)} has {elsewhere} images, of which the hash of their names puts "
                f"none in {place.split!r}: make the folders train/CLASS and val/CLASS, or leave "
                "evaluation out with --config.data.eval.split="
            )
        if not len(names):
            held = sum(left_out.values(), Counter())
            raise UserError(
                f"{printable(root)} holds no images (.jpg, .jpeg, .png, .bmp …) in folders of "
                "their classes" + (f"; {told(held)}" if held else "")
            )
        if place.trains and (odd := [name for name in empty if name in left_out]):
            raise UserError(
                f"{printable(root / odd[0])} is the folder of a class and holds no image: "
                f"{told(left_out[odd[0]])}; convert these to one of {formats.NAMES}, or take the "
                "folder away"
            )
        super().__init__(root, names, np.concatenate(labels), classes)
        self.notes = (*place.notes, *self._notes(empty, left_out))
        if not place.named and place.split == "val":
            remedy = "choose more yourself, as the folders train/CLASS and val/CLASS"
            self.notes += tuple(too_few(printable(root), len(names), remedy))

    def _notes(self, empty: list[str], left_out: dict[str, Counter[str]]) -> list[str]:
        notes, root = [], printable(self.root)
        if empty:
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            notes.append(f"{root}: the class {empty[0]!r}{more} has no images")
        if len(self.classes) == 1:
            notes.append(f"{root} holds one class alone, {self.classes[0]!r}")
        if len(left_out) > MOST_NOTES:
            every = sum(left_out.values(), Counter())
            notes.append(f"{root}, {len(left_out):,} of its classes: {told(every)}")
        else:
            notes += [f"{root}/{printable(name)}: {told(of)}" for name, of in left_out.items()]
        if beside := files_in(self.root):
            notes.append(f"{root}, beside the folders of classes: {told(beside)}")
        return notes


class _Place(NamedTuple):
    """Where the classes of a split lie: in a folder of its name, or all in the root (`named` is
    False then, and a hash makes the splits)."""

    root: Path
    split: str
    named: bool
    trains: bool
    notes: tuple[str, ...] = ()


def _place(rest: str, split: str, training: bool) -> _Place:
    """Finds a split in a folder. Raises UserError: there is no such folder or split, or the tree is
    laid out in another way."""
    top, shown = Path(rest).expanduser(), f"folder:{printable(rest)}"
    if not rest or not top.is_dir():
        raise UserError(
            f"{shown}: there is no folder {printable(top.absolute())}; it should hold "
            "SPLIT/CLASS/*.jpg or CLASS/*.jpg"
        )
    splits, others = layout(top)
    if not splits and (meaning(split) or split not in others):
        refuse_crossed(top, others)
        chosen = choose(f"{shown} (CLASS/* without splits)", split, ("train", "val"), training)
        return _Place(top, chosen, False, chosen == "train")
    there = splits if meaning(split) else [*splits, *others]
    chosen = choose(shown, split, there, training)
    trains = (meaning(chosen) or ("train" if training else "val")) == "train"
    notes = passed_over(printable(top), chosen, splits)
    if splits and trains and others:
        some = ", ".join(map(printable, others[:3])) + (" …" if others[3:] else "")
        notes.append(f"{printable(top)}: by their names no splits, and not read: {some}")
    return _Place(top / chosen, chosen, True, trains, tuple(notes))


def _refuse_unknown(root: Path, found: list[str], classes: list[str]) -> None:
    """Raises UserError where a folder is none of the training split's classes."""
    extra = sorted(set(found) - set(classes))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{printable(root)} has the class {extra[0]!r}{more}, which training does not know "
            f"({len(classes)} classes, such as {', '.join(map(printable, classes[:3]))}): add it "
            "to the training split or take it out"
        )


def folder_splits(rest: str) -> list[str]:
    """The splits of a folder, by the names of its folders; `train` and `val` where a hash makes
    them."""
    root = Path(rest).expanduser()
    return (layout(root).splits if root.is_dir() else []) or ["train", "val"]


class Table(Files):
    """`csv:FILE` with the columns `image` (a path, from the table's folder), `label` (a class, or
    several separated by `;`) and, if it has one, `split`; without, a tenth of each class is held
    out as `val`. Classes are the sorted names, by number where all are numbers."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        file = Path(rest).expanduser()
        every, splits = _read(rest)
        notes: list[str] = []
        if splits is None:
            chosen = choose(f"{file} (no column split)", split, ("train", "val"), classes is None)
            held = _held_out(every)
            rows = [row for row, out in zip(every, held, strict=True) if out == (chosen == "val")]
            if not rows:
                raise NoSplit(
                    f"{file} has {len(every)} rows, of which the hash of their names puts none in "
                    f"{chosen!r}: add a column split, or leave evaluation out with "
                    "--config.data.eval.split="
                )
            if chosen == "val":
                notes += too_few(str(file), len(rows), "choose them yourself in a column split")
        else:
            chosen = choose(str(file), split, splits, classes is None)
            rows = [row for row in every if row.split == chosen]
            notes += passed_over(str(file), chosen, splits)
        if classes is None:
            found = {name for row in rows for name in row.classes}
            numbers = all(name.isdecimal() for name in found)
            classes = sorted(found, key=(lambda name: (int(name), name)) if numbers else None)
        number = {name: label for label, name in enumerate(classes)}
        names, widest = Names(), max(len(row.classes) for row in every)
        for row in rows:
            names.append(row.image)
        labels = np.full((len(rows), widest), -1, np.int32)
        for place, row in enumerate(rows):
            for column, name in enumerate(row.classes):
                if name not in number:
                    raise UserError(
                        f"{file}: {printable(row.image)} has the class {name!r}, which training "
                        "does not know"
                    )
                labels[place, column] = number[name]
        super().__init__(file.parent, names, labels if widest > 1 else labels[:, 0], classes)
        self.notes = tuple(notes)


class Row(NamedTuple):
    """A line of a table."""

    image: str
    classes: list[str]
    split: str | None
    line: int


def table_splits(rest: str) -> list[str]:
    """The splits of a table, by the values of its column; `train` and `val` where it has none."""
    _, splits = _read(rest)
    return ["train", "val"] if splits is None else splits


def _read(rest: str) -> tuple[list[Row], list[str] | None]:
    """All rows of a table, and its splits where it has a column of them.

    Raises UserError: it is no table, or a row of any split cannot be used.
    """
    file = Path(rest).expanduser()
    if not file.is_file():
        raise UserError(
            f"csv:{printable(rest)}: there is no file {printable(file.absolute())}; it should have "
            "the columns image, label and, if there are splits, split"
        )
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(_bounded(lines, file))
            missing = {"image", "label"} - set(table.fieldnames or ())
            if missing:
                raise UserError(
                    f"{file} has no column {sorted(missing)[0]!r}: it has "
                    f"{', '.join(map(printable, table.fieldnames or ['none']))}"
                )
            rows = [_row(row, file, table.line_num) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no table of comma-separated values: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if not rows:
        raise NoSplit(f"{file} has no rows, and so no split")
    blank = [row.line for row in rows if not row.classes]
    if blank and all(len(row.classes) < 2 for row in rows):
        more = f" (as {len(blank) - 1:,} more have)" if blank[1:] else ""
        raise UserError(
            f"{file}, line {blank[0]} has no label{more}, and every other row has exactly one: "
            "label it or take it out"
        )
    if "split" not in (table.fieldnames or ()):
        return rows, None
    return rows, in_order({str(row.split) for row in rows})


def _bounded(lines: TextIO, file: Path) -> Iterator[str]:
    """The lines of a text file. Raises UserError at one without end, which a file without line
    breaks would be, and fill the memory."""
    number = 0
    while line := lines.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"{file}, line {number} has more than {LONGEST_LINE:,} characters: it is no table "
                "of comma-separated values"
            )
        yield line


def _held_out(rows: list[Row]) -> np.ndarray:
    """bool [rows]: a tenth of each class, which is that of an image's first label."""
    of_class: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for row in rows:
        name = row.classes[0] if row.classes else ""
        if first.setdefault(row.image, name) == name:
            of_class.setdefault(name, []).append(row.image)
    out = {
        image
        for images in of_class.values()
        for image, chosen in zip(images, held_out(images), strict=True)
        if chosen
    }
    return np.array([row.image in out for row in rows], bool)


def _row(row: dict[str, Any], file: Path, line: int) -> Row:
    """Raises UserError for a row that lacks a column or has more, or names no file."""
    for column, value in row.items():
        if column is None or value is None or (column in ("image", "split") and not value.strip()):
            what = "more columns than the first line" if column is None else f"no {column}"
            raise UserError(f"{file}, line {line} has {what}")
    if "\0" in row["image"]:
        raise UserError(f"{file}, line {line}: {printable(row['image'])!r} is no file's name")
    split = row.get("split")
    return Row(row["image"], _labels(row["label"], file, line), split and split.strip(), line)


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
