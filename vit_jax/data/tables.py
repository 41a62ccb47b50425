"""Tables of images: `csv:FILE`, or `csv:FOLDER` with a table for each split. Cells are separated by
commas, semicolons or tabs.

A line names an image, its class or classes, and perhaps its split. `columns.py` finds the columns.
"""

import csv
import itertools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from vit_jax.calls import queried
from vit_jax.data.columns import Columns, columns_of, separator_of
from vit_jax.data.files import Files, Names
from vit_jax.data.layout import tables_of_splits
from vit_jax.data.named_files import NamedFiles
from vit_jax.data.source import class_order
from vit_jax.data.splits import (
    NoSplit,
    Part,
    held_out,
    in_order,
    meaning,
    part_of,
    passed_over,
    share_of,
    too_few,
)
from vit_jax.errors import UserError, printable

LONGEST_LINE = 2**20  # characters in a table
KEYS = ("image", "label", "split", "root", "val")  # of a query
FLAGS = {"1": True, "true": True, "0": False, "false": False}  # in a column of one class


class Table(Files):
    """`csv:FILE` with columns of the images' names, their classes (one, or several separated by
    `;`; or a column of 0 and 1 for each class) and perhaps their splits. Without splits, a tenth of
    each class is held out as `val`. Images lie beside the table.

    Classes are the sorted names; if all are numbers, in the order of numbers; if each has a column,
    in the order of the columns. `?image=COLUMN&label=COLUMN&split=COLUMN` names columns,
    `root=FOLDER` says where the images lie, and `val=SHARE` is another share to hold out.
    """

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        options = _options(rest)
        table, rows, part, splits = _split(options, split, training=classes is None)
        file, every = printable(table.file), table.rows
        if part.held is not None:
            val = _held_out(rows, options.share)
            kept = [row for row in rows if (row.image in val) == part.held]
            if not kept:
                raise NoSplit(
                    f"{file} has {len(rows)} rows, of which the hash of their names puts none in "
                    f"{part.name!r}: add a column split, or leave evaluation out with "
                    "--config.data.eval.split="
                )
            rows = kept
        notes = [*table.notes, *passed_over(file, part.name, splits or ())]
        if part.held:
            self.few = too_few(file, len(rows), "choose them yourself in a column split")
        if classes is None:
            classes = table.columns.classes or class_order(n for row in rows for n in row.classes)
        number = {name: label for label, name in enumerate(classes)}
        widest = max(len(row.classes) for row in every)
        labels = np.full((len(rows), widest), -1, np.int32)
        for place, row in enumerate(rows):
            if unknown := [name for name in row.classes if name not in number]:
                raise UserError(
                    f"{file}: {printable(row.image)} has the class {unknown[0]!r}, which training "
                    "does not know"
                )
            labels[place, : len(row.classes)] = [number[name] for name in row.classes]
        names = Names()
        names.extend(_found(table, rows))
        super().__init__(table.root, names, labels if widest > 1 else labels[:, 0], classes)
        self.notes = (*notes, *self.few)


class Row(NamedTuple):
    """A line of a table."""

    image: str
    classes: list[str]
    split: str | None
    line: int


class Options(NamedTuple):
    """What the name of a table says."""

    spec: str  # for messages
    path: Path
    query: dict[str, str]
    share: Fraction | None  # to hold out


class Read(NamedTuple):
    """All rows of a table."""

    file: Path
    root: Path  # where the images lie
    columns: Columns
    rows: list[Row]
    splits: list[str] | None  # None if it has no column of them
    notes: tuple[str, ...]


def _split(
    options: Options, split: str, training: bool
) -> tuple[Read, list[Row], Part, list[str] | None]:
    """The table of a split, its rows in the split or in what the split is held out of, which part
    of the source that is, and the source's splits (None if it has none).

    Raises UserError: there is no such split, or the table cannot be read.
    """
    what, files = printable(options.path), _tables(options)
    if files is not None:
        part = part_of(what, split, list(files), training, options.share)
        table = _read(options, files[str(part.of)])
        return table, table.rows, part, list(files)
    table = _read(options, options.path)
    what += " (no column split)" if table.splits is None else ""
    part = part_of(what, split, table.splits, training, options.share)
    return table, [row for row in table.rows if part.of in (None, row.split)], part, table.splits


def table_splits(rest: str) -> list[str]:
    """The splits of a table: the values of its column, and `val` with `?val=SHARE`; or `train` and
    `val` without a column. Of a folder, the names of its tables."""
    options = _options(rest)
    files = _tables(options)
    splits = list(files) if files is not None else _read(options, options.path).splits
    if splits is None:
        return ["train", "val"]
    made = ["val"] if options.share and not any(meaning(n) == "val" for n in splits) else []
    return in_order([*splits, *made])


def _options(rest: str) -> Options:
    """The path of a table and its options. Raises UserError: there is no such option."""
    spec = f"csv:{rest}"
    name, query = queried(spec, KEYS)
    share = share_of(spec, query)
    for key, value in query.items():
        if not value.strip():
            raise UserError(f"{printable(spec)}: {key}= names nothing")
    return Options(spec, Path(name.removeprefix("csv:")).expanduser(), query, share)


def _tables(options: Options) -> dict[str, Path] | None:
    """The tables of a folder by their splits; None if the path is that of a table.

    Raises UserError: there is no such file, or the folder has no such tables.
    """
    path, spec = options.path, printable(options.spec)
    if path.is_file():
        return None
    if not path.is_dir():
        written = "; an option is written as ?label=COLUMN" if "?" in path.name else ""
        raise UserError(
            f"{spec}: there is no file {printable(path.absolute())}; it should have the columns "
            f"image, label and, if there are splits, split{written}"
        )
    tables = tables_of_splits(path)
    if not tables:
        raise UserError(
            f"{spec} is a folder without train.csv, val.csv … or train/*.csv, valid/*.csv …: name "
            "a table, csv:FILE"
        )
    return tables


