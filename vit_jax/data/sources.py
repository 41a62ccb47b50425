"""Opens sources of examples by their names.

Names are `digits`, `folder:PATH`, `csv:FILE`, `tfds:NAME`, `hf:NAME`, `synthetic`,
`imagenet2012:FOLDER`, `imagenet21k:FOLDER` and `my_module:NAME`; with boxes
`coco:FOLDER`, `voc:FOLDER` and `digit_scenes`. Sources are mixed as
`0.7*folder:A + 0.3*tfds:B`. Their classes are in `memory.py`, `files.py`, `archives.py`, `tfds.py`,
`hugging_face.py`, `annotated.py` and `scenes.py`.
"""

import contextlib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.data import annotated, archives, files, hugging_face, memory, scenes, tables, tfds
from vit_jax.data.decode import DamagedImage
from vit_jax.data.source import Facts, Source, class_order
from vit_jax.data.splits import NoSplit, choose
from vit_jax.errors import UserError, nearest, printable
from vit_jax.user_code import imported, is_module

# Sets by name: classes, and examples per split. ImageNet-21k (fall 2011, ViT paper section 4.1) and
# JFT-300M (18,291 classes, arXiv 1707.02968; private) have no public builder.
KNOWN = {
    "tfds:imagenet21k": (21_843, {"train": 14_197_122, "val": 102_400}),
    "tfds:jft300m": (18_291, {"train": 303_000_000, "val": 100_000}),
    "tfds:imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
    "tfds:cifar10": (10, {"train": 50_000, "test": 10_000}),
    "tfds:cifar100": (100, {"train": 50_000, "test": 10_000}),
    "tfds:oxford_iiit_pet": (37, {"train": 3680, "test": 3669}),
    "tfds:oxford_flowers102": (102, {"train": 1020, "validation": 1020, "test": 6149}),
    "coco": (80, {"train": 118_287, "val": 5_000}),  # 2017, arXiv 1405.0312; names no folder
    "tfds:coco/2017": (80, {"train": 118_287, "validation": 5_000, "test": 40_670}),
}
# Of those with boxes: objects of an image, at most, crowds not counted.
KNOWN_OBJECTS = {"coco": 93, "tfds:coco/2017": 93}


def open_source(spec: str, split: str, classes: list[str] | None = None, **options: Any) -> Source:
    """Opens the split of a source.

    Args:
      spec: the source's name, or a mixture of several: `[WEIGHT*]SOURCE + [WEIGHT*]SOURCE …`.
      split: `train`, `val`, …; or several together, `train+val`.
      classes: the class names that labels refer to, if they are known already (those of the
        training split); another class is refused.
      options: those of the source's class, such as `labels` of `archives.Archive`.

    Raises UserError: there is no such source, folder, split or class; it says what would work.
    """
    parts = _parts(spec)
    kind, _, rest = spec.partition(":")
    if len(parts) > 1:
        opened = [open_source(part, split) for _, part in parts]
        source: Source = Mixture(spec, opened, [weight for weight, _ in parts], classes)
    elif kind in KINDS and kind != "tfds" and len(splits := _several(spec, split)) > 1:
        opened = _opened(spec, splits, classes, **options)
        source = Mixture(f"{spec} {split}", opened, [None] * len(opened), classes, ordered=True)
    elif kind in KINDS:
        source = KINDS[kind][0](rest, split, classes, **options)
    elif is_module(kind):
        source = ByImportPath(spec, split)
    else:
        own = f"; one of your own is MODULE:NAME, and there is no module {printable(kind)} here"
        hint = own if rest.partition(":")[0].isidentifier() else ""
        raise UserError(f"unknown data source {spec!r}: {nearest(kind, KINDS)}{hint}")
    if classes is not None and source.classes != classes:
        raise UserError(
            f"{spec} has other classes ({len(source.classes)}) than the training data "
            f"({len(classes)})"
        )
    return source


def _several(spec: str, split: str) -> list[str]:
    """The splits of `train+val`; of another text, or a split of exactly this name, itself.

    Raises UserError: two of them are the same.
    """
    parts = [part.strip() for part in split.split("+")]
    if not parts[1:]:
        return [split]
    existing = split_names(spec)
    if split in existing:
        return [split]
    chosen = list(parts)
    for place, part in enumerate(parts):
        with contextlib.suppress(NoSplit):  # it is refused where it is opened, or has another name
            chosen[place] = choose(spec, part, existing)
    if doubled := [part for part in chosen if chosen.count(part) > 1]:
        raise UserError(f"{spec}: the split {split!r} has {doubled[0]!r} twice")
    return chosen


