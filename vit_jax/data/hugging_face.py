"""Sets of Hugging Face's package `datasets`: `hf:NAME`, or `hf:FOLDER` of `save_to_disk`.

A set has a column of labels, or one of objects with boxes. Images stay encoded.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from vit_jax.calls import and_queried, queried
from vit_jax.data import box_formats
from vit_jax.data.source import MAX_LABELS, Source
from vit_jax.data.splits import choose, in_order
from vit_jax.data.stored import stored_size
from vit_jax.data.walking import with_progress
from vit_jax.errors import UserError, printable

KEYS = ("config", "image", "label", "objects", "category", "boxes")  # of a query


def open_split(rest: str, split: str, classes: list[str] | None) -> Source:
    """Opens `NAME` or `FOLDER`. `?config=…&image=…&label=…` chooses if several are possible.

    It is read as boxes if its column `objects` has some, unless `?label=COLUMN` names a column with
    labels. `?objects=COLUMN` is another one with boxes, `category=` the class of an object, and
    `boxes=` their format.
    """
    loaded, query = _load(rest)
    split = choose(f"hf:{rest}", split, loaded, classes is None)
    features = loaded[split].features
    labels = [name for name in ("label",) if name in features]
    boxed = "objects" in query or box_formats.has_objects(_fields(features, "objects"), labels)
    boxed = boxed and "label" not in query
    return (Boxed if boxed else Labelled)(rest, split, loaded[split], query, classes)


class HuggingFace(Source):
    """The images of a split."""

    def __init__(self, rest: str, split: str, data: Any, query: dict[str, str]):
        import datasets

        self._spec, self.title, self._query = f"hf:{rest}", f"hf:{rest} {split}", query
        self._image = self._column(data, "image", datasets.Image)
        self._data = data.cast_column(self._image, datasets.Image(decode=False))

    def _column(self, data: Any, what: str, kind: type) -> str:
        """The column that the query names, the usual one, or the only one of its kind."""
        import datasets

        fitting = [name for name, feature in data.features.items()
                   if isinstance(getattr(feature, "feature", feature), kind)]  # fmt: skip
        name = self._query.get(what, what)
        if what == "label" and isinstance(data.features.get(name), datasets.Value):
            return name
        if what not in self._query and what not in fitting and len(fitting) == 1:
            name = fitting[0]
        if name not in fitting:
            raise UserError(
                f"{self._spec} needs ?{what}=COLUMN, one of "
                f"{', '.join(fitting) or 'none there is'} (its columns: "
                f"{', '.join(data.features)}; a {kind.__name__} is wanted)"
            )
        return name

    def _encoded(self, example: dict[str, Any]) -> bytes:
        image = example[self._image]
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def _hash(self, *known: object) -> str:
        """Of what is known of the examples. The package's fingerprint is another one in each of its
        versions."""
        text = json.dumps([len(self._data), self.classes, *known]).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()


class Labelled(HuggingFace):
    """A set with a class of each image, or several: a `ClassLabel`, a list of them, or values."""

    def __init__(
        self, rest: str, split: str, data: Any, query: dict[str, str], classes: list[str] | None
    ):
        import datasets

        super().__init__(rest, split, data, query)
        self._label = self._column(data, "label", datasets.ClassLabel)
        label = data.features[self._label]
        self._number: dict[Any, int] | None = None
        self._several = not isinstance(label, datasets.ClassLabel | datasets.Value)
        self.max_labels = MAX_LABELS if self._several else 1
        if isinstance(label, datasets.Value):  # its values are the classes
            values = sorted(value for value in data.unique(self._label) if value is not None)
            self.classes = classes or [str(value) for value in values]
            self._number = {name: number for number, name in enumerate(self.classes)}
        else:
            self.classes = list((label.feature if self._several else label).names)
        self.names_hash = self._hash()
        self._check_labels()

    def _check_labels(self) -> None:
        """Raises UserError at the first label that is empty or not the number of a class."""
        column = self._data.select_columns([self._label]).with_format("arrow")[:][self._label]
        for index, label in enumerate(column.to_pylist()):
            for value in label if self._several and label is not None else [label]:
                if value is None or (isinstance(value, str) and not value.strip()):
                    raise UserError(f"{self.describe(index)} has no label: label it or take it out")
                if self._number is None and not 0 <= value < len(self.classes):
                    raise UserError(
                        f"{self.describe(index)} has the label {value}: labels are whole numbers "
                        f"from 0 to {len(self.classes) - 1}"
                    )

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[int(index)]
        data, label = self._encoded(example), example[self._label]
        if self._number is not None:
            if str(label) not in self._number:
                raise UserError(
                    f"{self.describe(index)} has the class {label!r}, which training does not know"
                )
            label = self._number[str(label)]
        return {"image": data, "label": label}


class Boxed(HuggingFace):
    """A set with objects, whose classes are a `ClassLabel` or values. The size of an image comes
    from the columns `width` and `height`, or from its header."""

    def __init__(
        self, rest: str, split: str, data: Any, query: dict[str, str], classes: list[str] | None
    ):
        import datasets

        super().__init__(rest, split, data, query)
        self._objects = query.get("objects", "objects")
        self._fields = _fields(data.features, self._objects)
        if "bbox" not in self._fields:
            raise UserError(
                f"{self._spec} has no column {self._objects!r} of objects with bbox: its columns "
                f"are {', '.join(data.features)}"
            )
        kinds = datasets.ClassLabel | datasets.Value
        fitting = [name for name, feature in self._fields.items() if isinstance(feature, kinds)]
        self._category = box_formats.category_of(self._spec, query, fitting)
        self._how = box_formats.format_of_query(self._spec, query, "xywh")
        sides = ("height", "width")
        self._sides = sides if all(side in data.features for side in sides) else ()
        feature = self._fields[self._category]
        if isinstance(feature, datasets.ClassLabel):
            self.classes = list(feature.names)
            self._number: dict[Any, int] = {n: n for n in range(len(self.classes))}
        else:
            rows = self._data.select_columns([self._objects])
            found = {value for row in rows for value in self._of(row).get(self._category, ())}
            self.classes = classes or [str(value) for value in sorted(found - {None})]
            self._number = {name: number for number, name in enumerate(self.classes)}
        self._look_through()

    def _look_through(self) -> None:
        rows = self._data.select_columns([self._objects, *(self._sides or [self._image])])
        other = and_queried(self._spec, "boxes", "FORMAT")
        survey = box_formats.Survey(self.title, self._how, other)
        survey.add_read(with_progress(rows, len(rows), "counting boxes"), self._annotation)
        self.notes, self.max_objects = survey.finish(), survey.most
        self.names_hash = self._hash(survey.digest)

    def _of(self, example: dict[str, Any]) -> dict[str, list[Any]]:
        """The objects of an example, field by field. Sets have lists of objects or of fields."""
        objects = example[self._objects]
        if isinstance(objects, list):
            return {name: [one[name] for one in objects] for name in self._fields}
        return {name: values for name, values in (objects or {}).items() if values is not None}

    def _annotation(self, index: int, example: dict[str, Any]) -> box_formats.Annotation:
        objects = self._of(example)
        try:
            height, width = (
                (int(example[side]) for side in self._sides) if self._sides
                else stored_size(self._encoded(example))
            )  # fmt: skip
            if min(height, width) < 1:
                raise ValueError(f"its size is {width} x {height}")
            classes = [self._class(value) for value in objects.get(self._category, [])]
            boxes = box_formats.numbers_of(objects.get("bbox", []))
            return box_formats.of_fields((height, width), objects, boxes, classes)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.describe(index)}: {printable(error)}") from error

    def _class(self, value: Any) -> int:
        key = value if value in self._number else str(value)
        if value is None or key not in self._number:
            known = f"{len(self.classes)} classes that are known"
            raise ValueError(f"an object has the class {value!r}, which is none of the {known}")
        return self._number[key]

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[int(index)]
        one = box_formats.checked(self._annotation(index, example), self._how, Counter())
        return {"image": self._encoded(example), "objects": box_formats.objects_of(one)}


def _fields(features: Any, name: str) -> dict[str, Any]:
    """The fields of one object, by name, if a column is a list of objects or has a list for each
    field; else none."""
    column = features.get(name)
    if isinstance(column, dict):  # {"bbox": [[…], …], "category": […]}
        return {field: getattr(of, "feature", of) for field, of in column.items()}
    inside = column[0] if isinstance(column, list) else getattr(column, "feature", None)
    return dict(inside) if isinstance(inside, dict) else {}


def _load(rest: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The splits of `NAME?KEY=VALUE&…`, and its query."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf:{rest} needs the package datasets: pip install vit_jax[hf]") from error
    spec, query = queried(f"hf:{rest}", KEYS)
    name = spec.removeprefix("hf:")
    folder = Path(name).expanduser()
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(name, query.get("config"))
    except Exception as error:  # the package may raise anything about names and networks
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"hf:{rest} cannot be loaded: {lines[0]}") from error
    return (loaded if isinstance(loaded, dict) else {"train": loaded}), query


def splits(rest: str) -> list[str]:
    """The splits of a data set of the package `datasets`."""
    return in_order(_load(rest)[0])
