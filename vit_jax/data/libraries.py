"""Data sets in the formats of other libraries: TFDS's array_record, Hugging Face's Arrow."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vit_jax.data.prepared import BrokenSet, check_shards, open_builder, reason
from vit_jax.data.source import Source
from vit_jax.data.splits import choose, in_order
from vit_jax.errors import UserError, printable
from vit_jax.user_code import imported

MAX_LABELS = 64  # per example if several are possible: TFDS does not state how many


class Tfds(Source):
    """`NAME[/CONFIG][:VERSION]`, or a builder of the user's own, `my_package.my_module:Builder`: a
    TFDS data set prepared as array_record, read without TensorFlow. Images stay encoded."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        import tensorflow_datasets as tfds

        spec, builder = f"tfds:{rest}", prepared_builder(rest)
        if builder is None:
            command = f"vit data prepare {spec}"
            if rest.startswith("imagenet"):
                command = f"vit data prepare {rest} --from=TARS"
            raise UserError(
                f"{spec} is not on this machine: expected its array_record files and "
                f"dataset_info.json in {expected_folder(rest)}/ (TFDS_DATA_DIR moves the root), "
                f"which `{command}` makes; or give a folder of images PATH/train/CLASS/*.jpg and "
                "PATH/val/CLASS/*.jpg as --config.data.train.source=folder:PATH "
                "--config.data.eval.split=val"
            )
        features, splits = builder.info.features, builder.info.splits
        if not isinstance(features, tfds.features.FeaturesDict):
            raise BrokenSet(f"{spec}: its features are {features}, not a dictionary")
        label = next((name for name in ("label", "labels") if name in features), None)
        if label is None or "image" not in features:
            raise UserError(
                f"{spec} has no feature {'image' if label else 'label'!r}: it is no "
                f"classification set (it has {', '.join(features)})"
            )
        kind = builder.info.file_format.value
        if kind != "array_record":
            raise UserError(
                f"{spec}: its files are {kind}: `vit data prepare {spec}` makes array_record of "
                "them"
            )
        base, bracket, part = split.partition("[")
        if "+" not in split:
            lacks = f"{spec}, split {split!r}"
            split = choose(spec, base, splits, classes is None, lacks) + bracket + part
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
        self.title, self._label = f"{spec} {split}", label
        # A prepared data set is identified by its version, because the root folder may change.
        self.names_hash = f"{builder.info.full_name} {split} {len(self._data)}"
        of = features[label]
        self._several = not isinstance(of, tfds.features.ClassLabel)
        of_one = getattr(of, "feature", of) if self._several else of
        if getattr(of_one, "names", None) is None:
            raise UserError(f"{spec}: its feature {label!r} names no classes ({of})")
        self.classes = list(of_one.names)
        self.channels = (features["image"].shape or (3,))[-1] or 3
        self.max_labels = MAX_LABELS if self._several else 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._read(index)
        label = example[self._label]
        labels = [int(number) for number in label] if self._several else int(label)
        return {"image": example["image"], "label": labels}

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return self._data[index]
        except Exception as error:  # array_record and parsers may raise anything
            raise BrokenSet(
                f"{super().describe(index)} cannot be read, the set is damaged "
                f"({reason(error)}); fetch or prepare it again"
            ) from error

    def describe(self, index: int) -> str:
        name = self._read(index).get("file_name", b"").decode(errors="replace")
        return super().describe(index) + (f" ({printable(name)})" if name else "")


def tfds_splits(rest: str) -> list[str]:
    """The splits of a data set on this machine; `train` of another one."""
    builder = prepared_builder(rest)
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


class HuggingFace(Source):
    """`hf:NAME`, or `hf:FOLDER` of `save_to_disk`: a data set of the package `datasets`. Its images
    stay encoded. `?config=…&image=…&label=…` chooses if several are possible."""

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        splits, query = _load(rest)
        import datasets

        split = choose(f"hf:{rest}", split, splits, classes is None)
        data = splits[split]

        def column(what: str, kind: type) -> str:
            """The column that the query names, the usual one, or the only one of its kind."""
            fitting = [name for name, feature in data.features.items()
                       if isinstance(getattr(feature, "feature", feature), kind)]  # fmt: skip
            name = query.get(what, what)
            if what == "label" and isinstance(data.features.get(name), datasets.Value):
                return name
            if what not in query and what not in fitting and len(fitting) == 1:
                name = fitting[0]
            if name not in fitting:
                raise UserError(
                    f"hf:{rest} needs ?{what}=COLUMN, one of "
                    f"{', '.join(fitting) or 'none there is'} (its columns: "
                    f"{', '.join(data.features)}; a {kind.__name__} is wanted)"
                )
            return name

        self._image = column("image", datasets.Image)
        self._label = column("label", datasets.ClassLabel)
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
        self._data = data.cast_column(self._image, datasets.Image(decode=False))
        self.title = f"hf:{rest} {split}"
        # Not the package's fingerprint, because each version of the package computes another one.
        known = json.dumps([len(data), self.classes]).encode()
        self.names_hash = hashlib.blake2b(known, digest_size=16).hexdigest()
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
        image, label = example[self._image], example[self._label]
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        if self._number is not None:
            if str(label) not in self._number:
                raise UserError(
                    f"{self.describe(index)} has the class {label!r}, which training does not know"
                )
            label = self._number[str(label)]
        return {"image": data, "label": label}


def _load(rest: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The splits of `NAME?config=…&image=…&label=…`, and its query."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf:{rest} needs the package datasets: pip install vit_jax[hf]") from error
    name, _, text = rest.partition("?")
    query, folder = dict(parse_qsl(text)), Path(name).expanduser()
    if unknown := sorted(set(query) - {"config", "image", "label"}):
        raise UserError(f"hf:{rest}: after ? stand config=, image= or label=, not {unknown[0]}=")
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(name, query.get("config"))
    except Exception as error:  # the package may raise anything about names and networks
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"hf:{rest} cannot be loaded: {lines[0]}") from error
    return (loaded if isinstance(loaded, dict) else {"train": loaded}), query


def hugging_face_splits(rest: str) -> list[str]:
    """The splits of a data set of the package `datasets`."""
    return in_order(_load(rest)[0])