def _opened(
    spec: str, splits: list[str], classes: list[str] | None, **options: Any
) -> list[Source]:
    """The splits of a source, but for those that hold no examples, as `val` of a tiny set."""
    opened: list[Source] = []
    for split in splits:
        try:
            opened.append(open_source(spec, split, classes, **options))
        except NoSplit:
            if split not in split_names(spec) or (split == splits[-1] and not opened):
                raise
    return opened


def split_names(spec: str) -> list[str]:
    """The splits of a source, that of training first. If the source does not know them, those that
    it may have. Raises UserError as `open_source` does."""
    kind, _, rest = spec.partition(":")
    if kind in KINDS and len(_parts(spec)) == 1:
        splits = KINDS[kind][1]
        return list(splits(rest) if callable(splits) else splits)
    return ["train", "val", "test"] if " + " in spec else ["train", "val", "validation", "test"]


def facts(spec: str, split: str) -> Facts:
    """The sizes of a split: from its data if that is on this machine, else from `KNOWN`."""
    name = spec.partition("?")[0]
    kind, _, rest = name.partition(":")
    if name in KNOWN and not (kind == "tfds" and tfds.prepared_folder(rest)):
        num_classes, counts = KNOWN[name]
        count = 0
        for each in split.split("+"):
            base, bracket, part = each.strip().partition("[")
            count += _part_of(counts[choose(spec, base, counts)], bracket + part)
        return Facts(count, num_classes, max_objects=KNOWN_OBJECTS.get(name, 0))
    return Facts.of(open_source(spec, split))


def _part_of(count: int, part: str) -> int:
    """How many of `count` examples TFDS's `[FROM:TO]` takes. An end is a number or a percentage."""
    match = re.fullmatch(r"\[(-?\d+%?)?:(-?\d+%?)?\]", part or "[:]")
    if match is None:
        raise UserError(f"{part} is no part of a split: write it as train[:99%] or train[:1000]")

    def place(text: str | None) -> int | None:
        if text is None or not text.endswith("%"):
            return None if text is None else int(text)
        return round(count * int(text[:-1]) / 100)

    return len(range(count)[slice(*map(place, match.groups()))])


