"""Data sets in the formats of other libraries: TFDS's array_record, Hugging Face's Arrow."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vit_jax.data.prepared import BrokenSet, check_shards, open_builder, reason
from vit_jax.data.splits import choose, in_order
from vit_jax.errors import UserError, printable
from vit_jax.user_code import imported

MAX_LABELS = 64  # of an example where several are possible: TFDS does not say how many there are


class Tfds:
    """`NAME[/CONFIG][:VERSION]`, or a builder of the user's own as `my_package.my_module:Builder`:
    a TFDS data set prepared as array_record, read without TensorFlow; bytes stay encoded."""

    notes: tuple[str, ...] = ()

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        import tensorflow_datasets as tfds

        builder = prepared_builder(rest)
        if builder is None:
            place, command = expected_folder(rest), f"vit data prepare tfds:{rest}"
            if rest.startswith("imagenet"):
                command = f"vit data prepare {rest} --from=TARS"
            raise UserError(
                f"tfds:{rest} is not on this machine: expected its array_record files and "
                f"dataset_info.json in {place}/ (TFDS_DATA_DIR moves the root), which "
                f"`{command}` makes; or give a folder of images PATH/train/CLASS/*.jpg and "
                "PATH/val/CLASS/*.jpg as --config.data.train.source=folder:PATH "
                "--config.data.eval.split=val"
            )
        features = builder.info.features
        if not isinstance(features, tfds.features.FeaturesDict):
            raise BrokenSet(f"tfds:{rest}: its features are {features}, not a dictionary")
        label = next((name for name in ("label", "labels") if name in features), None)
        if label is None or "image" not in features:
            raise UserError(
                f"tfds:{rest} has no feature {'image' if label else 'label'!r}: it is no "
                f"classification set (it has {', '.join(features)})"
            )
        encoded = isinstance(features["image"], tfds.features.Image)
        kind = builder.info.file_format.value
        if kind != "array_record":
            raise UserError(
                f"tfds:{rest}: its files are {kind}: `vit data prepare tfds:{rest}` makes "
                "array_record of them"
            )
        splits = builder.info.splits
        base, bracket, part = split.partition("[")
        if "+" not in split:
            lacks = f"tfds:{rest}, split {split!r}"
            split = choose(f"tfds:{rest}", base, splits, classes is None, lacks) + bracket + part
        named = re.findall(r"[\w.]+", split)
        check_shards(f"tfds:{rest}", [of for name, of in splits.items() if name in named])
        try:
            self._data = builder.as_data_source(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()} if encoded else None,
            )
        except Exception as error:  # whatever TFDS does about a split that cannot be
            raise UserError(
                f"tfds:{rest}, split {split!r}: it has {', '.join(in_order(splits))} "
                f"({reason(error)})"
            ) from error
        try:
            empty = not len(self._data)
        except ValueError:  # a slice that ends before it begins
            empty = True
        if empty:
            raise UserError(f"tfds:{rest}, split {split!r}, has no examples")
        self._name, self._label = f"tfds:{rest} {split}", label
        # What is prepared is known by its version; the root folder may be another one.
        self.names_hash = f"{builder.info.full_name} {split} {len(self._data)}"
        of = features[label]
        self._several = not isinstance(of, tfds.features.ClassLabel)
        names = getattr(
            of.feature if self._several and hasattr(of, "feature") else of, "names", None
        )
        if names is None:
            raise UserError(f"tfds:{rest}: its feature {label!r} names no classes ({of})")
        self.classes = list(names)
        self.channels = (features["image"].shape or (3,))[-1] or 3
        self.max_labels = MAX_LABELS if self._several else 1

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._read(index)
        label = example[self._label]
        return {
            "image": example["image"],
            "label": [int(one) for one in label] if self._several else int(label),
        }

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return self._data[index]
        except Exception as error:  # whatever array_record or a parser does about damaged bytes
            raise BrokenSet(
                f"{self._name} example {index} cannot be read, the set is damaged "
                f"({reason(error)}); fetch or prepare it again"
            ) from error

    def describe(self, index: int) -> str:
        name = self._read(index).get("file_name", b"").decode(errors="replace")
        return f"{self._name} example {index}" + (f" ({printable(name)})" if name else "")


def tfds_splits(rest: str) -> list[str]:
    """The splits of a set that is on this machine; `train` of another."""
    builder = prepared_builder(rest)
    return ["train"] if builder is None else in_order(builder.info.splits)


def prepared_builder(rest: str, root: Path | None = None) -> Any:
    """TFDS's builder of a set that is on this machine; None of another. Raises UserError: it is
    damaged, or names features that are not TFDS's own."""
    folder = prepared_folder(rest, root)
    own = rest.partition(".")[0] if names_builder(rest) else ""
    return None if folder is None else open_builder(f"tfds:{rest}", folder, own)


