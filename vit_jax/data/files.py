"""Images that are files on disk: folders of classes, and tables of file names."""

import contextlib
import csv
import hashlib
import math
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from vit_jax.data import formats
from vit_jax.data.layout import layout, refuse_crossed, refuse_no_classes
from vit_jax.data.source import Source
from vit_jax.data.splits import (
    NoSplit,
    choose,
    held_out,
    in_order,
    meaning,
    passed_over,
    too_few,
)
from vit_jax.data.stored import numpy_header
from vit_jax.data.walking import files_in, first_bytes, folders_in, images_below, left_out_text
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes

NUMPY_HEADER = 2**14  # bytes, more than a header of NumPy has
LONGEST_LINE = 2**20  # characters in a table
MOST_NOTES = 3  # classes that get a line of their own for the files they leave out


class Names:
    """Many file names in one block of bytes, because a million objects would take more memory."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

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
        """A hash of all names and their labels, in order."""
        digest = hashlib.blake2b(self._bytes, digest_size=16)
        digest.update(self._ends)
        digest.update(f"{labels.shape}".encode() + labels.astype("<i4").tobytes())
        return digest.hexdigest()


class Files(Source):
    """Files by number, below one folder, with labels [N] or [N, max_labels] (filled with -1)."""

    def __init__(self, root: Path, names: Names, labels: np.ndarray, classes: list[str]):
        self.root, self.classes = root, classes
        self._data, self._labels = names, labels
        self.max_labels = labels.shape[1] if labels.ndim == 2 else 1
        self.names_hash = names.hash(labels)
        try:  # NumPy files have as many channels as the first one
            start = first_bytes(self.path(0), NUMPY_HEADER)
            if formats.format_of(start[: formats.HEAD]) == "NumPy":
                shape, _, _ = numpy_header(BytesIO(start))
                self.channels = shape[2] if len(shape) == 3 else 1
        except Exception:  # NumPy may raise anything; the file is judged when it is read
            pass

    def path(self, index: int) -> Path:
        """The file of an example."""
        return self.root / self._data[index]

    def name(self, index: int) -> str:
        """The file of an example, relative to the root."""
        return self._data[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self._labels[index]
        several = [int(number) for number in label if number >= 0] if label.ndim else int(label)
        return {"image": read_bytes(os.path.join(self.root, self._data[index])), "label": several}

    def describe(self, index: int) -> str:
        """The path, safe for a terminal."""
        return printable(str(self.path(index)))


class Folder(Files):
    """`PATH/SPLIT/CLASS/*`; or `PATH/CLASS/*`, of which a tenth of each class is held out as `val`
    by a hash of its name. Classes are the sorted names of the folders."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        root, split, named, trains, notes = _place(rest, split, training=classes is None)
        shown, inside = printable(root), folders_in(root)
        refuse_no_classes(root, inside)
        classes = inside if classes is None else list(classes)
        if extra := sorted(set(inside) - set(classes)):
            raise UserError(
                f"{shown} has the class {extra[0]!r}{_and_more(extra)}, which training does not "
                f"know ({len(classes)} classes, such as {', '.join(map(printable, classes[:3]))}): "
                "add it to the training split or take it out"
            )
        names, empty, elsewhere = Names(), [], 0
        number = {name: label for label, name in enumerate(classes)}
        labels: list[np.ndarray] = []
        left_out: dict[str, Counter[str]] = {}
        for name in inside:
            images, others = images_below(root / name)
            if others:
                left_out[name] = others
            if not images:
                empty.append(name)
            paths = [f"{name}/{image}" for image in images]
            if not named:
                val = held_out(paths)
                paths = [path for path in paths if (path in val) == (split == "val")]
                elsewhere += len(images) - len(paths)
            names.extend(paths)
            labels.append(np.full(len(paths), number[name], np.int32))
        every = sum(left_out.values(), Counter[str]())
        if not len(names) and elsewhere:
            raise NoSplit(
                f"{shown} has {elsewhere} images, of which the hash of their names puts none in "
                f"{split!r}: make the folders train/CLASS and val/CLASS, or leave evaluation "
                "out with --config.data.eval.split="
            )
        if not len(names):
            raise UserError(
                f"{shown} holds no images (.jpg, .jpeg, .png, .bmp …) in folders of their classes"
                + (f"; {left_out_text(every)}" if every else "")
            )
        if trains and (odd := [name for name in empty if name in left_out]):
            raise UserError(
                f"{printable(root / odd[0])} is the folder of a class and holds no image: "
                f"{left_out_text(left_out[odd[0]])}; convert these to one of {formats.NAMES}, or "
                "take the folder away"
            )
        super().__init__(root, names, np.concatenate(labels), classes)
        if empty:
            notes.append(f"{shown}: the class {empty[0]!r}{_and_more(empty)} has no images")
        if len(classes) == 1:
            notes.append(f"{shown} holds only one class, {classes[0]!r}")
        if len(left_out) > MOST_NOTES:
            notes.append(f"{shown}, {len(left_out):,} of its classes: {left_out_text(every)}")
        else:
            notes += [
                f"{shown}/{printable(name)}: {left_out_text(of)}" for name, of in left_out.items()
            ]
        if beside := files_in(root):
            notes.append(f"{shown}, beside the folders of classes: {left_out_text(beside)}")
        if not named and split == "val":
            remedy = "choose more yourself, as the folders train/CLASS and val/CLASS"
            notes += too_few(shown, len(names), remedy)
        self.notes = tuple(notes)


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _place(rest: str, split: str, training: bool) -> tuple[Path, str, bool, bool, list[str]]:
    """Finds a split in a folder: the folder with its classes; the split's name; whether the folder
    has that name (otherwise it is the root, and a hash makes the splits); whether the split is for
    training; and notes.

    Raises UserError: there is no such folder or split, or its layout is another one."""
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
        return top, chosen, False, chosen == "train", []
    existing = splits if meaning(split) else [*splits, *others]
    chosen = choose(shown, split, existing, training)
    trains = (meaning(chosen) or ("train" if training else "val")) == "train"
    notes = passed_over(printable(top), chosen, splits)
    if splits and trains and others:
        some = ", ".join(map(printable, others[:3])) + (" …" if others[3:] else "")
        notes.append(f"{printable(top)}: by their names no splits, and not read: {some}")
    return top / chosen, chosen, True, trains, notes


