"""Measures of a detector on a whole split: COCO's average precision and recall, and Pascal VOC's.

As pycocotools computes them (COCOeval with boxes), in float64 on the host: detections of an image
and class are matched greedily, best score first, each with the object that it covers best.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data.source import Source
from vit_jax.evaluators.classification import Rows
from vit_jax.evaluators.named import Evaluator

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the intersection over union
RECALLS = np.linspace(0, 1, 101)  # at which precision is read
COUNTS = 1, 10, 100  # detections of an image and class that count, best first
# Pixels of an object's area. Objects outside of a range are no part of its measures.
AREAS = {
    "": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}  # fmt: skip


# What `metrics` returns, and what a run adds.
METRICS = (
    "ap", "ap50", "ap75", *(f"{kind}_{size}" for kind in ("ap", "ar") for size in [*AREAS][1:]),
    *(f"ar_{count}" for count in COUNTS), "voc_ap50", "examples", "objects", "damaged_images",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Matched:
    """The detections of one image and class, best score first, and what they were matched with.
    Axes are A areas, T thresholds, D detections."""

    scores: np.ndarray  # [D]
    right: np.ndarray  # [A, T, D]: it has an object
    counts: np.ndarray  # [A, T, D]: it is right or wrong; otherwise it is left out
    objects: np.ndarray  # [A]: how many there are


def overlaps(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[N, M]: intersection over union of boxes [N, 4] and [M, 4] as x1, y1, x2, y2. Of a crowd,
    the union is the first box alone."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area, other = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others))
    union = area[:, None] + np.where(crowd, 0, other - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def match(
    boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, crowd: np.ndarray, area: np.ndarray
) -> Matched:
    """Matches detections of one image and class with its objects.

    Args:
      boxes, scores: of D detections, [D, 4] in pixels and [D].
      truth, crowd, area: of G objects, [G, 4], [G] and [G].
    """
    best = np.argsort(-scores, kind="mergesort")[: COUNTS[-1]]
    boxes, scores = boxes[best], scores[best]
    ranges = np.array(list(AREAS.values()))[:, :, None]
    ignored = crowd | (area < ranges[:, 0]) | (area > ranges[:, 1])  # [A, G]
    shape = len(AREAS), len(THRESHOLDS), len(boxes)
    right, counts = np.zeros(shape, bool), np.ones(shape, bool)
    taken = np.zeros((*shape[:2], len(truth)), bool)
    covers = overlaps(boxes, truth, crowd)
    for d, cover in enumerate(covers if len(truth) else ()):
        free = (cover >= THRESHOLDS[:, None]) & (crowd | ~taken)  # [A, T, G]
        wanted = free & ~ignored[:, None]
        # An object that counts comes before one that does not. Of equal ones, the last is taken.
        among = np.where(wanted.any(axis=2, keepdims=True), wanted, free)
        chosen = len(truth) - 1 - np.where(among, cover, -1.0)[..., ::-1].argmax(axis=2)
        found = among.any(axis=2)
        a, t = np.nonzero(found)
        taken[a, t, chosen[a, t]] = True
        right[..., d] = found
        counts[a, t, d] = ~ignored[a, chosen[a, t]]
    own = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    outside = (own < ranges[:, 0]) | (own > ranges[:, 1])  # [A, D]
    counts &= right | ~outside[:, None]
    return Matched(scores, right, counts, (~ignored).sum(axis=1))


def by_class(rows: Rows) -> Iterator[tuple[int, int, tuple[np.ndarray, ...]]]:
    """(class, image, what `match` takes) for every image and class with a detection or an object.

    Rows hold, for each image: `boxes` [Q, 4], `scores` and `predicted` [Q] of detections;
    `true_boxes` [M, 4], `true_class`, `crowd` and `area` [M] of objects, whose class is below 0
    where there is none. Boxes are in pixels of the original image.
    """
    for image in range(len(rows["scores"])):
        row = {name: values[image] for name, values in rows.items()}
        for label in np.union1d(row["predicted"], row["true_class"][row["true_class"] >= 0]):
            ours, theirs = row["predicted"] == label, row["true_class"] == label
            yield int(label), image, (
                row["boxes"][ours].astype(np.float64), row["scores"][ours].astype(np.float64),
                row["true_boxes"][theirs].astype(np.float64), row["crowd"][theirs].astype(bool),
                row["area"][theirs].astype(np.float64),
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Detection(Evaluator):
    """The metrics of `metrics`."""

    kind = "detection"

    def check(self, source: Source, outputs: int) -> Sequence[str]:
        return METRICS

    def measure(self, rows: Rows, names: list[str]) -> dict[str, float]:
        return metrics(rows)


def metrics(rows: Rows) -> dict[str, float]:
    """`ap` (mean over thresholds 0.5 … 0.95), `ap50`, `ap75`, `ap_small` …, `ar_1`, `ar_10`,
    `ar_100`, `ar_small` …, `voc_ap50`, `examples` and `objects`. Each is a mean over the classes
    that have objects in question; 0 where none has any."""
    precision, recall = _accumulated(list(_matched(rows).values()))
    names = list(AREAS)
    measured = {
        "ap": _mean(precision[:, 0]), "ap50": _mean(precision[:, 0, 0]),
        "ap75": _mean(precision[:, 0, 5]),
    }  # fmt: skip
    measured |= {f"ap_{name}": _mean(precision[:, names.index(name)]) for name in names[1:]}
    measured |= {f"ar_{count}": _mean(recall[:, 0, :, i]) for i, count in enumerate(COUNTS)}
    measured |= {f"ar_{name}": _mean(recall[:, names.index(name), :, -1]) for name in names[1:]}
    objects = int((rows["true_class"] >= 0).sum())
    return measured | {
        "voc_ap50": voc(rows), "examples": len(rows["scores"]), "objects": objects
    }  # fmt: skip


def of_classes(rows: Rows) -> dict[int, tuple[int, float, float]]:
    """class -> (its objects, `ap`, `ap50`), of the classes that have objects."""
    matched = _matched(rows)
    precision, _ = _accumulated(list(matched.values()))
    counts = {label: sum(int(one.objects[0]) for one in of) for label, of in matched.items()}
    return {
        label: (counts[label], _mean(precision[k, 0]), _mean(precision[k, 0, 0]))
        for k, label in enumerate(matched) if counts[label]
    }  # fmt: skip


def _matched(rows: Rows) -> dict[int, list[Matched]]:
    """class -> its matched images."""
    matched: dict[int, list[Matched]] = {}
    for label, _, given in by_class(rows):
        matched.setdefault(label, []).append(match(*given))
    return matched


def errors(rows: Rows, score: float = 0.5) -> np.ndarray:
    """Of each image, how many objects no detection of that score or more covers by half, and how
    many of those detections cover no object [images]."""
    found = np.zeros(len(rows["scores"]), int)
    for _, image, (boxes, scores, truth, crowd, area) in by_class(rows):
        kept = scores >= score
        one = match(boxes[kept], scores[kept], truth, crowd, area)
        right = int((one.right & one.counts)[0, 0].sum())
        found[image] += int(one.objects[0]) + int(one.counts[0, 0].sum()) - 2 * right
    return found


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; 0 if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _accumulated(classes: list[list[Matched]]) -> tuple[np.ndarray, np.ndarray]:
    """Precision [K, A, T, recalls] with COUNTS[-1] detections, and recall [K, A, T, counts]; NaN
    where a class has no object."""
    shape = len(classes), len(AREAS), len(THRESHOLDS)
    precision, recall = (
        np.full((*shape, len(RECALLS)), np.nan),
        np.full((*shape, len(COUNTS)), np.nan),
    )
    for k, images in enumerate(classes):
        objects = np.sum([image.objects for image in images], axis=0)
        for c, count in enumerate(COUNTS):
            scores = np.concatenate([image.scores[:count] for image in images])
            order = np.argsort(-scores, kind="mergesort")
            right, counts = (
                np.concatenate([part(image)[..., :count] for image in images], axis=2)[..., order]
                for part in (lambda image: image.right, lambda image: image.counts)
            )
            hits = np.cumsum(right & counts, axis=2)
            misses = np.cumsum(~right & counts, axis=2)
            for a in np.flatnonzero(objects):
                recall[k, a, :, c] = hits[a, :, -1] / objects[a] if len(scores) else 0.0
                if count == COUNTS[-1]:
                    precision[k, a] = [
                        _at_recalls(hits[a, t] / objects[a], hits[a, t], misses[a, t])
                        for t in range(len(THRESHOLDS))
                    ]
    return precision, recall


def _at_recalls(recall: np.ndarray, hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
    """The best precision at each of `RECALLS` or beyond; 0 where it is not reached."""
    precision = hits / np.maximum(hits + misses, np.spacing(1))
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return precision[np.searchsorted(recall, RECALLS, side="left")]


def voc(rows: Rows, threshold: float = 0.5) -> float:
    """Pascal VOC's average precision (2010 and later: the area under the precision's envelope),
    the mean over classes that have objects. A crowd stands for VOC's `difficult`: it does not
    count, nor does a detection whose best object it is. A second detection of an object is wrong.

    Sides are differences of coordinates here; VOC's program adds a pixel to each.
    """
    found: dict[int, list[tuple[float, bool]]] = {}
    total: dict[int, int] = {}
    for label, _, (boxes, scores, truth, crowd, _) in by_class(rows):
        total[label] = total.get(label, 0) + int((~crowd).sum())
        covers = overlaps(boxes, truth, np.zeros(len(truth), bool))
        taken = np.zeros(len(truth), bool)
        for d in np.argsort(-scores, kind="stable"):
            best = int(covers[d].argmax()) if len(truth) else -1
            hit = best >= 0 and covers[d, best] >= threshold
            if hit and crowd[best]:
                continue
            found.setdefault(label, []).append((scores[d], bool(hit and not taken[best])))
            if hit:
                taken[best] = True
    averages = []
    for label, count in total.items():
        if count:
            ranked = sorted(found.get(label, ()), key=lambda pair: -pair[0])
            right = np.array([is_right for _, is_right in ranked], bool)
            hits = np.cumsum(right)
            envelope = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            averages.append(float(envelope[right].sum() / count))
    return float(np.mean(averages)) if averages else 0.0
