"""Reads every example of a data set, and reports what is wrong with it and what it consists of.

A problem is an example that training would skip, or from which it would learn the wrong thing.
Sizes, modes and the balance of the classes are reported without judgement.
"""

import io
from collections import Counter
from collections.abc import Iterator
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
from vit_jax.preparing.statistics import lines as lines_of_statistics

TINY, HUGE = 32, 10_000  # pixels: counts are of short sides below, and of long sides above
KINDS = {  # Pillow's modes that are counted
    "1": "grey", "L": "grey", "LA": "alpha", "PA": "alpha", "RGBA": "alpha", "CMYK": "CMYK",
    "P": "palette",
}  # fmt: skip
DEPTHS = {"uint8": (), "uint16": ("16-bit",)}  # names of dtypes; others have their own

Problem = dict[str, str]


class Example(NamedTuple):
    """Facts about one example. `digest` is 0 and `size` is None if it has no pixels. `ends` are the
    lowest and the highest value of each channel, if values have more than 8 bits."""

    labels: tuple[int, ...] = ()
    problem: str | None = None
    digest: int = 0
    size: tuple[int, int] | None = None
    kinds: tuple[str, ...] = ()
    ends: tuple[np.ndarray, np.ndarray] | None = None


def check(
    spec: str, split: str | None = None, threads: int | None = None, *, statistics: bool = False
) -> dict[str, Any]:
    """Checks one split of a source, or all.

    Returns `{"source", "problems", "found", "notes", "splits"}`: `found` is a list of `{"split",
    "path", "problem"}` and `problems` its length. `splits` holds by name: `examples`, `classes`,
    `images_per_class`, `short_side` and `long_side` (`min`, `median`, `max`), `tiny`, `huge`,
    `kinds` (formats and modes with their counts) and, if asked for, `statistics` (`Tally.report`).
    `notes` is a list of `{"split", "note"}`: files that are left out, and images of more than 8
    bits that need a range.

    Raises UserError: there is no such source or split.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads={threads} must be 1 or more")
    sources = open_splits(spec, [split] if split else ())
    problems: list[Problem] = []
    notes: dict[str, str] = {}  # note -> the first split with this note
    splits: dict[str, dict] = {}
    label_sets: dict[tuple[int, ...], int] = {}
    tables: list[Any] = []
    for name, source in sources.items():
        table = np.zeros(len(source), [("digest", "u8"), ("labels", "i4"), ("sides", "i4", 2)])
        counts, kinds = np.zeros(len(source.classes), np.int64), Counter[str]()
        tally = Tally() if statistics else None
        ends: dict[np.dtype, tuple[np.ndarray, np.ndarray]] = {}
        read, title = partial(_examine, source, tally), f"checking {name}"
        for index, example in enumerate(read_ahead(read, range(len(source)), threads or 8, title)):
            labels = label_sets.setdefault(example.labels, len(label_sets))
            table[index] = example.digest, labels, sorted(example.size or (0, 0))
            counts[list(example.labels)] += 1
            kinds.update(example.kinds)
            if example.ends:
                least, most = example.ends
                before = ends.setdefault(least.dtype, example.ends)
                ends[least.dtype] = np.minimum(before[0], least), np.maximum(before[1], most)
            if example.problem:
                problems.append(
                    dict(split=name, path=source.describe(index), problem=example.problem)
                )
        if not splits and not counts.all():  # other splits may lack a class
            empty = [repr(source.classes[place]) for place in np.flatnonzero(counts == 0)]
            more = f" and {len(empty) - 3:,} more" if empty[3:] else ""
            text = f"no images of {', '.join(empty[:3])}{more}"
            problems.append(dict(split=name, path=f"{spec} {name}", problem=text))
        sides = table["sides"][table["sides"][:, 0] > 0]
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
        for note in (*source.notes, *_notes(ends)):
            notes.setdefault(note, name)
        tables.append(table)
    problems += _doubles(sources, tables, list(label_sets))
    return {
        "source": spec, "problems": len(problems), "found": problems,
        "notes": [{"split": name, "note": note} for note, name in notes.items()], "splits": splits,
    }  # fmt: skip


def lines(report: dict[str, Any]) -> Iterator[str]:
    """A report as text: one line per problem, then a description of each split."""
    for problem in report["found"]:
        yield f"{problem['path']}: {problem['problem']}"
    for name, facts in report["splits"].items():
        per_class, short, long = (
            f"{of['min']:,}–{of['max']:,} (median {of['median']:,.0f})"
            for of in (facts["images_per_class"], facts["short_side"], facts["long_side"])
        )
        yield (
            f"{name}: {facts['examples']:,} images of {facts['classes']:,} classes, {per_class} a "
            f"class; short side {short} px, long side {long} px; {facts['tiny']:,} under {TINY} "
            f"px, {facts['huge']:,} over {HUGE:,} px"
        )
        if facts["kinds"]:
            yield f"{name}: " + ", ".join(f"{n:,} {kind}" for kind, n in facts["kinds"].items())
        yield from (f"{name}: note: {n['note']}" for n in report["notes"] if n["split"] == name)
        if "statistics" in facts:
            first = name == next(iter(report["splits"]))
            yield from lines_of_statistics(name, facts["statistics"], propose=first)
    yield f"{report['problems']:,} problem(s)" if report["problems"] else "no problems"


def _examine(source: Source, tally: Tally | None, index: int) -> Example:
    """Reads and decodes an example, and counts its values."""
    try:
        example = source[index]
    except OSError as error:
        return Example(problem=f"cannot be read: {error.strerror}")
    except BrokenSet:
        raise
    except UserError as error:
        return Example(problem=str(error))
    image, objects = example["image"], example.get("objects")
    label = example["label"] if objects is None else np.unique(objects.classes)
    encoded, last = isinstance(image, bytes), len(source.classes) - 1
    numbers = tuple(label if isinstance(label, list | tuple | np.ndarray) else [label])
    for number in numbers:
        real = isinstance(number, int | float | np.number)
        if not real or not 0 <= number <= last or number != int(number):
            return Example(problem=f"label {number!r} is no whole number from 0 to {last}")
    labels = tuple(sorted(map(int, numbers)))
    digest = int.from_bytes(
        blake2b(image if encoded else image.tobytes(), digest_size=8).digest(), "little"
    )
    shape = "" if encoded else f"pixels are {image.dtype} {list(image.shape)}, not uint8 [H, W, C]"
    if not encoded and (image.dtype.kind not in "buif" or image.ndim != 3):
        return Example(labels, shape)
    if not len(image):
        return Example(labels, "the file is empty")
    try:
        values = values_of(image, source.channels)
        size, kinds = (values.shape[0], values.shape[1]), tuple[str, ...]()
        if encoded:
            size, kinds = _header(image, size)
    except (DamagedImage, UserError, OSError) as error:
        return Example(labels, f"damaged: {error}")
    if tally:
        tally.add(values)
    problem = None
    if encoded:
        named = FORMAT_OF.get(Path(source.describe(index)).suffix.lower(), kinds[0])
        problem = None if named == kinds[0] else f"it is a {kinds[0]} by another name"
    elif values.shape[-1] == 1:
        kinds = ("grey",)
    kinds += DEPTHS.get(str(values.dtype), (str(values.dtype),))
    if values.dtype == np.uint8:
        return Example(labels, problem, digest, size, kinds)
    if not encoded:
        digest = 0
        problem = f"{shape}: training takes them where its pipeline begins with decode(low, high)"
    ends = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    return Example(labels, problem, digest, size, kinds, ends)


def _header(data: bytes, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Both sides as the file stores them, and its format with its unusual properties."""
    kind = format_of(data[:HEAD]) or "unknown"
    if kind == "NumPy":
        return size, (kind,)
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        kinds = [kind]
        kinds += [KINDS[image.mode]] if image.mode in KINDS else []
        kinds += ["alpha"] if "transparency" in image.info else []
        kinds += ["EXIF-rotated"] if image.getexif().get(ORIENTATION, 1) not in (0, 1) else []
        return size, tuple(kinds)


