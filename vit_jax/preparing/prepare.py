"""Writes TFDS data sets as array_record, which training reads at random: without TensorFlow.

Images stay the bytes they are. The examples of a split are shuffled by a seed, so that every part
of it has every class. A set appears whole or not at all: it is written beside its place and renamed
at the end.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np

from vit_jax.data.libraries import tfds_root
from vit_jax.data.source import Source
from vit_jax.errors import UserError, nearest
from vit_jax.preparing import archives, builders
from vit_jax.preparing.reading import open_splits, read_ahead
from vit_jax.preparing.shards import Shard, new_folder

VERSION = "1.0.0"
SHARD_BYTES = 2**30
HELD_OUT = 102_400  # images of ImageNet-21k as `val`, or one in a hundred where that is fewer

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `vit data prepare` was told, and None where it was told nothing: its flags by name,
    `--from` (the folder of what was downloaded) as `source`."""

    source: str | None = None
    output: str | None = None
    name: str | None = None
    shards: int | None = None
    seed: int | None = None
    labels: str | None = None
    val: int | None = None
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Split:
    """What to write: examples of a source by number, and what their files are called."""

    source: Source
    file_name: Callable[[int], str]
    indices: np.ndarray


def prepare(spec: str, options: Options, say: Say = print) -> Path:
    """Writes the data set of a source and returns its folder, ROOT/NAME/VERSION.

    Args:
      spec: `folder:PATH`, `imagenet2012`, `imagenet21k`, `tfds:NAME[/CONFIG][:VERSION]` or
        `tfds:PACKAGE.MODULE:BUILDER`.
      options: those that the source takes.
      say: takes what there is to say, a line at a time.

    Raises UserError: a source that cannot be read, a set that is there already, a full disk.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"cannot prepare {spec!r}: {nearest(kind, KINDS)}")
    plan, takes = KINDS[kind]
    for name, value in dataclasses.asdict(options).items():
        if value is not None and name not in (*takes, "output"):
            flags = [f"--{option}".replace("source", "from") for option in (name, *takes)]
            raise UserError(f"{flags[0]} is not for {kind}, which takes {', '.join(flags[1:])}")
    for name, least in {"shards": 1, "threads": 1, "seed": 0}.items():
        number = getattr(options, name)
        if number is not None and number < least:
            raise UserError(f"--{name}={number} must be {least} or more")
    root = (Path(options.output).expanduser() if options.output else tfds_root()).absolute()
    target, write = plan(rest, options, root)
    with new_folder(root, target) as folder:
        write(folder, say)
    elsewhere = f" (with TFDS_DATA_DIR={root})" if root != tfds_root().absolute() else ""
    say(f"{root / target} is whole: train on tfds:{target.rpartition('/')[0]}{elsewhere}")
    return root / target


def write_splits(
    folder: Path, name: str, splits: dict[str, Split], options: Options, say: Say
) -> None:
    """Writes a data set's shards and metadata into a folder: `image` (bytes), `label` with its
    class names, and `file_name`.

    Raises UserError: an image that cannot be read, a class name that TFDS cannot keep, a full disk.
    """
    import tensorflow_datasets as tfds

    classes = next(iter(splits.values())).source.classes
    for class_name in classes:
        if class_name != " ".join(class_name.split()) or not class_name.isprintable():
            raise UserError(f"TFDS cannot keep the class name {class_name!r}: rename its folder")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=classes),
            "file_name": tfds.features.Text(),
        }
    )
    infos = []
    for split_name, split in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split_name, filetype_suffix="array_record"
        )
        lengths, size = _write_shards(
            folder / f"{name}-{split_name}.array_record", split, features, options
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split_name, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
        say(f"{split_name}: {sum(lengths):,} images, {size:,} bytes, {len(lengths):,} shards")
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, version=VERSION, check_data=False,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        supervised_keys=("image", "label"),
    )  # fmt: skip


def _write_shards(prefix: Path, split: Split, features, options: Options) -> tuple[list[int], int]:
    """Examples by shard, and their bytes in all."""

    def record(index: int) -> bytes:
        try:
            example = split.source[int(index)]
        except OSError as error:
            raise UserError(
                f"cannot read {split.source.describe(index)}: {error.strerror} "
                "(vit data check finds all such files)"
            ) from error
        example["file_name"] = os.fsencode(split.file_name(index))
        return features.serialize_example(features.encode_example(example))

    total = len(split.indices)
    shards = min(options.shards or 0, total)
    ends = {total * (shard + 1) // shards for shard in range(shards)}
    order = split.indices[np.argsort(_hashes(split, f"seed {options.seed or 0}"))]
    lengths: list[int] = []
    written, size, writer = 0, 0, None
    for number, data in enumerate(
        read_ahead(record, order, options.threads or 8, f"writing {prefix.stem}"), 1
    ):
        writer = writer or Shard(f"{prefix}-{len(lengths):05d}")
        writer.write(data)
        if number == total or (number in ends if ends else writer.size >= SHARD_BYTES):
            lengths.append(writer.close())
            written, size, writer = number, size + writer.size, None
    assert written == total
    for shard in range(len(lengths)):
        os.rename(f"{prefix}-{shard:05d}", f"{prefix}-{shard:05d}-of-{len(lengths):05d}")
    return lengths, size


def _hashes(split: Split, salt: str) -> np.ndarray:
    """uint64 [examples], from the files' names alone: an order that nothing else decides."""
    start = blake2b(f"{salt}/".encode(), digest_size=8)
    hashes = np.empty(len(split.indices), np.uint64)
    for place, index in enumerate(split.indices):
        named = start.copy()
        named.update(os.fsencode(split.file_name(int(index))))
        hashes[place] = int.from_bytes(named.digest(), "little")
    return hashes