class Mixture(Source):
    """Several sources, one after the other. Their classes are one list, joined by name; `ordered`
    says that names which not all of them have are sorted, as those of a source are.

    With weights, training draws from each source by its share (`weights` sums to 1), and an epoch
    is as long as all sources together. Without weights, all examples are equally likely. Sources
    with boxes are taken only if they are splits of one, with the same classes.
    """

    def __init__(self, spec: str, sources: list[Source], weights: list[float | None],
                 classes: list[str] | None, ordered: bool = False):  # fmt: skip
        self.max_objects = max(source.max_objects for source in sources)
        if self.max_objects and not ordered:
            raise UserError(f"{spec}: sources with boxes are not mixed")
        stated = [weight for weight in weights if weight is not None]
        if stated and len(stated) < len(weights):
            raise UserError(f"{spec}: give every source of the mixture a weight, or none")
        channels = {source.channels for source in sources}
        if len(channels) > 1:
            raise UserError(f"{spec}: the sources have {sorted(channels)} channels, not the same")
        self.sources, self.channels = sources, sources[0].channels
        self.weights = [weight / sum(stated) for weight in stated]
        self.ends = np.cumsum([len(source) for source in sources])
        every = list(dict.fromkeys(name for source in sources for name in source.classes))
        if ordered and any(source.classes != every for source in sources):
            if self.max_objects:
                raise UserError(f"{spec}: its splits have other classes: they are not joined")
            every = class_order(every)
        self.classes = list(classes or every)
        number = {name: label for label, name in enumerate(self.classes)}
        if extra := [name for name in every if name not in number]:
            raise UserError(f"{spec} has the class {extra[0]!r}, which training does not know")
        self._labels = [[number[name] for name in source.classes] for source in sources]
        self.max_labels = max(source.max_labels for source in sources)
        notes = [note for s in sources for note in s.notes if not ordered or note not in s.few]
        self.notes = tuple(dict.fromkeys(notes))
        hashes = [source.names_hash for source in sources]
        if None not in hashes:
            joined = " ".join(map(str, hashes)).encode()
            self.names_hash = hashlib.blake2b(joined, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, index: int) -> tuple[int, int]:
        which = int(np.searchsorted(self.ends, index, "right"))
        return which, index - int(self.ends[which - 1] if which else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        which, inside = self._find(index)
        example, numbers = self.sources[which][inside], self._labels[which]
        if self.max_objects:
            return example
        label = example["label"]
        several = isinstance(label, Sequence | np.ndarray)
        return example | {"label": [numbers[n] for n in label] if several else numbers[label]}

    def describe(self, index: int) -> str:
        which, inside = self._find(index)
        return self.sources[which].describe(inside)


def _parts(spec: str) -> list[tuple[float | None, str]]:
    """(weight, source) of each part of a mixture. A single source is one part."""
    if " + " not in spec:
        return [(None, spec)]
    parts: list[tuple[float | None, str]] = []
    for part in spec.split(" + "):
        match = re.fullmatch(r"(?:([0-9.eE-]+)\*)?(.+)", part.strip())
        if match is None:
            raise UserError(f"{spec}: write a mixture as 0.7*folder:A + 0.3*folder:B")
        weight = float(match[1]) if match[1] else None
        if weight is not None and not (math.isfinite(weight) and weight > 0):
            raise UserError(f"{spec}: a weight is a positive number, not {match[1]}")
        parts.append((weight, match[2]))
    return parts


class ByImportPath(Source):
    """`my_module:NAME[:ARGUMENT]`, also of a package: the source that NAME(split[, ARGUMENT])
    returns. What it leaves out is filled in."""

    def __init__(self, spec: str, split: str):
        module, _, rest = spec.partition(":")
        name, _, argument = rest.partition(":")
        make = imported(f"{module}:{name}", "a data source")
        try:
            source = make(split, argument) if argument else make(split)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{spec} cannot be made: {type(error).__name__}: {error}") from error
        missing = [name for name in ("__len__", "__getitem__", "classes")
                   if not hasattr(source, name)]  # fmt: skip
        if missing:
            raise UserError(f"{spec} is no data source: it has no {', '.join(missing)}")
        self.title, self.source, self._data = spec, source, source
        self.classes = [str(name) for name in source.classes]
        for name in ("channels", "max_labels", "max_objects", "notes", "names_hash"):
            setattr(self, name, getattr(source, name, getattr(Source, name)))
        if not isinstance(self.names_hash, str | None):
            raise UserError(f"{spec}: its names_hash is {self.names_hash!r}, not a text or None")

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.source[index]
            key = "objects" if self.max_objects else "label"
            return {"image": example["image"], key: example[key]}
        except (DamagedImage, OSError):
            raise
        except Exception as error:  # it may raise anything
            raise UserError(
                f"{self.describe(index)} cannot be had: {type(error).__name__}: {error}"
            ) from error

    def describe(self, index: int) -> str:
        describe = getattr(self.source, "describe", None)
        return describe(index) if describe else super().describe(index)


Splits = Sequence[str] | Callable[[str], Sequence[str]]
TRAIN_VAL = ("train", "val")

# Kind of source: the function that opens a split of it; its splits, or a function that finds them.
KINDS: dict[str, tuple[Callable[..., Source], Splits]] = {
    "digits": (memory.digits, TRAIN_VAL),
    "folder": (files.Folder, files.folder_splits),
    "csv": (tables.Table, tables.table_splits),
    "synthetic": (memory.Synthetic, TRAIN_VAL),
    "tfds": (tfds.open_split, tfds.splits),
    "hf": (hugging_face.open_split, hugging_face.splits),
    "coco": (annotated.coco, annotated.coco_splits),
    "voc": (annotated.voc, annotated.voc_splits),
    "digit_scenes": (scenes.DigitScenes, TRAIN_VAL),
    **{
        kind: (functools.partial(archives.Archive, kind), splits)
        for kind, (splits, _) in archives.RELEASES.items()
    },
}
