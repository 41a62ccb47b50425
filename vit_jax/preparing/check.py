"""Reads every example of a data set and tells what is wrong with it and what it is made of.

Problems are what training would skip, or learn the wrong thing from; sizes, modes and the balance
of the classes are told without judgement.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vit_jax.data.decode import ORIENTATION, DamagedImage, values_of
from vit_jax.data.formats import FORMAT_OF, HEAD, format_of
from vit_jax.data.levels import NeedsRange, unused
from vit_jax.data.prepared import BrokenSet
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.preparing.reading import open_splits, read_ahead
from vit_jax.preparing.statistics import Tally
from vit_jax.preparing.statistics import lines as of_statistics

TINY, HUGE = 32, 10_000  # px: a short side below, a long side above
KINDS = {  # Pillow's modes that are worth telling
    "1": "grey", "L": "grey", "LA": "alpha", "PA": "alpha", "RGBA": "alpha", "CMYK": "CMYK",
    "P": "palette",
}  # fmt: skip
DEPTHS = {"uint8": (), "uint16": ("16-bit",)}  # of values; others by their own names

Problem = dict[str, str]


class Seen(NamedTuple):
    """What an example turned out to be; `digest` is 0 and `size` None where it has no pixels."""

    labels: tuple[int, ...] = ()
    problem: str | None = None
    digest: int = 0
    size: tuple[int, int] | None = None
    kinds: tuple[str, ...] = ()
    deep: "Deep | None" = None


class Deep(NamedTuple):
    """The least and the highest value of each channel of an image of more than 8 bits."""

    dtype: np.dtype
    least: np.ndarray
    most: np.ndarray


def check(
    spec: str, split: str | None = None, threads: int | None = None, *, statistics: bool = False
) -> dict[str, Any]:
    """Checks a split of a source, or all.

    Returns `{"source", "problems", "found", "notes", "splits"}`: `found` is a list of `{"split",
    "path", "problem"}` and `problems` its length; `splits` tells by name of `examples`, `classes`,
    `images_per_class`, `short_side` and `long_side` (`min`, `median`, `max`), `tiny`, `huge`,
    `kinds` (formats and modes, counted) and, where asked for, `statistics` (`Tally.report`).
    `notes` is a list of `{"split", "note"}`: files that are left out, and what training has to be
    told of images of more than 8 bits.

    Raises UserError: no such source or split.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads={threads} must be 1 or more")
    sources = open_splits(spec, [split] if split else ())
    found: list[Problem] = []
    notes: list[dict[str, str]] = []
    splits: dict[str, dict] = {}
    digests, labels = [], []
    label_sets: dict[tuple[int, ...], int] = {}
    for name, source in sources.items():
        label, digest = np.full(len(source), -1, np.int32), np.zeros(len(source), np.uint64)
        counts = np.zeros(len(source.classes), np.int64)
        sides, kinds = np.zeros((len(source), 2), np.int32), Counter[str]()
        tally = Tally() if statistics else None
        deep: dict[str, Deep] = {}
        look, title = partial(_look, source, tally), f"checking {name}"
        for index, seen in enumerate(read_ahead(look, range(len(source)), threads or 8, title)):
            digest[index] = seen.digest
            label[index] = label_sets.setdefault(seen.labels, len(label_sets))
            counts[list(seen.labels)] += 1
            sides[index] = sorted(seen.size or (0, 0))
            kinds.update(seen.kinds)
            if seen.deep:
                _join(deep, seen.deep)
            if seen.problem:
                path = source.describe(index)
                found.append({"split": name, "path": path, "problem": seen.problem})
        if not splits:  # a class may well be absent from what is held out
            found += _empty(spec, name, source, counts)
        sides = sides[sides[:, 0] > 0]
        splits[name] = {
            "examples": len(source),
            "classes": len(source.classes),
            "images_per_class": _spread(counts),
            "short_side": _spread(sides[:, 0]),
            "long_side": _spread(sides[:, 1]),
            "tiny": int((sides[:, 0] < TINY).sum()),
            "huge": int((sides[:, 1] > HUGE).sum()),
            "kinds": dict(kinds.most_common()),
        } | ({"statistics": tally.report()} if tally else {})
        told = {one["note"] for one in notes}
        new = [note for note in (*source.notes, *_notes(deep.values())) if note not in told]
        notes += [{"split": name, "note": note} for note in new]
        digests.append(digest)
        labels.append(label)
    found += _doubles(sources, digests, labels, list(label_sets))
    counted = {"source": spec, "problems": len(found), "found": found}
    return counted | {"notes": notes, "splits": splits}


def lines(report: dict[str, Any]) -> Iterator[str]:
    """A report as people read it: a line a problem, then what there is."""
    for problem in report["found"]:
        yield f"{problem['path']}: {problem['problem']}"
    for name, facts in report["splits"].items():
        yield (
            f"{name}: {facts['examples']:,} images of {facts['classes']:,} classes, "
            f"{_text(facts['images_per_class'])} a class; short side {_text(facts['short_side'])} "
            f"px, long side {_text(facts['long_side'])} px; {facts['tiny']:,} under {TINY} px, "
            f"{facts['huge']:,} over {HUGE:,} px"
        )
        if facts["kinds"]:
            yield f"{name}: " + ", ".join(f"{n:,} {kind}" for kind, n in facts["kinds"].items())
        yield from (f"{name}: note: {n['note']}" for n in report["notes"] if n["split"] == name)
        if "statistics" in facts:
            first = name == next(iter(report["splits"]))
            yield from of_statistics(name, facts["statistics"], propose=first)
    yield f"{report['problems']:,} problem(s)" if report["problems"] else "no problems"


