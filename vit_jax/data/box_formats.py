"""Boxes as data sets state them: the formats, and what in them cannot be learned.

Boxes without area or with values that are no numbers are left out, and boxes are cut at the edges
of their image. All of that is counted, and stated once, as notes. A set whose boxes have another
format than the one they are read by is refused.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.levels import DamagedImage
from vit_jax.data.objects import Objects
from vit_jax.errors import UserError
from vit_jax.records import is_number

WRONG = 0.2  # share of boxes that do not fit their image, above which their format is asked about
ODD = 0.05  # share of boxes that may fit their image by no format
# Names of an object's fields in the sets that libraries read.
CATEGORIES = ("category", "label", "labels", "categories", "category_id", "class")
CROWDS = ("is_crowd", "iscrowd", "crowd", "is_difficult", "difficult")

Fields = Mapping[str, Sequence[Any]]  # of objects: an entry for each under each name


class Annotation(NamedTuple):
    """One image: its file's name, (height, width), and its objects."""

    name: str
    size: tuple[int, int]
    boxes: np.ndarray  # float64 [N, 4], in a format of FORMATS
    classes: np.ndarray  # int64 [N]
    crowd: np.ndarray  # bool [N]
    area: np.ndarray  # float64 [N], pixels; NaN where the set does not state it


# Order of a box's four numbers: a function to x1, y1, x2, y2.
ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xywh": lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1),
    "xyxy": lambda b: b,
    "cxcywh": lambda b: np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1),
    "yxyx": lambda b: b[:, [1, 0, 3, 2]],
}
# In pixels, or with `rel_` as shares of the image's sides. TFDS and Keras name them so.
FORMATS = (*ORDERS, *(f"rel_{order}" for order in ORDERS))


def in_pixels(boxes: np.ndarray, sizes: np.ndarray, how: str) -> np.ndarray:
    """Boxes [N, 4] of a format as x1, y1, x2, y2 in pixels. `sizes` [N, 2] or [2]: height, width of
    the image of each."""
    with np.errstate(all="ignore"):  # infinities and NaN, which are counted
        found = ORDERS[how.removeprefix("rel_")](boxes)
        return found * np.asarray(sizes)[..., [1, 0, 1, 0]] if how.startswith("rel_") else found


def numbers_of(boxes: Sequence[Any]) -> np.ndarray:
    """Boxes of a file as float64 [N, 4]: NaN for what is no number, and for a box that has not four
    values."""
    rows = [
        [float(n) if is_number(n) else np.nan for n in box]
        if isinstance(box, list) and len(box) == 4 else [np.nan] * 4
        for box in boxes
    ]  # fmt: skip
    return np.array(rows, np.float64).reshape(-1, 4)


def of_fields(
    size: tuple[int, int], fields: Fields, boxes: np.ndarray, classes: list[int]
) -> Annotation:
    """The annotation of an image of a library's set, with what else its fields state. Raises
    ValueError: they have different lengths."""
    count = len(boxes)
    crowd = np.zeros(count, bool)
    for name in CROWDS:
        marked = [bool(value) for value in fields.get(name, [False] * count)]
        if len(marked) != count:
            raise ValueError(f"it has {count} boxes, and {len(marked)} values of {name}")
        crowd |= np.array(marked, bool)
    areas = [float(a) if a is not None else np.nan for a in fields.get("area", [None] * count)]
    if not len(classes) == len(areas) == count:
        raise ValueError(f"it has {count} boxes, {len(classes)} classes and {len(areas)} areas")
    return Annotation("", size, boxes, np.array(classes, np.int64), crowd, np.array(areas))


def has_objects(fields: Iterable[str], labels: Sequence[str]) -> bool:
    """Whether a set is read as one with boxes if nothing else is asked for: an object has a box and
    a class, or a box where the set has no `labels`."""
    return "bbox" in fields and (not labels or not set(CATEGORIES).isdisjoint(fields))


def category_of(spec: str, query: Mapping[str, str], fields: Sequence[str]) -> str:
    """The field of an object that is its class: the one that a source's query names, or the usual
    one. Raises UserError: `fields`, those that can be one, have none."""
    name = query.get("category") or next((name for name in CATEGORIES if name in fields), "")
    if name not in fields:
        raise UserError(
            f"{spec}: the class of an object is needed, as ?category=FIELD: "
            + (f"one of {', '.join(fields)}" if fields else "its objects have none")
        )
    return name


def format_of_query(spec: str, query: Mapping[str, str], default: str) -> str:
    """The format of boxes that a source's query names. Raises UserError: there is no such one."""
    how = query.get("boxes", default)
    if how not in FORMATS:
        raise UserError(f"{spec}: boxes={how} is none of {', '.join(FORMATS)}")
    return how


