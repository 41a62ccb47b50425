"""Where examples come from: random access by number, and what is known about each set.

A source gives `{"image": bytes or uint8 array, "label": int}` for a number, and says how many
examples and classes it has. Sources are named `digits`, `folder:PATH`, `synthetic`, `tfds:NAME`.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit_jax.errors import UserError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = ("train", "val", "validation", "test")


class Source(Protocol):
    """Random access to the examples of one split."""

    classes: list[str]
    channels: int
    notes: tuple[str, ...]  # what the user should hear of

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"image": bytes | uint8 [H, W, C], "label": int}`."""

    def describe(self, index: int) -> str:
        """The example's name for a message: a path where there is one."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a split, whether or not its data is here."""

    num_examples: int
    num_classes: int
    channels: int = 3


# TFDS-style sets by name: classes, and examples by split. ImageNet-21k (fall 2011, ViT paper
# section 4.1) and JFT-300M (18,291 classes, arXiv 1707.02968; private) have no public builder.
KNOWN = {
    "imagenet21k": (21_843, {"train": 14_197_122, "val": 102_400}),
    "jft300m": (18_291, {"train": 303_000_000, "val": 100_000}),
    "imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
    "cifar10": (10, {"train": 50_000, "test": 10_000}),
    "cifar100": (100, {"train": 50_000, "test": 10_000}),
    "oxford_iiit_pet": (37, {"train": 3680, "test": 3669}),
    "oxford_flowers102": (102, {"train": 1020, "validation": 1020, "test": 6149}),
}


def open_source(spec: str, split: str, classes: list[str] | None = None) -> Source:
    """The split of a source.

    Args:
      spec: `digits`, `folder:PATH`, `synthetic[:examples=N,classes=K,size=S]` or `tfds:NAME`.
      split: `train`, `val`, …
      classes: the names that labels count in, where they are known already (the training
        split's); a class that is none of them is refused.

    Raises UserError: no such source, folder, split or class, saying what would work.
    """
    kind, _, rest = spec.partition(":")
    if kind not in OPENERS:
        raise UserError(f"unknown data source {spec!r}: {nearest(kind, OPENERS)}")
    source = OPENERS[kind](rest, split, classes)
    if classes is not None and source.classes != classes:
        raise UserError(
            f"{spec} has other classes ({len(source.classes)}) than the training data "
            f"({len(classes)})"
        )
    return source


def facts(spec: str, split: str) -> Facts:
    """Sizes of a split, from the data where it is here and else from what is known of the set."""
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest in KNOWN and not _tfds_folders(rest):
        num_classes, splits = KNOWN[rest]
        if split not in splits:
            raise UserError(f"{spec} has no split {split!r}: it has {', '.join(splits)}")
        return Facts(splits[split], num_classes)
    source = open_source(spec, split)
    return Facts(len(source), len(source.classes), source.channels)


