"""Images that are files on disk, and folders of their classes. `tables.py` has tables of them."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_jax.calls import queried
from vit_jax.data import formats
from vit_jax.data.layout import (
    layout,
    refuse_crossed,
    refuse_flat,
    refuse_kaggle,
    refuse_no_classes,
)
from vit_jax.data.source import Source
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
from vit_jax.data.stored import numpy_header
from vit_jax.data.walking import files_in, first_bytes, folders_in, images_below, left_out_text
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes

NUMPY_HEADER = 2**14  # bytes, more than a header of NumPy has
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
    by a hash of its name. `?val=SHARE` holds out another share, also of the split of training.
    Classes are the sorted names of the folders."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        root, part, share, trains, notes = _place(rest, split, training=classes is None)
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
            if part.held is not None:
                val = held_out(paths, share)
                paths = [path for path in paths if (path in val) == part.held]
                elsewhere += len(images) - len(paths)
            names.extend(paths)
            labels.append(np.full(len(paths), number[name], np.int32))
        every = sum(left_out.values(), Counter[str]())
        if not len(names) and elsewhere:
            raise NoSplit(
                f"{shown} has {elsewhere} images, of which the hash of their names puts none in "
                f"{part.name!r}: make the folders train/CLASS and val/CLASS, or leave evaluation "
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
        if part.held:
            remedy = "choose more yourself, as the folders train/CLASS and val/CLASS"
            self.few = too_few(shown, len(names), remedy)
        self.notes = (*notes, *self.few)


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


class _Place(NamedTuple):
    """Where a split of a folder is: the folder that holds its classes, the part of it, the share
    that is held out, whether the split is for training, and notes."""

    root: Path
    part: Part
    share: Fraction | None
    trains: bool
    notes: list[str]


def _place(rest: str, split: str, training: bool) -> _Place:
    """Finds a split in a folder.

    Raises UserError: there is no such folder or split, or its layout is another one."""
    name, query = queried(f"folder:{rest}", ("val",))
    shown, share = printable(name), share_of(f"folder:{rest}", query)
    name = name.removeprefix("folder:")
    top = Path(name).expanduser()
    if not name or not top.is_dir():
        options = "; an option is written as ?val=0.1" if "?" in name else ""
        raise UserError(
            f"{shown}: there is no folder {printable(top.absolute())}; it should hold "
            f"SPLIT/CLASS/*.jpg or CLASS/*.jpg{options}"
        )
    splits, others = layout(top)
    if not splits and (meaning(split) or split not in others):
        refuse_kaggle(top)
        refuse_crossed(top, others)
        part = part_of(f"{shown} (CLASS/* without splits)", split, None, training, share)
        return _Place(top, part, share, part.name == "train", [])
    existing = splits if meaning(split) else [*splits, *others]
    try:
        part = part_of(shown, split, existing, training, share)
    except NoSplit:
        refuse_flat(top, split, others)
        raise
    trains = not part.held and (meaning(part.name) or ("train" if training else "val")) == "train"
    notes = passed_over(printable(top), part.name, splits)
    if splits and trains and others:
        some = ", ".join(map(printable, others[:3])) + (" …" if others[3:] else "")
        notes.append(f"{printable(top)}: by their names no splits, and not read: {some}")
    return _Place(top / str(part.of), part, share, trains, notes)


def folder_splits(rest: str) -> list[str]:
    """The splits of a folder: its folders that are named like splits, and `val` with `?val=SHARE`;
    else `train` and `val`, which a hash makes."""
    name, query = queried(f"folder:{rest}", ("val",))
    root = Path(name.removeprefix("folder:")).expanduser()
    found = layout(root)[0] if root.is_dir() else []
    made = ["val"] if "val" in query and "val" not in found else []
    return in_order([*found, *made]) if found else ["train", "val"]
