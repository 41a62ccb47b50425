"""TFDS's data sets, prepared as array_record and read without TensorFlow: `tfds:NAME`.

A set has labels, or objects: a sequence of boxes with classes. Images stay encoded.
"""

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vit_jax.calls import and_queried, queried
from vit_jax.data import box_formats
from vit_jax.data.prepared import BrokenSet, check_shards, open_builder, reason
from vit_jax.data.source import MAX_LABELS, Source
from vit_jax.data.splits import choose, in_order
from vit_jax.data.stored import stored_size
from vit_jax.data.walking import with_progress
from vit_jax.errors import UserError, printable
from vit_jax.user_code import imported

R = TypeVar("R")
KEYS = ("label", "objects", "category", "boxes", "most")  # of a query
TOGETHER = 64  # examples that are read at a time to count boxes
LABELS = ["label", "labels"]  # features
FILE_NAMES = ("file_name", "image/filename")  # features


def open_split(rest: str, split: str, classes: list[str] | None) -> Source:
    """Opens `NAME[/CONFIG][:VERSION]`, or the set of a builder of the user's own,
    `my_package.my_module:Builder`.

    It is read as boxes if its feature `objects` has some, unless `?label=FEATURE` names a feature
    with labels. `?objects=FEATURE` is another one with boxes, `category=` the class of an object,
    `boxes=` their format, and `most=` the number of objects of an image, at most.
    """
    import tensorflow_datasets as tfds

    spec = f"tfds:{rest}"
    name, query = queried(spec, KEYS)
    rest = name.removeprefix("tfds:")
    builder = prepared_builder(rest)
    if builder is None:
        command = f"vit data prepare {name}"
        if rest.startswith("imagenet"):
            command = f"vit data prepare {rest} --from=TARS"
        raise UserError(
            f"{name} is not on this machine: expected its array_record files and "
            f"dataset_info.json in {expected_folder(rest)}/ (TFDS_DATA_DIR moves the root), "
            f"which `{command}` makes; or give a folder of images PATH/train/CLASS/*.jpg and "
            "PATH/val/CLASS/*.jpg as --config.data.train.source=folder:PATH "
            "--config.data.eval.split=val"
        )
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise BrokenSet(f"{spec}: its features are {features}, not a dictionary")
    labels = [name for name in LABELS if name in features]
    boxed = "objects" in query or box_formats.has_objects(_fields(features, "objects"), labels)
    boxed = boxed and "label" not in query
    return (Boxed if boxed else Labelled)(spec, builder, split, classes is None, query)


class Tfds(Source):
    """A split of a prepared set. `training` says what a split of an unknown name is for."""

    def __init__(self, spec: str, builder: Any, split: str, training: bool):
        import tensorflow_datasets as tfds

        features, splits = builder.info.features, builder.info.splits
        kind = builder.info.file_format.value
        if kind != "array_record":
            raise UserError(
                f"{spec}: its files are {kind}: `vit data prepare {spec.partition('?')[0]}` makes "
                "array_record of them"
            )
        lacks = f"{spec}, split {split!r}"
        parts = [part.partition("[") for part in split.split("+")]
        split = "+".join(
            base.replace(base.strip(), choose(spec, base.strip(), splits, training, lacks))
            + bracket + part for base, bracket, part in parts
        )  # fmt: skip
        named = re.findall(r"[\w.]+", split)
        check_shards(spec, [of for name, of in splits.items() if name in named])
        encoded = isinstance(features["image"], tfds.features.Image)
        decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
        try:
            self._data = builder.as_data_source(split=split, decoders=decoders)
        except Exception as error:  # TFDS may raise anything about a wrong split
            raise UserError(
                f"{spec}, split {split!r}: it has {', '.join(in_order(splits))} ({reason(error)})"
            ) from error
        try:
            empty = not len(self._data)
        except ValueError:  # a slice that ends before it begins
            empty = True
        if empty:
            raise UserError(f"{spec}, split {split!r}, has no examples")
        self._spec, self.title = spec, f"{spec} {split}"
        # A prepared data set is identified by its version, because the root folder may change.
        self.names_hash = f"{builder.info.full_name} {split} {len(self._data)}"
        self.channels = (features["image"].shape or (3,))[-1] or 3

    def _read(self, index: int) -> dict[str, Any]:
        """An example as TFDS gives it."""
        return self._read_by(lambda: self._data[index], index)

    def _read_all(self) -> Iterator[dict[str, Any]]:
        """All examples in order, many at a time, which takes less time on slow disks."""
        count = len(self)
        for first in range(0, count, TOGETHER):
            some = range(first, min(first + TOGETHER, count))
            yield from self._read_by(functools.partial(self._data.__getitems__, some), first)

    def _read_by(self, read: Callable[[], R], index: int) -> R:
        try:
            return read()
        except Exception as error:  # array_record and parsers may raise anything
            raise BrokenSet(
                f"{super().describe(index)} cannot be read, the set is damaged "
                f"({reason(error)}); fetch or prepare it again"
            ) from error

    def describe(self, index: int) -> str:
        example = self._read(index)
        name = next(
            (example[key].decode(errors="replace") for key in FILE_NAMES if key in example), ""
        )
        return super().describe(index) + (f" ({printable(name)})" if name else "")