def folder_splits(rest: str) -> list[str]:
    """The splits of a folder: its folders that are named like splits, else `train` and `val`, which
    a hash makes."""
    root = Path(rest).expanduser()
    return (layout(root)[0] if root.is_dir() else []) or ["train", "val"]


class Table(Files):
    """`csv:FILE` with the columns `image` (a path, relative to the table's folder), `label` (a
    class, or several separated by `;`) and perhaps `split`. Without it, a tenth of each class is
    held out as `val`. Classes are the sorted names; if all are numbers, in the order of numbers."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        file = Path(rest).expanduser()
        every, splits = _read(rest)
        notes: list[str] = []
        if splits is None:
            chosen = choose(f"{file} (no column split)", split, ("train", "val"), classes is None)
            val = _held_out(every)
            rows = [row for row in every if (row.image in val) == (chosen == "val")]
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
            of_rows = {name for row in rows for name in row.classes}
            numbers = all(name.isdecimal() for name in of_rows)
            classes = sorted(of_rows, key=(lambda name: (int(name), name)) if numbers else None)
        number = {name: label for label, name in enumerate(classes)}
        names, widest = Names(), max(len(row.classes) for row in every)
        names.extend(row.image for row in rows)
        labels = np.full((len(rows), widest), -1, np.int32)
        for place, row in enumerate(rows):
            if unknown := [name for name in row.classes if name not in number]:
                raise UserError(
                    f"{file}: {printable(row.image)} has the class {unknown[0]!r}, which training "
                    "does not know"
                )
            labels[place, : len(row.classes)] = [number[name] for name in row.classes]
        super().__init__(file.parent, names, labels if widest > 1 else labels[:, 0], classes)
        self.notes = tuple(notes)


class Row(NamedTuple):
    """A line of a table."""

    image: str
    classes: list[str]
    split: str | None
    line: int


def table_splits(rest: str) -> list[str]:
    """The splits of a table: the values of its column, or `train` and `val` without one."""
    _, splits = _read(rest)
    return ["train", "val"] if splits is None else splits


def _read(rest: str) -> tuple[list[Row], list[str] | None]:
    """All rows of a table, and its splits if it has a column of them.

    Raises UserError: the file is not a table, or a row cannot be used, whatever its split is.
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
            columns = table.fieldnames or []
            if missing := sorted({"image", "label"} - set(columns)):
                raise UserError(
                    f"{file} has no column {missing[0]!r}: it has "
                    f"{', '.join(map(printable, columns or ['none']))}"
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
    return rows, in_order({str(row.split) for row in rows}) if "split" in columns else None


def _bounded(lines: TextIO, file: Path) -> Iterator[str]:
    """The lines of a text file. Raises UserError at a line of more than `LONGEST_LINE` characters,
    so that a file without line breaks does not fill the memory."""
    number = 0
    while line := lines.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"{file}, line {number} has more than {LONGEST_LINE:,} characters: it is no table "
                "of comma-separated values"
            )
        yield line


def _held_out(rows: list[Row]) -> set[str]:
    """The images in `val`: a tenth of each class. An image's class is its first label."""
    class_of = {row.image: row.classes[:1] for row in reversed(rows)}  # of its first row
    of_class = defaultdict[str, list[str]](list)
    for image, name in class_of.items():
        of_class["".join(name)].append(image)
    return set().union(*map(held_out, of_class.values()))


def _row(row: dict[str, Any], file: Path, line: int) -> Row:
    """Raises UserError: the row lacks a column or has more, its image is not a file name, or its
    label is a number but not a finite one."""
    for column, value in row.items():
        if column is None or value is None or (column in ("image", "split") and not value.strip()):
            problem = "more columns than the first line" if column is None else f"no {column}"
            raise UserError(f"{file}, line {line} has {problem}")
    if "\0" in row["image"]:
        raise UserError(f"{file}, line {line}: {printable(row['image'])!r} is no file's name")
    classes = [name.strip() for name in row["label"].split(";") if name.strip()]
    for name in classes:
        with contextlib.suppress(ValueError):  # it is no number
            if not math.isfinite(float(name)):
                raise UserError(f"{file}, line {line}: the label {name!r} is no class")
    split = row.get("split")
    return Row(row["image"], classes, split and split.strip(), line)
