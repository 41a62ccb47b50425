"""Checks TFDS's data sets on disk before TFDS reads them.

TFDS imports the modules that `features.json` names, and takes memory for the examples that
`dataset_info.json` claims. Here no file imports anything, and claims are compared with the shards.
"""

import contextlib
import json
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vit_jax import records
from vit_jax.errors import UserError, printable

MOST_METADATA = 2**27  # bytes of a file that is not a shard
SHARDS = (".array_record", ".tfrecord", ".riegeli")
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # the last one in old files
_OPENED = 16  # shards that are open at the same time


class BrokenSet(UserError):
    """The files of a data set are damaged or do not fit together. No example can be trusted."""


def open_builder(name: str, folder: Path, own: str = "") -> Any:
    """TFDS's builder of a folder.

    Args:
      name: of the data set, for messages.
      folder: NAME[/CONFIG]/VERSION.
      own: the package of a builder that the user named; its features may be imported.

    Raises BrokenSet: a file is damaged. Raises UserError: a feature is not one of TFDS's own.
    """
    import tensorflow_datasets as tfds

    for file in sorted(path for path in folder.iterdir() if not path.is_dir()):
        size = _size(name, file)
        if size > MOST_METADATA and not any(kind in file.name for kind in SHARDS):
            raise BrokenSet(
                f"{name} is damaged: {printable(file)} holds {size:,} bytes and should be a small "
                "text file"
            )
    read_info(name, folder)
    _check_features(name, folder / "features.json", own)
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS may raise anything about files of the wrong structure
        raise BrokenSet(
            f"{name} is damaged: TFDS cannot read {printable(folder)}/dataset_info.json or "
            f"features.json ({reason(error)}); prepare it again"
        ) from error


def read_info(name: str, folder: Path) -> dict[str, Any]:
    """The content of `dataset_info.json`. Raises BrokenSet: it names no data set with splits."""
    file = folder / "dataset_info.json"
    info = _json(name, file)
    splits = info.get("splits")
    named = isinstance(splits, list) and all(
        isinstance(split, dict) and isinstance(split.get("name"), str) for split in splits
    )
    if not named or not splits or not isinstance(info.get("name"), str):
        raise BrokenSet(f"{name} is damaged: {printable(file)} names no set with splits")
    return info


def reason(error: Exception) -> str:
    """An error of a library in one line."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def check_shards(name: str, splits: Sequence[Any]) -> None:
    """Opens every array_record file of some splits, and compares the number of its records.

    Raises BrokenSet: a file is missing or damaged, or holds another number of examples.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    def check(file: str, length: int) -> None:
        _size(name, Path(file))
        reader = ArrayRecordReader(file)
        whole, count = reader.ok(), reader.num_records()
        with contextlib.suppress(RuntimeError):  # it repeats what `ok` has said
            reader.close()
        if not whole:
            raise BrokenSet(
                f"{name} is damaged: {printable(file)} is cut off or no array_record file; fetch "
                "or prepare it again"
            )
        if count != length:
            raise BrokenSet(
                f"{name} is damaged: {printable(file)} holds {count:,} examples, "
                f"dataset_info.json says {length:,}"
            )

    shards: list[tuple[str, int]] = []
    for split in splits:
        shards += zip(map(str, split.filepaths), split.shard_lengths, strict=True)
    with ThreadPoolExecutor(min(_OPENED, len(shards) or 1)) as pool:
        list(pool.map(lambda shard: check(*shard), shards))


def _size(name: str, file: Path) -> int:
    """The bytes of a regular file. Raises BrokenSet for another one."""
    try:
        facts = file.stat()
    except OSError as error:
        raise BrokenSet(
            f"{name} is damaged: {printable(file)}: {error.strerror}; fetch or prepare it again"
        ) from error
    if not stat.S_ISREG(facts.st_mode):
        raise BrokenSet(f"{name} is damaged: {printable(file)} is a device or a pipe, not a file")
    return facts.st_size


def _json(name: str, file: Path) -> dict[str, Any]:
    _size(name, file)
    try:
        return records.load(file, most=MOST_METADATA)
    except (ValueError, OSError) as error:
        raise BrokenSet(f"{name} is damaged: {printable(file)}: {records.reason(error)}") from error


def _check_features(name: str, file: Path, own: str) -> None:
    """Raises UserError: a feature is neither TFDS's own nor of the package `own`."""
    from tensorflow_datasets import features

    shipped = {
        f"{feature.__module__}.{feature.__qualname__}"
        for feature in map(vars(features).get, dir(features))
        if isinstance(feature, type) and issubclass(feature, features.FeatureConnector)
    } | {"tensorflow_datasets.core.features.feature.Tensor"}  # its old name
    for named in _classes(_json(name, file)):
        if named not in shipped and not (own and named.partition(".")[0] == own):
            raise UserError(
                f"{name}: {printable(file)} names the feature {named!r}, which TFDS does not "
                "ship. Files import nothing; if the module is yours, give the set's builder as "
                "tfds:my_package.my_module:Builder"
            )


def _classes(features: Any) -> Iterator[str]:
    """Every class that the JSON of features names, also in JSON inside its texts."""
    values = [features]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += [inside for inside in value.values() if not isinstance(inside, str)]
            yield from (value[key] for key in _CLASS_KEYS if isinstance(value.get(key), str))
            with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
                values.append(json.loads(value["json"]))