class Labelled(Tfds):
    """A set with a class of each image, or several."""

    def __init__(self, spec: str, builder: Any, split: str, training: bool, query: dict[str, str]):
        import tensorflow_datasets as tfds

        features = builder.info.features
        asked = [query["label"]] if "label" in query else LABELS
        label = next((name for name in asked if name in features), None)
        if label is None or "image" not in features:
            raise UserError(
                f"{spec} has no feature {'image' if label else asked[0]!r}: it is no "
                f"classification set (it has {', '.join(sorted(features))})"
            )
        super().__init__(spec, builder, split, training)
        self._label, of = label, features[label]
        self._several = not isinstance(of, tfds.features.ClassLabel)
        of_one = getattr(of, "feature", of) if self._several else of
        if getattr(of_one, "names", None) is None:
            raise UserError(f"{spec}: its feature {label!r} names no classes ({of})")
        self.classes = list(of_one.names)
        self.max_labels = MAX_LABELS if self._several else 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._read(index)
        label = example[self._label]
        labels = [int(number) for number in label] if self._several else int(label)
        return {"image": example["image"], "label": labels}


class Boxed(Tfds):
    """A set with objects. All examples are read once to count and check their boxes, unless
    `most` says how many an image has."""

    def __init__(self, spec: str, builder: Any, split: str, training: bool, query: dict[str, str]):
        features = builder.info.features
        self._objects = query.get("objects", "objects")
        fields = _fields(features, self._objects)
        if "bbox" not in fields or "image" not in features:
            lacks = "image" if "bbox" in fields else f"{self._objects} with bbox"
            raise UserError(f"{spec} has no feature {lacks}: it has {', '.join(sorted(features))}")
        named = {name: of.names for name, of in fields.items() if getattr(of, "names", None)}
        self._category = box_formats.category_of(spec, query, list(named))
        self.classes = list(named[self._category])
        stated = getattr(fields["bbox"], "bbox_format", None)  # None in sets of older versions
        usual = stated.value.lower() if stated else "rel_yxyx"
        self._how = box_formats.format_of_query(spec, query, usual)
        super().__init__(spec, builder, split, training)
        if "most" in query:
            most = query["most"]
            if not most.isdecimal() or not int(most):
                raise UserError(f"{spec}: most={most} must be a whole number from 1")
            self.max_objects = int(most)
            self.notes = (
                f"{self.title}: boxes are taken as they come, because most={most} is given; those "
                "that cannot be learned are left out",
            )
        else:
            self._look_through()

    def _look_through(self) -> None:
        rows = with_progress(self._read_all(), len(self), "counting boxes")
        other = and_queried(self._spec, "boxes", "FORMAT")
        survey = box_formats.Survey(self.title, self._how, other)
        survey.add_read(rows, self._annotation)
        self.max_objects = survey.most
        self.notes = (
            *survey.finish(),
            f"{self.title}: all examples were read to count their boxes; "
            f"{and_queried(self._spec, 'most', survey.most)} opens the set without reading",
        )

    def _annotation(self, index: int, example: dict[str, Any]) -> box_formats.Annotation:
        image, objects = example["image"], example[self._objects]
        size = stored_size(image) if isinstance(image, bytes) else image.shape[:2]
        try:
            classes = [int(number) for number in objects[self._category]]
            if wrong := [number for number in classes if not 0 <= number < len(self.classes)]:
                last = len(self.classes) - 1
                raise ValueError(f"an object has the class {wrong[0]}, they end at {last}")
            boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
            return box_formats.of_fields(size, objects, boxes, classes)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.describe(index)}: {printable(error)}") from error

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._read(index)
        one = box_formats.checked(self._annotation(index, example), self._how, Counter())
        return {"image": example["image"], "objects": box_formats.objects_of(one)}


def _fields(features: Any, name: str) -> dict[str, Any]:
    """The features of one object, by name, if `name` is a sequence of objects; else none."""
    inside: Any = getattr(features[name], "feature", None) if name in features else None
    return dict(inside.items()) if hasattr(inside, "items") else {}


def splits(rest: str) -> list[str]:
    """The splits of a data set on this machine; `train` of another one."""
    builder = prepared_builder(rest.partition("?")[0])
    return ["train"] if builder is None else in_order(builder.info.splits)


def prepared_builder(rest: str) -> Any:
    """TFDS's builder of a data set on this machine; None if it is not here. Raises UserError: it is
    damaged, or names features that are not TFDS's own."""
    folder = prepared_folder(rest)
    package = rest.partition(".")[0] if names_builder(rest) else ""
    return None if folder is None else open_builder(f"tfds:{rest}", folder, package)


def tfds_root() -> Path:
    """The folder of TFDS's data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def names_builder(rest: str) -> bool:
    """Whether this is `my_package.my_module:Builder` rather than NAME[/CONFIG][:VERSION]."""
    _, _, last = rest.partition(":")
    return last.partition("/")[0].isidentifier()


def expected_folder(rest: str, root: Path | None = None) -> Path:
    """The folder for NAME[/CONFIG][:VERSION], or for the data set of a builder. Raises UserError:
    the builder cannot be imported or made."""
    root = root or tfds_root()
    if not names_builder(rest):
        name, _, version = rest.partition(":")
        return root / name / (version or "VERSION")
    path, _, config = rest.partition("/")
    make = imported(path, "a TFDS builder")
    try:
        return Path(make(config=config or None, data_dir=str(root)).data_path)
    except Exception as error:  # a builder may raise anything
        raise UserError(f"tfds:{rest} cannot be made: {reason(error)}") from error


def prepared_folder(rest: str, root: Path | None = None) -> Path | None:
    """The folder of a prepared data set, of its last version if none is named; or None."""
    if not rest:
        return None
    place = expected_folder(rest, root)
    if place.name != "VERSION":
        return place if (place / "dataset_info.json").is_file() else None
    versions = [info.parent for info in place.parent.glob("**/dataset_info.json")]

    def number(folder: Path) -> list[int]:  # 1.10.0 comes after 1.9.0
        return [int(part) if part.isdecimal() else -1 for part in folder.name.split(".")]

    return max(versions, key=number, default=None)
