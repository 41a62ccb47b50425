"""Data sets in the formats of other libraries: TFDS's array_record, Hugging Face's Arrow."""

import os
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError
from vit_jax.user_code import imported

MAX_LABELS = 64  # of an example where several are possible: TFDS does not say how many there are


class Tfds:
    """`NAME[/CONFIG][:VERSION]`, or a builder of the user's own as `my_package.my_module:Builder`:
    a TFDS data set prepared as array_record, read without TensorFlow; bytes stay encoded."""

    notes: tuple[str, ...] = ()

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        import tensorflow_datasets as tfds

        folder = prepared_folder(rest)
        if folder is None:
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
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        label = next((name for name in ("label", "labels") if name in features), None)
        if label is None or "image" not in features:
            raise UserError(
                f"tfds:{rest} has no feature {'image' if label else 'label'!r}: it is no "
                f"classification set (it has {', '.join(features)})"
            )
        encoded = isinstance(features["image"], tfds.features.Image)
        try:
            self._data = builder.as_data_source(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()} if encoded else None,
            )
        except (ValueError, NotImplementedError) as error:
            splits = ", ".join(builder.info.splits)
            hint = "" if "array_record" in str(builder.info.file_format) else (
                f"; its files are {builder.info.file_format}: `vit data prepare tfds:{rest}` "
                "makes array_record of them"
            )  # fmt: skip
            raise UserError(
                f"tfds:{rest}, split {split!r}: it has {splits} ({error}){hint}"
            ) from error
        self._name, self._label = f"tfds:{rest} {split}", label
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
        example = self._data[index]
        label = example[self._label]
        return {
            "image": example["image"],
            "label": [int(one) for one in label] if self._several else int(label),
        }

    def describe(self, index: int) -> str:
        return f"{self._name} example {index}"


def tfds_root() -> Path:
    """Where TFDS keeps its data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def names_builder(rest: str) -> bool:
    """Whether this is `my_package.my_module:Builder`, and no NAME[/CONFIG][:VERSION]."""
    _, _, last = rest.partition(":")
    return last.isidentifier()


def expected_folder(rest: str, root: Path | None = None) -> Path:
    """Where the files of NAME[/CONFIG][:VERSION] or of a builder belong."""
    root = root or tfds_root()
    if names_builder(rest):
        return Path(imported(rest, "a TFDS builder")(data_dir=str(root)).data_path)
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
    """`hf:NAME[/CONFIG]` or `hf:FOLDER` (of `save_to_disk`): a set of the package `datasets`, with
    its image column left encoded."""

    notes: tuple[str, ...] = ()
    channels = 3

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                f"hf:{rest} needs the package datasets: pip install vit_jax[hf]"
            ) from error
        try:
            if Path(rest).expanduser().is_dir() and (
                list(Path(rest).expanduser().glob("dataset_dict.json"))
                or list(Path(rest).expanduser().glob("state.json"))
            ):
                loaded = datasets.load_from_disk(str(Path(rest).expanduser()))
            else:
                loaded = datasets.load_dataset(rest)
        except Exception as error:  # whatever that package does about names and networks
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"hf:{rest} cannot be loaded: {text[0]}") from error
        if isinstance(loaded, dict):
            if split not in loaded:
                raise UserError(f"hf:{rest} has no split {split!r}: it has {', '.join(loaded)}")
            loaded = loaded[split]
        elif split != "train":
            raise UserError(
                f"hf:{rest} has no split {split!r}: it has one alone, called train here"
            )
        columns = loaded.features
        self._image = _only(rest, "an image", columns, datasets.Image, ("image", "img"))
        self._label = _only(rest, "a class", columns, datasets.ClassLabel, ("label", "labels"))
        self.classes = list(columns[self._label].names)
        self._data = loaded.cast_column(self._image, datasets.Image(decode=False))
        self._name, self.max_labels = f"hf:{rest} {split}", 1

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[int(index)]
        image = example[self._image]
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return {"image": data, "label": example[self._label]}

    def describe(self, index: int) -> str:
        return f"{self._name} example {index}"


def _only(rest: str, what: str, columns: Any, kind: type, usual: tuple[str, ...]) -> str:
    """The column of a kind: the usual name, else the only one there is."""
    found = [name for name, feature in columns.items() if isinstance(feature, kind)]
    chosen = [name for name in usual if name in found] or found
    if len(chosen) != 1 and chosen != [usual[0], *chosen[1:]]:
        raise UserError(f"hf:{rest} has {len(found)} columns of {what}: {dict(columns)}")
    return chosen[0]