Plan = tuple[str, Callable[[Path, Say], None]]  # NAME/VERSION, and what fills the folder


def _folder(rest: str, options: Options, root: Path) -> Plan:
    path = Path(rest).expanduser()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", path.resolve().name).lower()
    name = options.name or re.sub(r"[^a-z0-9]+", "_", words).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} is no name for a data set: give one such as --name=my_photos")

    def write(folder: Path, say: Say) -> None:
        splits, notes = {}, dict[str, None]()
        for split, source in open_splits(f"folder:{rest}").items():
            splits[split] = Split(source, source.name, np.arange(len(source)))  # type: ignore[attr-defined]
            notes |= dict.fromkeys(source.notes)
        for note in notes:
            say(note)
        write_splits(folder, name, splits, options, say)

    return f"{name}/{VERSION}", write


def _imagenet(name: str, open_archives: Callable, labels: str) -> Callable:
    def plan(rest: str, options: Options, root: Path) -> Plan:
        source = Path(options.source or "").expanduser()
        if not options.source or not source.is_dir():
            raise UserError(
                f"{name} is made from --from=FOLDER, which holds its tars"
                + (f"; there is no folder {source}" if options.source else "")
            )

        def write(folder: Path, say: Say) -> None:
            found = open_archives(source, options.labels or labels)
            splits = {
                split: Split(archive, archive.file_name, np.flatnonzero(archive.labels >= 0))
                for split, archive in found.items()
            }
            for note in (note for archive in found.values() for note in archive.notes):
                say(note)
            if "validation" not in splits:
                splits = _hold_out(splits["train"], options.val)
            write_splits(folder, name, splits, options, say)

        return f"{name}/{VERSION}", write

    return plan


def _hold_out(images: Split, count: int | None) -> dict[str, Split]:
    """`train`, and `val` of `count` images by a hash of their names, the same with every seed."""
    total = len(images.indices)
    count = min(HELD_OUT, max(1, total // 100)) if count is None else count
    if count < 0:
        raise UserError(f"--val={count} must be 0 or more")
    if count >= total:
        raise UserError(f"--val={count} leaves nothing of {total:,} images to train on")
    chosen = np.argsort(_hashes(images, "val"))[:count]
    rest = np.delete(images.indices, chosen)
    train = dataclasses.replace(images, indices=rest)
    held_out = dataclasses.replace(images, indices=images.indices[chosen])
    return {"train": train, "val": held_out} if count else {"train": train}


def _tfds(rest: str, options: Options, root: Path) -> Plan:
    return builders.plan(rest, root, options.source, options.shards)


# kind: what plans it, and the options it takes beside --output
KINDS: dict[str, tuple[Callable[[str, Options, Path], Plan], tuple[str, ...]]] = {
    "folder": (_folder, ("name", "shards", "seed", "threads")),
    "imagenet2012": (
        _imagenet("imagenet2012", archives.imagenet2012, "1k"),
        ("source", "labels", "shards", "seed", "threads"),
    ),
    "imagenet21k": (
        _imagenet("imagenet21k", archives.imagenet21k, "21k"),
        ("source", "labels", "val", "shards", "seed", "threads"),
    ),
    "tfds": (_tfds, ("source", "shards")),
}