def _look(source: Source, tally: Tally | None, index: int) -> Seen:
    """Reads and decodes an example, and counts its values."""
    try:
        example = source[index]
    except OSError as error:
        return Seen(problem=f"cannot be read: {error.strerror}")
    except BrokenSet:
        raise
    except UserError as error:
        return Seen(problem=str(error))
    image, label = example["image"], example["label"]
    numbers = tuple(label if isinstance(label, list | tuple | np.ndarray) else [label])
    last = len(source.classes) - 1
    for one in numbers:
        if not isinstance(one, int | float | np.number) or not 0 <= one <= last or one != int(one):
            return Seen(problem=f"label {one!r} is no whole number from 0 to {last}")
    labels = tuple(sorted(map(int, numbers)))
    data = image if isinstance(image, bytes) else image.tobytes()
    digest = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
    if not isinstance(image, bytes) and (image.dtype.kind not in "buif" or image.ndim != 3):
        return Seen(labels, f"pixels are {image.dtype} {list(image.shape)}, not uint8 [H, W, C]")
    if not len(image):
        return Seen(labels, "the file is empty")
    try:
        values = values_of(image, source.channels)
        size = (values.shape[0], values.shape[1])
        kinds: tuple[str, ...] = ()
        if isinstance(image, bytes):
            size, kinds = _header(image, size)
    except (DamagedImage, UserError, OSError) as error:
        return Seen(labels, f"damaged: {error}")
    if tally:
        tally.add(values)
    problem: str | None = None
    deep: Deep | None = None
    if isinstance(image, bytes):
        named = FORMAT_OF.get(Path(source.describe(index)).suffix.lower(), kinds[0])
        problem = None if named == kinds[0] else f"it is a {kinds[0]} by another name"
    else:
        kinds = ("grey",) if values.shape[-1] == 1 else ()
        if values.dtype != np.uint8:
            digest = 0
            problem = (
                f"pixels are {image.dtype} {list(image.shape)}, not uint8 [H, W, C]: training "
                "takes them where its pipeline begins with decode(low, high)"
            )
    depth = DEPTHS.get(str(values.dtype), (str(values.dtype),))
    if values.dtype != np.uint8:
        deep = Deep(values.dtype, values.min(axis=(0, 1)), values.max(axis=(0, 1)))
    return Seen(labels, problem, digest, size, kinds + depth, deep)


def _header(data: bytes, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Both sides; the format, and what is unusual about it."""
    kind = format_of(data[:HEAD]) or "unknown"
    if kind == "NumPy":
        return size, (kind,)
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        kinds = [kind]
        kinds += [KINDS[image.mode]] if image.mode in KINDS else []
        kinds += ["alpha"] if "transparency" in image.info else []
        kinds += ["EXIF-rotated"] if image.getexif().get(ORIENTATION, 1) not in (0, 1) else []
        return size, tuple(kinds)


def _join(deep: dict[str, Deep], one: Deep) -> None:
    before = deep.get(str(one.dtype), one)
    least, most = np.minimum(before.least, one.least), np.maximum(before.most, one.most)
    deep[str(one.dtype)] = Deep(one.dtype, least, most)


def _notes(deep: Iterable[Deep]) -> Iterator[str]:
    """What training has to be told of images of more than 8 bits. No problems: a range makes good
    images of them, and which one a run has is not known here."""
    for one in deep:
        try:
            if note := unused(one.dtype, one.least, one.most, None):
                yield note
        except NeedsRange as error:
            yield f"images of {one.dtype}: {error}"


def _empty(spec: str, split: str, source: Source, counts: np.ndarray) -> list[Problem]:
    names = [source.classes[label] for label in np.flatnonzero(counts == 0)]
    if not names:
        return []
    more = f" and {len(names) - 3:,} more" if names[3:] else ""
    problem = f"no images of {', '.join(map(repr, names[:3]))}{more}"
    return [{"split": split, "path": f"{spec} {split}", "problem": problem}]


def _doubles(
    sources: dict[str, Source],
    digests: list[np.ndarray],
    labels: list[np.ndarray],
    label_sets: list[tuple[int, ...]],
) -> Iterator[Problem]:
    """Examples with the bytes of an earlier one, of any split."""
    names, starts = list(sources), np.cumsum([0, *map(len, digests)])
    digest, label = np.concatenate(digests), np.concatenate(labels)
    order = np.argsort(digest, kind="stable")
    new = np.diff(digest[order], prepend=0) != 0  # 0 itself stands for no pixels
    first_place = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    doubles = np.flatnonzero(~new & (digest[order] != 0))

    def find(number: int) -> tuple[str, str]:
        part = int(np.searchsorted(starts, number, "right")) - 1
        return names[part], sources[names[part]].describe(number - int(starts[part]))

    for place in doubles.tolist():
        this, first = int(order[place]), int(order[first_place[place]])
        (split, path), (first_split, first_path) = find(this), find(first)
        problem = f"the same bytes as {first_path}"
        if label[this] != label[first]:
            classes = [sources[first_split].classes[one] for one in label_sets[label[first]]]
            problem += f", which is labelled {', '.join(map(repr, classes)) or 'nothing'}"
        if split != first_split:
            problem += f", which is in {first_split!r}"
        yield {"split": split, "path": path, "problem": problem}


def _spread(values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return {"min": 0, "median": 0, "max": 0}
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "max": int(values.max()),
    }


def _text(spread: dict[str, float]) -> str:
    return f"{spread['min']:,}–{spread['max']:,} (median {spread['median']:,.0f})"