def tfds_root() -> Path:
    """Where TFDS keeps its data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def names_builder(rest: str) -> bool:
    """Whether this is `my_package.my_module:Builder`, and no NAME[/CONFIG][:VERSION]."""
    _, _, last = rest.partition(":")
    return last.partition("/")[0].isidentifier()


def own_builder(rest: str, **options: Any) -> Any:
    """A builder by its import path, `my_package.my_module:Builder[/CONFIG]`, made with options.

    Raises UserError where it cannot be imported or made.
    """
    path, _, config = rest.partition("/")
    make = imported(path, "a TFDS builder")
    try:
        return make(config=config or None, **options)
    except Exception as error:  # whatever a builder does
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"tfds:{rest} cannot be made: {type(error).__name__}: {reason}") from error


def expected_folder(rest: str, root: Path | None = None) -> Path:
    """Where the files of NAME[/CONFIG][:VERSION] or of a builder belong."""
    root = root or tfds_root()
    if names_builder(rest):
        return Path(own_builder(rest, data_dir=str(root)).data_path)
    name, _, version = rest.partition(":")
    return root / name / (version or "VERSION")


def prepared_folder(rest: str, root: Path | None = None) -> Path | None:
    """The folder of a prepared data set, of its last version where none is named; or None."""
    if not rest:
        return None
    place = expected_folder(rest, root)
    if place.name != "VERSION":
        return place if (place / "dataset_info.json").is_file() else None
    versions = [info.parent for info in place.parent.glob("**/dataset_info.json")]
    return max(versions, key=lambda folder: _version(folder.name), default=None)


def _version(name: str) -> list[int]:
    """`1.10.0` comes after `1.9.0`."""
    return [int(part) if part.isdecimal() else -1 for part in name.split(".")]


class HuggingFace:
    """`hf:NAME`, or `hf:FOLDER` of `save_to_disk`: a set of the package `datasets`, its image
    column left encoded. `?config=…&image=…&label=…` names a configuration and columns where several
    are possible."""

    notes: tuple[str, ...] = ()
    channels = 3

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        splits, chosen = _load(rest)
        import datasets

        split = choose(f"hf:{rest}", split, splits, classes is None)
        data = splits[split]

        def column(what: str, kind: type) -> str:
            """That of the query, else the usual one, else the only one of its kind."""
            found = [
                name for name, feature in data.features.items()
                if isinstance(getattr(feature, "feature", feature), kind)
            ]  # fmt: skip
            plain = data.features.get(chosen.get(what, what))
            if what == "label" and isinstance(plain, datasets.Value):
                return chosen.get(what, what)
            name = chosen.get(what, what if what in found or len(found) != 1 else found[0])
            if name not in found:
                raise UserError(
                    f"hf:{rest} needs ?{what}=COLUMN, one of {', '.join(found) or 'none there is'} "
                    f"(its columns: {', '.join(data.features)}; a {kind.__name__} is wanted)"
                )
            return name

        self._image, self._label = (
            column("image", datasets.Image),
            column("label", datasets.ClassLabel),
        )
        label = data.features[self._label]
        self._several = not isinstance(label, datasets.ClassLabel | datasets.Value)
        self.max_labels = MAX_LABELS if self._several else 1
        self._number: dict[Any, int] | None = None
        if isinstance(label, datasets.Value):  # its values are the classes
            values = sorted(value for value in data.unique(self._label) if value is not None)
            self.classes = classes or [str(value) for value in values]
            self._number = {name: number for number, name in enumerate(self.classes)}
        else:
            self.classes = list((label.feature if self._several else label).names)
        self._data = data.cast_column(self._image, datasets.Image(decode=False))
        self._name = f"hf:{rest} {split}"
        # Not the package's fingerprint, which other versions of it make anew.
        known = json.dumps([len(data), self.classes]).encode()
        self.names_hash = hashlib.blake2b(known, digest_size=16).hexdigest()
        self._check_labels()

    def _check_labels(self) -> None:
        """Raises UserError at the first label that is none or no class's number."""
        column = self._data.select_columns([self._label]).with_format("arrow")[:][self._label]
        for index, label in enumerate(column.to_pylist()):
            each = label if self._several and label is not None else [label]
            for one in each:
                blank = one is None or (isinstance(one, str) and not one.strip())
                if blank:
                    raise UserError(f"{self.describe(index)} has no label: label it or take it out")
                if self._number is None and not 0 <= one < len(self.classes):
                    raise UserError(
                        f"{self.describe(index)} has the label {one}: labels are whole numbers "
                        f"from 0 to {len(self.classes) - 1}"
                    )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[int(index)]
        image = example[self._image]
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        label = example[self._label]
        if self._number is not None:
            if str(label) not in self._number:
                raise UserError(
                    f"{self.describe(index)} has the class {label!r}, which training does not know"
                )
            label = self._number[str(label)]
        return {"image": data, "label": label}

    def describe(self, index: int) -> str:
        return f"{self._name} example {index}"


def _load(rest: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The splits of `NAME?config=…&image=…&label=…`, and what stands after the question mark."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf:{rest} needs the package datasets: pip install vit_jax[hf]") from error
    name, _, query = rest.partition("?")
    chosen, folder = dict(parse_qsl(query)), Path(name).expanduser()
    unknown = sorted(set(chosen) - {"config", "image", "label"})
    if unknown:
        raise UserError(f"hf:{rest}: after ? stand config=, image= or label=, not {unknown[0]}=")
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(name, chosen.get("config"))
    except Exception as error:  # whatever that package does about names and networks
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"hf:{rest} cannot be loaded: {text[0]}") from error
    return (loaded if isinstance(loaded, dict) else {"train": loaded}), chosen


def hugging_face_splits(rest: str) -> list[str]:
    """The splits of a set of the package `datasets`."""
    return in_order(_load(rest)[0])
