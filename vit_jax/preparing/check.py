"""Reads every example of a data set and tells what is wrong with it and what it is made of.

Problems are what training would skip, or learn the wrong thing from; sizes, modes and the balance
of the classes are told without judgement.
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

from vit_jax.data.decode import ORIENTATION, DamagedImage, decode
from vit_jax.data.prepared import BrokenSet
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.preparing.reading import open_splits, read_ahead

TINY, HUGE = 32, 10_000  # px: a short side below, a long side above
FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
KINDS = {  # Pillow's modes that are worth telling
    "1": "grey", "L": "grey", "LA": "alpha", "PA": "alpha", "RGBA": "alpha", "CMYK": "CMYK",
    "P": "palette", "I": "16-bit", "I;16": "16-bit", "I;16B": "16-bit",
}  # fmt: skip

Problem = dict[str, str]


class Seen(NamedTuple):
    """What an example turned out to be; `digest` is 0 and `size` None where it has no pixels."""

    labels: tuple[int, ...] = ()
    problem: str | None = None
    digest: int = 0
    size: tuple[int, int] | None = None
    kinds: tuple[str, ...] = ()


def check(spec: str, split: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """Checks a split of a source, or all.

    Returns `{"source", "problems", "found", "notes", "splits"}`: `found` is a list of
    `{"split", "path", "problem"}` and `problems` its length; `notes` are lines on what is left out;
    `splits` tells by name of `examples`, `classes`, `images_per_class`, `short_side` and
    `long_side` (`min`, `median`, `max`), `tiny`, `huge`, and `kinds` (formats and modes, counted).

    Raises UserError: no such source or split.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads={threads} must be 1 or more")
    sources = open_splits(spec, [split] if split else ())
    found: list[Problem] = []
    splits: dict[str, dict] = {}
    digests, labels = [], []
    label_sets: dict[tuple[int, ...], int] = {}
    for name, source in sources.items():
        label, digest = np.full(len(source), -1, np.int32), np.zeros(len(source), np.uint64)
        counts = np.zeros(len(source.classes), np.int64)
        sides, kinds = np.zeros((len(source), 2), np.int32), Counter[str]()
        look, title = partial(_look, source), f"checking {name}"
        for index, seen in enumerate(read_ahead(look, range(len(source)), threads or 8, title)):
            digest[index] = seen.digest
            label[index] = label_sets.setdefault(seen.labels, len(label_sets))
            counts[list(seen.labels)] += 1
            sides[index] = sorted(seen.size or (0, 0))
            kinds.update(seen.kinds)
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
        }
        digests.append(digest)
        labels.append(label)
    found += _doubles(sources, digests, labels, list(label_sets))
    notes = list(dict.fromkeys(note for source in sources.values() for note in source.notes))
    return {
        "source": spec, "problems": len(found), "found": found, "notes": notes, "splits": splits,
    }  # fmt: skip


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
    yield from report["notes"]
    yield f"{report['problems']:,} problem(s)" if report["problems"] else "no problems"


def _look(source: Source, index: int) -> Seen:
    """Reads and decodes an example."""
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
    if not isinstance(image, bytes):
        if image.dtype != np.uint8 or image.ndim != 3:
            return Seen(
                labels, f"pixels are {image.dtype} {list(image.shape)}, not uint8 [H, W, C]"
            )
        height, width, channels = image.shape
        return Seen(labels, None, digest, (height, width), ("grey",) if channels == 1 else ())
    if not image:
        return Seen(labels, "the file is empty")
    try:
        pixels = decode(image, source.channels)
        if image[:6] == b"\x93NUMPY":
            return Seen(labels, None, digest, pixels.shape[:2], ("NumPy",))
        size, kinds = _header(image)
    except (DamagedImage, UserError, OSError) as error:
        return Seen(labels, f"damaged: {error}")
    named = FORMATS.get(Path(source.describe(index)).suffix.lower(), kinds[0])
    problem = None if named == kinds[0] else f"it is a {kinds[0]} by another name"
    return Seen(labels, problem, digest, size, kinds)


def _header(data: bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Width and height as stored; the format, and what is unusual about it."""
    with Image.open(io.BytesIO(data)) as image:
        kinds = [(image.format or "unknown").replace("MPO", "JPEG")]  # MPO: a JPEG and more of them
        kinds += [KINDS[image.mode]] if image.mode in KINDS else []
        kinds += ["alpha"] if "transparency" in image.info else []
        kinds += ["EXIF-rotated"] if image.getexif().get(ORIENTATION, 1) not in (0, 1) else []
        return image.size, tuple(kinds)


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
