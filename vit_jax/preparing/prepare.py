"""Writes TFDS data sets as array_record, which training can read in any order, without TensorFlow.

The bytes of images are not changed. The examples of a split are shuffled with a seed, so that all
parts of it have all classes. A data set appears whole or not at all.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.calls import options_apart
from vit_jax.data.splits import name_hashes
from vit_jax.data.tfds import tfds_root
from vit_jax.errors import UserError, nearest
from vit_jax.preparing import builders
from vit_jax.preparing.reading import open_splits, read_ahead
from vit_jax.preparing.shards import Shard, new_folder

VERSION = "1.0.0"
SHARD_BYTES = 2**30

Say = Callable[[str], None]

# Kind of source: the options that it takes, besides --output.
KINDS = {
    "folder": ("name", "shards", "seed", "threads"),
    "csv": ("name", "shards", "seed", "threads"),
    "imagenet2012": ("source", "labels", "shards", "seed", "threads"),
    "imagenet21k": ("source", "labels", "val", "shards", "seed", "threads"),
    "tfds": ("source", "shards"),
}
LEAST = {"shards": 1, "threads": 1, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `vit data prepare` by name. None: not set. `source` is `--from`, the folder of
    the downloaded files."""

    source: str | None = None
    output: str | None = None
    name: str | None = None
    shards: int | None = None
    seed: int | None = None
    labels: str | None = None
    val: int | None = None
    threads: int | None = None


def prepare(spec: str, options: Options, say: Say = print) -> Path:
    """Writes the data set of a source and returns its folder, ROOT/NAME/VERSION.

    Args:
      spec: `folder:PATH`, `csv:FILE`, `imagenet2012`, `imagenet21k`,
        `tfds:NAME[/CONFIG][:VERSION]` or `tfds:PACKAGE.MODULE:BUILDER`.
      options: those that the source takes.
      say: is called with each line of the report.

    Raises UserError: the source cannot be read, the data set exists already, the disk is full.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"cannot prepare {spec!r}: {nearest(kind, KINDS)}")
    for option, value in dataclasses.asdict(options).items():
        if value is not None and option not in (*KINDS[kind], "output"):
            flags = [f"--{name}".replace("source", "from") for name in (option, *KINDS[kind])]
            raise UserError(f"{flags[0]} is not for {kind}, which takes {', '.join(flags[1:])}")
        if value is not None and option in LEAST and value < LEAST[option]:
            raise UserError(f"--{option}={value} must be {LEAST[option]} or more")
    root = (Path(options.output).expanduser() if options.output else tfds_root()).absolute()
    if rest and options.source and kind != "tfds":
        raise UserError(f"{spec} names its folder already: leave --from out")
    if kind == "tfds":
        target, fill = builders.plan(rest, root, options.source, options.shards)
    else:
        target, fill = _plan(kind, rest or options.source or "", options)
    with new_folder(root, target) as folder:
        fill(folder, say)
    elsewhere = f" (with TFDS_DATA_DIR={root})" if root != tfds_root().absolute() else ""
    say(f"{root / target} is whole: train on tfds:{target.rpartition('/')[0]}{elsewhere}")
    return root / target


def _plan(kind: str, path: str, options: Options) -> tuple[str, builders.Fill]:
    """Returns the place of the data set below the root, NAME/VERSION, and a function that writes it
    into a folder."""
    name, set_options = kind, {}
    if kind in ("folder", "csv"):
        place = Path(options_apart(path)[0]).expanduser().resolve()
        here = place.stem if kind == "csv" else place.name
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", here).lower()
        name = options.name or re.sub(r"[^a-z0-9]+", "_", words).strip("_")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(
                f"{name!r} is no name for a data set: give one such as --name=my_photos"
            )
    elif not Path(path).expanduser().is_dir() or not path:
        raise UserError(
            f"{kind} is made from --from=FOLDER, which holds its tars"
            + (f"; there is no folder {Path(path).expanduser()}" if path else "")
        )
    else:
        set_options = {option: getattr(options, option) for option in ("labels", "val")
                       if option in KINDS[kind]}  # fmt: skip

    def fill(folder: Path, say: Say) -> None:
        splits = open_splits(f"{kind}:{path}", **set_options)
        for note in dict.fromkeys(note for source in splits.values() for note in source.notes):
            say(note)
        _write(folder, name, splits, options, say)

    return f"{name}/{VERSION}", fill


def _write(folder: Path, name: str, splits: dict[str, Any], options: Options, say: Say) -> None:
    """Writes a data set's shards and metadata into a folder: `image` (bytes), `label` with its
    class names, and `file_name`.

    Raises UserError: an image cannot be read, TFDS cannot keep a class name, the disk is full.
    """
    import tensorflow_datasets as tfds

    classes = next(iter(splits.values())).classes
    several = any(source.max_labels > 1 for source in splits.values())
    if odd := [split for split in splits if not re.fullmatch(r"\w+", split)]:
        raise UserError(f"TFDS cannot keep the split {odd[0]!r}: rename it, as in train or val")
    for class_name in classes:
        if class_name != " ".join(class_name.split()) or not class_name.isprintable():
            raise UserError(f"TFDS cannot keep the class name {class_name!r}: rename its folder")
    label = tfds.features.ClassLabel(names=classes)
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.Sequence(label) if several else label,
        "file_name": tfds.features.Text(),
    })  # fmt: skip
    infos = []
    for split, source in splits.items():
        lengths, size = _write_shards(
            folder / f"{name}-{split}.array_record", source, features, options
        )
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        infos.append(tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
        ))  # fmt: skip
        say(f"{split}: {sum(lengths):,} images, {size:,} bytes, {len(lengths):,} shards")
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, version=VERSION, check_data=False,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        supervised_keys=("image", "label"),
    )  # fmt: skip


def _write_shards(prefix: Path, source: Any, features: Any, options: Options):
    """Writes a split. Returns the number of examples in each shard, and the bytes of all shards."""

    def record(index: int) -> bytes:
        try:
            example = source[int(index)]
        except OSError as error:
            raise UserError(
                f"cannot read {source.describe(index)}: {error.strerror} "
                "(vit data check finds all such files)"
            ) from error
        example["file_name"] = os.fsencode(source.name(index))
        return features.serialize_example(features.encode_example(example))

    total = len(source)
    shards = min(options.shards or 0, total)
    ends = {total * (shard + 1) // shards for shard in range(shards)}
    hashes = name_hashes(map(source.name, range(total)), total, f"seed {options.seed or 0}")
    records = read_ahead(record, np.argsort(hashes), options.threads or 8, f"writing {prefix.stem}")
    lengths: list[int] = []
    size, writer = 0, None
    for number, data in enumerate(records, 1):
        writer = writer or Shard(f"{prefix}-{len(lengths):05d}")
        writer.write(data)
        if number == total or (number in ends if ends else writer.size >= SHARD_BYTES):
            lengths.append(writer.close())
            size, writer = size + writer.size, None
    assert sum(lengths) == total
    for shard in range(len(lengths)):
        os.rename(f"{prefix}-{shard:05d}", f"{prefix}-{shard:05d}-of-{len(lengths):05d}")
    return lengths, size
