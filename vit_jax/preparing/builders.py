"""TFDS data sets as array_record: built by a TFDS builder, or copied from TFRecord files.

TFRecord files hold the same serialised examples as array_record files, so they are copied record by
record, without TensorFlow. TFDS's own builders need TensorFlow. A builder of your own needs it only
if its code imports it.
"""

import functools
import inspect
import json
import os
import shutil
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vit_jax.data.prepared import open_builder, read_info
from vit_jax.data.tfds import names_builder, prepared_folder
from vit_jax.data.walking import with_progress
from vit_jax.errors import UserError
from vit_jax.preparing.shards import Shard
from vit_jax.user_code import imported

Say = Callable[[str], None]
Fill = Callable[[Path, Say], None]
NEEDS = ("tensorflow",)  # packages that TFDS's own builders need


def plan(rest: str, root: Path, source: str | None, shards: int | None) -> tuple[str, Fill]:
    """Returns the place of a data set below the root, NAME[/CONFIG]/VERSION, and a function that
    writes it into a folder.

    Args:
      rest: `NAME[/CONFIG][:VERSION]`, or the import path of a builder, `PACKAGE.MODULE:BUILDER`.
      root: the folder of TFDS's data sets.
      source: the root of the TFRecord files, if it is another one; or the folder with the files
        that a builder expects the user to download.
      shards: files per split, if a builder writes them.

    Raises UserError: there is no such data set or builder, or TensorFlow is needed and missing.
    """
    if names_builder(rest):
        path, _, config = rest.partition("/")
        make = functools.partial(imported(path, "a TFDS builder"), config=config or None)
        return _build(rest, make, root, source, shards)
    place = Path(source).expanduser() if source else root
    folder = prepared_folder(rest, place)
    if folder is None:
        return _build(rest, _of_tfds(rest), root, source, shards)
    if read_info(f"tfds:{rest}", folder).get("fileFormat") != "tfrecord":
        raise UserError(f"tfds:{rest} is in {folder}, and not as TFRecord: there is nothing to do")
    target = folder.relative_to(place).as_posix()
    if folder == root / target:
        raise UserError(
            f"{folder} holds tfds:{rest} as TFRecord: give another root for the copy, "
            "--output=ROOT (and train with TFDS_DATA_DIR=ROOT)"
        )
    return target, lambda new, say: _copy(f"tfds:{rest}", folder, new, say)


def _copy(name: str, old: Path, new: Path, say: Say) -> None:
    """Writes the TFRecord files of a folder as array_record, one shard each, in the same order."""
    info = read_info(name, old)
    for split in open_builder(name, old).info.splits.values():
        files = [Path(file) for file in split.filepaths]
        lengths = dict(zip(files, split.shard_lengths, strict=True))
        for file in with_progress(files, len(files), split.name):
            shard = Shard(str(new / file.name.replace(".tfrecord", ".array_record")))
            for record in tfrecords(file):
                shard.write(record)
            if shard.close() != lengths[file]:
                raise UserError(
                    f"{file} has {shard.length:,} records of {lengths[file]:,}: it is damaged"
                )
        say(f"{split.name}: {split.num_examples:,} examples, {len(files):,} shards")
    for file in old.iterdir():
        if ".tfrecord" not in file.name and file.is_file():
            (new / file.name).write_bytes(file.read_bytes())
    info["fileFormat"] = "array_record"
    (new / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")


def tfrecords(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file. Each is its length (uint64), a checksum, its bytes, and
    another checksum (both uint32; not verified).

    Raises UserError: the file ends within a record.
    """
    with open(file, "rb") as stream:
        while head := stream.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            left = os.fstat(stream.fileno()).st_size - stream.tell()
            if len(head) < 12 or length + 4 > left:
                raise UserError(f"{file} ends within a record: it is damaged")
            yield stream.read(length)
            stream.read(4)


def _build(rest: str, make: Callable, root: Path, source: str | None, shards: int | None):
    """The plan of a data set that a builder makes."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()

    def attempt(call: Callable, **options: Any) -> Any:
        try:
            return call(**options)
        except ImportError as error:
            raise UserError(
                f"tfds:{rest} needs {error.name or error}: pip install vit_jax[tf]"
            ) from error
        except Exception as error:  # a builder may raise anything
            raise UserError(f"tfds:{rest} cannot be built: {_reason(error, make)}") from error

    def fill(new: Path, say: Say) -> None:
        builder = attempt(make, data_dir=str(new), file_format="array_record")
        manual = Path(source).expanduser().absolute() if source else None
        config = tfds.download.DownloadConfig(
            manual_dir=manual, num_shards=shards, try_download_gcs=False
        )
        attempt(builder.download_and_prepare, download_dir=str(root / "downloads"),
                download_config=config)  # fmt: skip
        made = Path(builder.data_dir)
        for file in made.iterdir():
            file.rename(new / file.name)
        shutil.rmtree(new / made.relative_to(new).parts[0])
        for split in builder.info.splits.values():
            say(f"{split.name}: {split.num_examples:,} examples, {split.num_shards:,} shards")

    folder = attempt(make, data_dir=str(root), file_format="array_record").data_dir
    return Path(folder).relative_to(root).as_posix(), fill


def _of_tfds(rest: str) -> Callable:
    """One of TFDS's own builders. Raises UserError: there is none, or it needs TensorFlow."""
    import tensorflow_datasets as tfds

    name = rest.partition("/")[0].partition(":")[0]
    if name not in tfds.list_builders(with_community_datasets=False):
        raise UserError(
            f"TFDS has no data set tfds:{rest}; a builder of your own is "
            "tfds:PACKAGE.MODULE:BUILDER"
        )
    if missing := [package for package in NEEDS if find_spec(package) is None]:
        raise UserError(
            f"tfds:{rest} is not on this machine, and building it needs {' and '.join(missing)}: "
            "pip install vit_jax[tf]"
        )
    return functools.partial(tfds.builder, rest)


def _reason(error: Exception, make: Callable) -> str:
    """An error in one line, with the line number if the user's own builder raised it."""
    made = getattr(make, "func", make)
    file = inspect.getfile(made) if inspect.isclass(made) else None
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f" ({file}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"
