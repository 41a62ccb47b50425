"""Which column of a table is what: as options say, else by the names that are usual."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from vit_jax.calls import and_queried
from vit_jax.data.named_files import NamedFiles
from vit_jax.data.splits import meaning
from vit_jax.errors import UserError, printable

SEPARATORS = ",;\t"
# Names of columns, without what is no letter or digit, in lower case. The first of each is taken
# before all others.
USUAL = {
    "image": (
        "image", "images", "imagefile", "imagefilename", "imageid", "imageindex", "imagename",
        "imagepath", "file", "filename", "filenames", "filepath", "filepaths", "files", "fname",
        "id", "idcode", "img", "imgfile", "imgid", "imgname", "imgpath", "name", "path", "paths",
        "photo", "picture",
    ),
    "label": (
        "label", "labels", "labelname", "labelid", "category", "categoryid", "categoryname",
        "class", "classes", "classid", "classlabel", "classname", "diagnosis", "species", "tag",
        "tags", "target", "y",
    ),
    "split": ("split", "splits", "dataset", "partition", "phase", "set", "subset", "usage"),
}  # fmt: skip
BINARY = {"0", "1", "0.0", "1.0", "true", "false"}  # in a column of one class


class Columns(NamedTuple):
    """The numbers of the columns. `label` is one column, or one for each of `classes`. `said` is
    what the user should hear of how they were found."""

    image: int
    label: list[int]
    split: int | None
    classes: list[str] | None
    said: str


def separator_of(head: str) -> str:
    """What separates the columns of a table: what makes most of them of its first line, a comma if
    it alone makes image and label."""

    def columns(separator: str) -> list[str]:
        return next(csv.reader([head], delimiter=separator), [])

    if {"image", "label"} <= set(columns(",")):
        return ","
    return max(SEPARATORS, key=lambda separator: len(columns(separator)))


def columns_of(
    spec: str, file: Path, names: list[str], first: list[str], images: NamedFiles,
    query: dict[str, str],
) -> Columns:  # fmt: skip
    """Finds the columns of a table.

    Args:
      spec, file: the source and its table, for messages.
      names: the names of the columns.
      first: the cells of the first row.
      images: the files that may be named.
      query: the options `image`, `label` and `split`; `label=A,B` is a column for each class.

    Raises UserError: a column is not there, or it is not clear which one is meant.
    """
    finder = _Finder(spec, file, names, first, images, query)
    image, label, split = (finder.asked(kind) for kind in ("image", "label", "split"))
    split = split or finder.split([*image, *label])
    passed_over: list[int] = []
    if finder.plain and split and not {"split"} & {*query, names[split[0]]}:
        split, passed_over = [], split  # such tables never had another one
    image = image or finder.image([*label, *split])
    label = label or finder.label([*image, *split])
    texts = {
        "image": (image, "images from the column {}"),
        "label": (label, "a column for each class: {}" if label[1:] else "classes from {}"),
        "split": (split, "splits from {}"),
    }
    said = [
        text.format(_some([finder.names[place] for place in places]))
        for kind, (places, text) in texts.items()
        if places and kind not in query and [names[place] for place in places] != [kind]
    ]
    said += [
        f"of {names.count(kind)} columns {kind} the last one is read"
        for kind in texts if kind not in query and names.count(kind) > 1
    ]  # fmt: skip
    if passed_over:
        name = printable(finder.names[passed_over[0]])
        said.append(f"the column {name} seems to hold splits and is not read; ?split={name} does")
    classes = [finder.names[place] for place in label] if label[1:] else None
    return Columns(image[0], label, split[0] if split else None, classes, ", ".join(said))


class _Finder:
    """What `columns_of` asks of a table's first lines. Each answer is a list of columns."""

    def __init__(self, spec: str, file: Path, names: list[str], first: list[str],
                 images: NamedFiles, query: dict[str, str]):  # fmt: skip
        self.spec, self.written, self.first = spec, names, first
        self.names = [name.strip() for name in names]
        self.plain = {"image", "label"} <= set(names)
        self.images, self.query = images, query
        self.file = printable(file)
        self.has = f"it has {_some(self.names) if names else 'none'}"

    def cell(self, place: int) -> str:
        """A cell of the first row."""
        return self.first[place].strip() if place < len(self.first) else ""

    def asked(self, kind: str) -> list[int]:
        """What an option names."""
        if kind not in self.query:
            return []
        text = self.query[kind].strip()
        several = text not in self.names and kind == "label"
        wanted = [name.strip() for name in text.split(",")] if several else [text]
        for name in wanted:
            if (count := self.names.count(name)) != 1:
                problem = "the column {!r} twice" if count else "no column {!r}"
                shown = problem.format(printable(name))
                raise UserError(f"{self.file} has {shown}: {self.has}")
        return [self.names.index(name) for name in wanted]

    def usual(self, kind: str, others: list[int]) -> list[int]:
        """The column with the name of its kind, or else those with another usual name, without
        those that are taken for something else."""
        left = [n for n in range(len(self.names)) if n not in others]
        if exact := [n for n in left if self.written[n] == kind]:
            return exact[-1:]
        plain = [re.sub(r"[\W_]+", "", name).lower() for name in self.names]
        return [n for n in left if plain[n] in USUAL[kind]]

    def split(self, others: list[int]) -> list[int]:
        """The column `split`; else that of another usual name whose first cell means a split."""
        usual = self.usual("split", others)
        means = [n for n in usual if self.written[n] == "split" or meaning(self.cell(n))]
        if means[1:] and not self.plain:
            self.refuse("split", means)
        return means[:1]

    def image(self, others: list[int]) -> list[int]:
        """The column of a usual name. If there are several, or none, the one whose first cell is an
        image that is there."""
        usual = self.usual("image", others)
        if len(usual) == 1:
            return usual
        among = usual or [n for n in range(len(self.names)) if n not in others]
        there = [n for n in among if self.cell(n) and self.images.find(self.cell(n))]
        if len(there) == 1:
            return there
        self.refuse("image", there or usual)

    def label(self, others: list[int]) -> list[int]:
        """The column of a usual name; else the only one that is left; else all that are left, if
        they hold 0 and 1."""
        usual = self.usual("label", others)
        if len(usual) == 1:
            return usual
        left = [n for n, name in enumerate(self.names) if n not in others and name]
        binary = [n for n in left if self.cell(n).lower() in BINARY]
        if not usual and left and (len(left) == 1 or len(binary) == len(left)):
            return left
        self.refuse("label", usual)

    def refuse(self, kind: str, candidates: Sequence[int]) -> NoReturn:
        """Raises UserError: there is no column of a kind, or there are several."""
        write = " or ".join(
            and_queried(self.spec, kind, self.names[n].replace("%", "%25").replace("&", "%26"))
            for n in candidates[:3]
        )
        if candidates:
            raise UserError(
                f"{self.file} has {len(candidates)} columns that may be its {kind} "
                f"({_some([self.names[n] for n in candidates])}): {self.has}: write "
                f"{printable(write)}"
            )
        also = ", or label=A,B,C if each class has a column of 0 and 1" if kind == "label" else ""
        raise UserError(
            f"{self.file} has no column {kind!r} nor another usual name of it: {self.has}: write "
            f"{printable(and_queried(self.spec, kind, 'COLUMN'))}{also}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) or "''" for name in names[:20])
    return shown + (f" and {len(names) - 20:,} more" if names[20:] else "")
