"""Data sets that a TFDS builder makes, or has made as TFRecord, as array_record.

TFRecord files hold the same serialised examples that array_record files do, so a set that is on
disk is copied record by record, without TensorFlow. A builder of one's own (of a private set such
as JFT) is run by TFDS, which needs no TensorFlow where the builder needs none. TFDS's own builders
do.
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

from vit_jax.data import libraries
from vit_jax.data.prepared import open_builder, read_info
from vit_jax.errors import UserError
from vit_jax.preparing.reading import shown
from vit_jax.preparing.shards import Shard
from vit_jax.user_code import imported

Say = Callable[[str], None]
Fill = Callable[[Path, Say], None]
NEEDS = ("tensorflow",)  # by TFDS's own builders


def plan(rest: str, root: Path, source: str | None, shards: int | None) -> tuple[str, Fill]:
    """What makes `NAME[/CONFIG][:VERSION]` or `PACKAGE.MODULE:BUILDER`: its place below the root,
    NAME[/CONFIG]/VERSION, and what fills a folder.

    Args:
      rest: the set's name as TFDS writes it, or the import path of a builder class.
      root: where TFDS keeps data sets here.
      source: the root of the TFRecord files where it is another; or what a builder's manual
        downloads are in.
      shards: files a split, where a builder makes them.

    Raises UserError: no such set or builder, or TensorFlow is needed and not here.
    """
    if libraries.names_builder(rest):
        path, _, config = rest.partition("/")
        make = functools.partial(imported(path, "a TFDS builder"), config=config or None)
        return _build(rest, make, root, source, shards)
    place = Path(source).expanduser() if source else root
    folder = libraries.prepared_folder(rest, place)
    if folder is None:
        return _build(rest, _own(rest), root, source, shards)
    if read_info(f"tfds:{rest}", folder).get("fileFormat") != "tfrecord":
        raise UserError(f"tfds:{rest} is in {folder}, and not as TFRecord: there is nothing to do")
    target = folder.relative_to(place).as_posix()
    if folder == root / target:
        raise UserError(
            f"{folder} holds tfds:{rest} as TFRecord: give another root for the copy, "
            "--output=ROOT (and train with TFDS_DATA_DIR=ROOT)"
        )
    return target, lambda new, say: _convert(f"tfds:{rest}", folder, new, say)


def _convert(name: str, old: Path, new: Path, say: Say) -> None:
    """Writes the TFRecord set of a folder as array_record, shard by shard, in the same order."""
    info = read_info(name, old)
    for split in open_builder(name, old).info.splits.values():
        files = [Path(file) for file in split.filepaths]
        lengths = dict(zip(files, split.shard_lengths, strict=True))
        for file in shown(files, len(files), split.name):
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
    """The records of a TFRecord file: each is its length (uint64), a checksum, the bytes, and
    another checksum (both uint32; not verified).

    Raises UserError: the file ends within a record.
    """
    with open(file, "rb") as stream:
        while head := stream.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            whole = os.fstat(stream.fileno()).st_size - stream.tell()
            if len(head) < 12 or length + 4 > whole:
                raise UserError(f"{file} ends within a record: it is damaged")
            yield stream.read(length)
            stream.read(4)


def _build(rest: str, make: Callable, root: Path, source: str | None, shards: int | None):
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()

    def attempt(call: Callable, **options):
        try:
            return call(**options)
        except ImportError as error:
            raise UserError(
                f"tfds:{rest} needs {error.name or error}: pip install vit_jax[tf]"
            ) from error
        except Exception as error:  # whatever a builder does
            raise UserError(f"tfds:{rest} cannot be built: {_reason(error, make)}") from error

    def built(data_dir: Path):
        return attempt(make, data_dir=str(data_dir), file_format="array_record")

    def fill(new: Path, say: Say) -> None:
        builder = built(new)
        manual = Path(source).expanduser().absolute() if source else None
        config = tfds.download.DownloadConfig(
            manual_dir=manual, num_shards=shards, try_download_gcs=False
        )
        attempt(
            builder.download_and_prepare, download_dir=str(root / "downloads"),
            download_config=config,
        )  # fmt: skip
        made = Path(builder.data_dir)
        for file in made.iterdir():
            file.rename(new / file.name)
        shutil.rmtree(new / made.relative_to(new).parts[0])
        for split in builder.info.splits.values():
            say(f"{split.name}: {split.num_examples:,} examples, {split.num_shards:,} shards")

    return Path(built(root).data_dir).relative_to(root).as_posix(), fill


def _own(rest: str) -> Callable:
    """One of TFDS's own builders."""
    import tensorflow_datasets as tfds

    missing = [name for name in NEEDS if find_spec(name) is None]
    if rest.partition("/")[0].partition(":")[0] not in tfds.list_builders(
        with_community_datasets=False
    ):
        raise UserError(
            f"TFDS has no data set tfds:{rest}; a builder of your own is "
            "tfds:PACKAGE.MODULE:BUILDER"
        )
    if missing:
        raise UserError(
            f"tfds:{rest} is not on this machine, and building it needs {' and '.join(missing)}: "
            "pip install vit_jax[tf]"
        )
    return functools.partial(tfds.builder, rest)


def _reason(error: Exception, make: Callable) -> str:
    """An error in one line; with its place where that is in the file of a builder of one's own."""
    made = getattr(make, "func", make)
    file = inspect.getfile(made) if inspect.isclass(made) else None
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f" ({file}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"