def checked(one: Annotation, how: str, counted: Counter[str]) -> Annotation:
    """The annotation with boxes as x1, y1, x2, y2 in pixels, without what cannot be learned, which
    is counted."""
    height, width = one.size
    found = in_pixels(one.boxes, np.array(one.size), how)
    finite = np.isfinite(found).all(axis=1)
    counted["boxes have values that are no numbers, and are left out"] += int((~finite).sum())
    found = np.where(finite[:, None], found, 0.0)
    cut = np.clip(found, 0, [width, height, width, height])
    empty = finite & ~(cut[:, 2:] > cut[:, :2]).all(axis=1)
    counted["boxes have no area in their image, and are left out"] += int(empty.sum())
    kept = finite & ~empty
    outside = kept & (np.abs(cut - found) > 1.0).any(axis=1)
    counted["boxes leave their image, and are cut at its edges"] += int(outside.sum())
    counted["boxes are crowds, which are no targets"] += int((one.crowd & kept).sum())
    with np.errstate(over="ignore"):
        own = np.prod(found[:, 2:] - found[:, :2], axis=1)
    area = np.where(np.isfinite(one.area), one.area, own)
    return Annotation(one.name, one.size, cut[kept], one.classes[kept], one.crowd[kept], area[kept])


def objects_of(one: Annotation) -> Objects:
    """The objects of a checked annotation."""
    return Objects.of_pixels(one.boxes, one.classes, one.size, one.crowd, one.area)


class Survey:
    """What the annotations of a split hold, one image after the other.

    title: the split, for messages. how: the format of its boxes. remedy: what would work if they
    have another one, FORMAT. counted: what was found, and how often. most: objects of an image, at
    most.
    """

    def __init__(
        self, title: str, how: str, remedy: str = "convert them",
        counted: Counter[str] | None = None,
    ):  # fmt: skip
        self.title, self.how, self.remedy = title, how, remedy
        self.counted, self.most = Counter[str]() if counted is None else counted, 1
        self._digest = hashlib.blake2b(digest_size=16)
        self._boxes, self._sizes = [np.zeros((0, 4))], [np.zeros((0, 2))]

    def add(self, one: Annotation) -> Annotation:
        """Takes an image in, and returns its annotation as `checked`."""
        self._boxes.append(one.boxes)
        self._sizes.append(np.tile(np.array(one.size, np.float64), (len(one.boxes), 1)))
        one = checked(one, self.how, self.counted)
        self.most = max(self.most, len(one.boxes))
        self._digest.update(one.name.encode(errors="surrogateescape") + one.boxes.tobytes())
        self._digest.update(one.classes.tobytes())
        return one

    def add_read(self, rows: Iterable[Any], annotation: Callable[[int, Any], Annotation]) -> None:
        """Takes all images in, whose `annotation` is made of its number and its row."""
        for index, row in enumerate(rows):
            try:
                self.add(annotation(index, row))
            except (DamagedImage, OSError):
                self.counted["images are damaged, and their boxes are not counted"] += 1

    @property
    def digest(self) -> str:
        """A text that is the same for the same names, boxes and classes."""
        return self._digest.hexdigest()

    def finish(self) -> tuple[str, ...]:
        """Lines for the user about all images. Raises UserError: boxes do not fit their images as
        they are read, and all or nearly all would as another format."""
        boxes, sizes = np.concatenate(self._boxes), np.concatenate(self._sizes)
        total = len(boxes)
        wrong = {how: int((~_fit(boxes, sizes, how)).sum()) for how in FORMATS}
        here, least = wrong[self.how], min(wrong.values())
        odd = 3 * least <= here and least <= max(1, ODD * total)
        if here > WRONG * total and odd:
            others = [how for how in FORMATS if wrong[how] == least]
            fitting = f"all but {least:,}" if least else "all"
            raise UserError(
                f"{self.title}: {here:,} of {total:,} boxes do not fit into their images, read as "
                f"{self.how}; {fitting} would fit as {' or '.join(others)}: "
                f"{self.remedy.replace('FORMAT', others[0])}"
            )
        return tuple(f"{self.title}: {n:,} {what}" for what, n in self.counted.items() if n)


def _fit(boxes: np.ndarray, sizes: np.ndarray, how: str) -> np.ndarray:
    """Whether each box has an area and lies within its image; as pixels, not in the first one."""
    found = in_pixels(boxes, sizes, how)
    first = 1.01 if how in ORDERS else 0.0  # shares that were rounded are a little above 1
    with np.errstate(invalid="ignore"):
        inside = (found[:, :2] >= -1).all(axis=1) & (found[:, 2:] <= sizes[:, ::-1] + 1).all(axis=1)
        area = (found[:, 2:] > found[:, :2]).all(axis=1)
        beyond = (found[:, 2:] > first).any(axis=1)
    return np.asarray(inside & area & beyond)