def _notes(ends: dict[np.dtype, tuple[np.ndarray, np.ndarray]]) -> Iterator[str]:
    """Notes about images of more than 8 bits. They are no problems, because a run can state the
    range of the values, which the check does not know."""
    for dtype, (least, most) in ends.items():
        try:
            if note := unused(dtype, least, most, None):
                yield note
        except NeedsRange as error:
            yield f"images of {dtype}: {error}"


def _doubles(
    sources: dict[str, Source], tables: list[np.ndarray], label_sets: list[tuple[int, ...]]
) -> Iterator[Problem]:
    """A problem for each example that has the same bytes as an earlier one, of any split."""
    names, starts = list(sources), np.cumsum([0, *map(len, tables)])
    table = np.concatenate(tables)
    digest, label = table["digest"], table["labels"]
    order = np.argsort(digest, kind="stable")
    new = np.diff(digest[order], prepend=0) != 0  # 0 stands for an example without pixels
    first_place = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    doubles = np.flatnonzero(~new & (digest[order] != 0))

    def locate(number: int) -> tuple[str, str]:
        part = int(np.searchsorted(starts, number, "right")) - 1
        return names[part], sources[names[part]].describe(number - int(starts[part]))

    for place in doubles.tolist():
        this, first = int(order[place]), int(order[first_place[place]])
        (split, path), (first_split, first_path) = locate(this), locate(first)
        text = f"the same bytes as {first_path}"
        if label[this] != label[first]:
            names_of = sources[first_split].classes
            classes = [names_of[number] for number in label_sets[label[first]]]
            text += f", which is labelled {', '.join(map(repr, classes)) or 'nothing'}"
        if split != first_split:
            text += f", which is in {first_split!r}"
        yield dict(split=split, path=path, problem=text)


def _spread(values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return {"min": 0, "median": 0, "max": 0}
    least, median, most = values.min(), np.median(values), values.max()
    return {"min": int(least), "median": float(median), "max": int(most)}