def _read(options: Options, file: Path) -> Read:
    """Reads a table.

    Raises UserError: the file is not a table, its columns are not to be found, or a row cannot be
    used, whatever its split is.
    """
    spec, query = options.spec, options.query
    root = file.parent / Path(query.get("root", "")).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{printable(spec)}: there is no folder {printable(root.absolute())}; root= is an "
            "absolute folder, or one that begins at the table's"
        )
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            columns, rows = _rows(spec, file, _bounded(lines, file), NamedFiles(root), query)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{printable(file)} is no table of comma-separated values in UTF-8: {error}; save it "
            "as UTF-8"
        ) from error
    except csv.Error as error:
        raise UserError(f"{file} is no table of comma-separated values: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    blank = [row.line for row in rows if not row.classes]
    if blank and all(len(row.classes) < 2 for row in rows):
        more = f" (as {len(blank) - 1:,} more have)" if blank[1:] else ""
        raise UserError(
            f"{file}, line {blank[0]} has no label{more}, and every other row has exactly one: "
            "label it or take it out"
        )
    splits = None if columns.split is None else in_order({str(row.split) for row in rows})
    notes = (f"{printable(file)}: {columns.said}",) if columns.said else ()
    return Read(file, root, columns, rows, splits, notes)


def _rows(
    spec: str, file: Path, lines: Iterator[str], images: NamedFiles, query: dict[str, str]
) -> tuple[Columns, list[Row]]:
    """The columns of a table and its rows. The first row helps to find the columns."""
    head = next(lines, "")
    reader = csv.reader(itertools.chain([head], lines), delimiter=separator_of(head))
    names = next(reader, [])
    rows = ((cells, reader.line_num) for cells in reader if cells)
    first = next(rows, None)
    columns = columns_of(spec, file, names, first[0] if first else [], images, query)
    if first is None:
        raise NoSplit(f"{file} has no rows, and so no split")
    return columns, [_row(cells, names, columns, file, line)
                     for cells, line in itertools.chain([first], rows)]  # fmt: skip


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


def _row(cells: list[str], names: list[str], columns: Columns, file: Path, line: int) -> Row:
    """Raises UserError: the row lacks a column or has more, its image is not a file name, its label
    is a number but not a finite one, or a column of one class holds neither 0 nor 1."""
    if len(cells) > len(names):
        raise UserError(f"{file}, line {line} has more columns than the first line")
    lacking = names[len(cells) :]
    for place in (columns.image, columns.split):
        if place is not None and not lacking and not cells[place].strip():
            lacking = [names[place]]
    if lacking:
        raise UserError(f"{file}, line {line} has no {printable(lacking[0])}")
    image = cells[columns.image]
    if "\0" in image:
        raise UserError(f"{file}, line {line}: {printable(image)!r} is no file's name")
    split = None if columns.split is None else cells[columns.split].strip()
    if columns.classes:
        places = zip(columns.classes, columns.label, strict=True)
        classes = [name for name, place in places if _flag(cells[place], name, file, line)]
        return Row(image, classes, split, line)
    classes = [name.strip() for name in cells[columns.label[0]].split(";") if name.strip()]
    for name in classes:
        if not math.isfinite(_number(name)):
            raise UserError(f"{file}, line {line}: the label {name!r} is no class")
    return Row(image, classes, split, line)


def _number(text: str) -> float:
    """The number that a text is; 0 if it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _flag(text: str, name: str, file: Path, line: int) -> bool:
    """Whether an image has the class of a column. Raises UserError at other values than 0 and 1."""
    text = text.strip().lower()
    flag = FLAGS.get(text[:-2] if text.endswith(".0") else text)
    if flag is None:
        raise UserError(
            f"{file}, line {line}: the column {printable(name)!r} holds {printable(text)!r}; a "
            "column for each class holds 0 or 1. If one column has the classes, name it: "
            "?label=COLUMN"
        )
    return flag


def _held_out(rows: list[Row], share: Fraction | None) -> set[str]:
    """The images in `val`: a share of each class. An image's class is its first label."""
    class_of = {row.image: row.classes[:1] for row in reversed(rows)}  # of its first row
    of_class = defaultdict[str, list[str]](list)
    for image, name in class_of.items():
        of_class["".join(name)].append(image)
    return set().union(*(held_out(images, share) for images in of_class.values()))


def _found(table: Read, rows: Iterable[Row]) -> list[str]:
    """The files of the images, relative to the root.

    Raises UserError: images are not there, or a name without an ending may be several.
    """
    images = NamedFiles(table.root)
    found, missing = list[str](), list[str]()
    for row in rows:
        files = images.find(row.image)
        if len(files) > 1:
            raise UserError(
                f"{table.file}, line {row.line}: the image {printable(row.image)} may be "
                f"{' or '.join(printable(os.path.basename(name)) for name in files)}: write its "
                "ending"
            )
        (found if files else missing).append(files[0] if files else row.image)
    if not missing:
        return found
    first, root = printable(missing[0]), printable(table.root.absolute())
    these = f"{len(missing):,} of its {len(missing) + len(found):,} images"
    these += f" are not in {root}, such as" if missing[1:] else f" is not in {root}:"
    text = f"{printable(table.file)}: {these} {first}: "
    if found:
        raise UserError(text + "put them there, or take their rows out")
    folder = images.elsewhere(missing[0])
    raise UserError(
        f"{text}say where they lie: ?root={printable(folder or 'FOLDER')}"
        + ("" if folder else ", or which column names them: ?image=COLUMN")
    )