class Arrays:
    """Images held in memory: uint8 [N, H, W, C] and labels [N]."""

    notes: tuple[str, ...] = ()

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, classes: list[str]):
        self.name, self.images, self.labels, self.classes = name, images, labels, classes
        self.channels = images.shape[-1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return f"{self.name} example {index}"


def digits(rest: str, split: str, classes: list[str] | None) -> Arrays:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth of a class is held
    out as `val` (stratified, the same for everyone)."""
    from sklearn.datasets import load_digits

    _known_split("digits", split, ("train", "val"))
    data = load_digits()
    held_out = np.zeros(len(data.target), bool)
    for label in range(10):
        held_out[np.flatnonzero(data.target == label)[4::5]] = True
    chosen = held_out if split == "val" else ~held_out
    images = np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
    return Arrays("digits", images, data.target[chosen], [str(label) for label in range(10)])


class Synthetic:
    """Noise whose brightness depends on the label, made from the example's number."""

    notes: tuple[str, ...] = ()

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        sizes = {"examples": 1024, "classes": 10, "size": 256, "channels": 3}
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            if key not in sizes or not value.isdecimal() or int(value) < 1:
                options = ",".join(f"{k}={v}" for k, v in sizes.items())
                raise UserError(f"synthetic:{rest}: write it as synthetic:{options}")
            sizes[key] = int(value)
        _known_split("synthetic", split, ("train", "val"))
        self.first = 0 if split == "train" else 2**40
        self.num, self.size, self.channels = sizes["examples"], sizes["size"], sizes["channels"]
        self.classes = [str(label) for label in range(sizes["classes"])]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(self.first + index)
        label = int(rng.integers(len(self.classes)))
        low = 128 * label // len(self.classes)
        shape = (self.size, self.size, self.channels)
        return {"image": rng.integers(low, low + 128, shape, np.uint8), "label": label}

    def describe(self, index: int) -> str:
        return f"synthetic example {index}"


class Folder:
    """`PATH/SPLIT/CLASS/*`, or `PATH/CLASS/*` of which a tenth is held out as `val` by a hash of
    its name. Classes are the sorted folder names; file names are kept as one block of bytes."""

    channels = 3

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
            _known_split(f"folder:{rest} (CLASS/* without splits)", split, ("train", "val"))
        elif split not in inside:
            raise UserError(
                f"folder:{rest} has no split {split!r}: it has {', '.join(splits)} "
                "(--config.data.eval.split= leaves evaluation out)"
            )
        self.root = root if hashed else root / split
        found = inside if hashed else _folders(self.root)
        self.classes = found if classes is None else list(classes)
        extra = sorted(set(found) - set(self.classes))
        if extra:
            raise UserError(
                f"{self.root} has the class {extra[0]!r}"
                + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
                + f", which training does not know ({len(self.classes)} classes, such as "
                f"{', '.join(self.classes[:3])}): add it to the training split or take it out"
            )
        number = {name: label for label, name in enumerate(self.classes)}
        names, labels, ends, end, left_out = [], [], [], 0, 0
        for name in found:
            for file in _images(self.root / name):
                held_out = hashed and zlib.crc32(os.fsencode(f"{name}/{file}")) % 10 == 0
                if hashed and held_out != (split == "val"):
                    left_out += 1
                    continue
                encoded = os.fsencode(file)
                end += len(encoded)
                names.append(encoded)
                ends.append(end)
                labels.append(number[name])
        if not labels and left_out:
            raise UserError(
                f"{self.root} has {left_out} images, of which the hash of their names puts none in "
                f"{split!r}: make the folders train/CLASS and val/CLASS, or leave evaluation out "
                "with --config.data.eval.split="
            )
        if not labels:
            raise UserError(
                f"{self.root} holds no images ({', '.join(IMAGE_SUFFIXES[:4])} …) in folders of "
                "their classes"
            )
        self._names, self._labels = b"".join(names), np.asarray(labels, np.int32)
        images = np.bincount(self._labels, minlength=len(self.classes))
        self.notes = self._notes([name for name in found if not images[number[name]]])
        self._ends = np.asarray(ends, np.int64)

    def _notes(self, empty: list[str]) -> tuple[str, ...]:
        notes = []
        if empty:
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            notes.append(f"{self.root}: the class {empty[0]!r}{more} has no images")
        if len(self.classes) == 1:
            notes.append(f"{self.root} holds one class alone, {self.classes[0]!r}")
        return tuple(notes)

    def path(self, index: int) -> Path:
        """The file of an example."""
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return self.root / self.classes[self._labels[index]] / name

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.path(index).read_bytes(), "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        return str(self.path(index))


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """Image files below a class's folder, as sorted paths relative to it."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                found.append(name if inside == "." else os.path.join(inside, name))
    return sorted(found)


class Tfds:
    """A TFDS data set prepared as array_record, read without TensorFlow; bytes stay encoded."""

    channels = 3
    notes: tuple[str, ...] = ()

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        folders = _tfds_folders(rest)
        if not folders:
            root = _tfds_root()
            raise UserError(
                f"tfds:{rest} is not on this machine: expected its array_record files and "
                f"dataset_info.json in {root / rest}/VERSION/ (TFDS_DATA_DIR moves the root), or "
                "give a folder of images PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg as "
                "--config.data.train.source=folder:PATH --config.data.eval.split=val"
            )
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folders[-1])
        try:
            self._data = builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except (ValueError, NotImplementedError) as error:
            splits = ", ".join(builder.info.splits)
            raise UserError(f"tfds:{rest}, split {split!r}: it has {splits} ({error})") from error
        missing = {"image", "label"} - set(builder.info.features)
        if missing:
            raise UserError(
                f"tfds:{rest} has no feature {missing.pop()!r}: it is no classification set"
            )
        self._name = f"tfds:{rest} {split}"
        self.classes = list(builder.info.features["label"].names)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[index]
        return {"image": example["image"], "label": int(example["label"])}

    def describe(self, index: int) -> str:
        return f"{self._name} example {index}"


def _tfds_root() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _tfds_folders(name: str) -> list[Path]:
    if not name:
        return []
    return sorted(p.parent for p in (_tfds_root() / name).glob("**/dataset_info.json"))


def _known_split(what: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise UserError(f"{what} has no split {split!r}: it has {', '.join(splits)}")


OPENERS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "folder": Folder,
    "synthetic": Synthetic,
    "tfds": Tfds,
}
