"""Average precision equals pycocotools' and Pascal VOC's definition."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vit_jax.evaluators import detection

# The order of COCOeval's twelve numbers.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
         "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")  # fmt: skip


def made(images=25, classes=4, queries=30, most=8, side=200.0, seed=0, crowds=0.1):
    """Rows of random objects, and detections of which half lie near an object."""
    rng = np.random.default_rng(seed)

    def boxes(*shape):
        start = rng.uniform(0, side, (*shape, 2))
        return np.concatenate([start, start + rng.gamma(2.0, side / 8, (*shape, 2))], axis=-1)

    truth, count = boxes(images, most), rng.integers(0, most + 1, images)
    label = rng.integers(0, classes, (images, most))
    label[np.arange(most) >= count[:, None]] = -1
    near = rng.integers(0, most, (images, queries))
    shaken = np.take_along_axis(truth, near[..., None], axis=1)
    shaken = shaken + rng.normal(0, side / 60, shaken.shape)
    is_near = rng.random((images, queries)) < 0.5
    found = np.where(is_near[..., None], shaken, boxes(images, queries))
    found[..., 2:] = np.maximum(found[..., 2:], found[..., :2] + 1)
    its = np.take_along_axis(label, near, axis=1)
    predicted = np.where(is_near & (its >= 0), its, rng.integers(0, classes, its.shape))
    area = np.prod(truth[..., 2:] - truth[..., :2], axis=-1) * rng.uniform(0.5, 1, (images, most))
    return {
        "boxes": found, "scores": rng.integers(0, 50, (images, queries)) / 50,  # some are equal
        "predicted": predicted, "true_boxes": truth, "true_class": label,
        "crowd": rng.random((images, most)) < crowds, "area": area,
    }  # fmt: skip


def cocos(rows):
    """The twelve numbers of pycocotools."""

    def sides(box):
        return [float(n) for n in (*box[:2], *(box[2:] - box[:2]))]

    truth, found = [], []
    for image in range(len(rows["scores"])):
        for box, label, crowd, area in zip(
            *(rows[name][image] for name in ("true_boxes", "true_class", "crowd", "area")),
            strict=True,
        ):
            if label >= 0:
                truth.append({
                    "id": len(truth) + 1, "image_id": image, "category_id": int(label),
                    "bbox": sides(box), "iscrowd": int(crowd), "area": float(area),
                })  # fmt: skip
        for box, score, label in zip(
            *(rows[name][image] for name in ("boxes", "scores", "predicted")), strict=True
        ):
            found.append({
                "image_id": image, "category_id": int(label), "bbox": sides(box),
                "score": float(score),
            })  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {}, "images": [{"id": i} for i in range(len(rows["scores"]))],
            "annotations": truth, "categories": [{"id": i} for i in range(9)],
        }  # fmt: skip
        coco.createIndex()
        measure = COCOeval(coco, coco.loadRes(found), "bbox")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return dict(zip(NAMES, np.maximum(measure.stats, 0.0).tolist(), strict=True))


@pytest.mark.parametrize(
    "how",
    [{}, {"seed": 1, "crowds": 0.5}, {"seed": 2, "queries": 150, "classes": 1}, {"seed": 3,
     "side": 30.0}, {"seed": 4, "most": 1, "crowds": 0.0}],
    ids=str,
)  # fmt: skip
def test_the_twelve_numbers_are_pycocotools(how):
    rows = made(**how)
    measured, expected = detection.metrics(rows), cocos(rows)
    assert expected["ap"] > 0
    for name in NAMES:
        assert measured[name] == pytest.approx(expected[name], abs=1e-6), name


def test_perfect_detections_have_a_precision_of_one_and_none_of_zero():
    rows = made(crowds=0.0, queries=8)
    rows["boxes"], rows["scores"] = rows["true_boxes"], np.ones((25, 8))
    rows["predicted"] = rows["true_class"]
    rows["scores"][rows["true_class"] < 0] = 0.0
    rows["predicted"] = np.where(rows["true_class"] < 0, 0, rows["true_class"])
    measured = detection.metrics(rows)
    assert measured["ap50"] == measured["ar_100"] == measured["voc_ap50"] == 1.0
    rows["boxes"] = rows["boxes"] + 1000
    measured = detection.metrics(rows)
    assert measured["ap50"] == measured["ar_100"] == measured["voc_ap50"] == 0.0
    assert (measured["examples"], measured["objects"]) == (25, int((rows["true_class"] >= 0).sum()))


def test_without_objects_every_number_is_zero():
    rows = made(images=3)
    rows["true_class"][:] = -1
    measured = detection.metrics(rows)
    assert {measured[name] for name in NAMES} == {0.0}
    assert measured["voc_ap50"] == 0.0


def test_vocs_precision_is_the_area_below_the_envelope_by_hand():
    """Two objects. Ranked: right, wrong, right a second time (so wrong), right: precision 1, 1/2,
    1/3, 2/4 at recalls 1/2, 1/2, 1/2, 1. The area is 1/2 · 1 + 1/2 · 1/2."""
    square = np.array([0.0, 0, 10, 10])
    rows = {
        "boxes": np.array([[square, square + 500, square + 1, square + 100]]),
        "scores": np.array([[0.9, 0.8, 0.7, 0.6]]), "predicted": np.zeros((1, 4), int),
        "true_boxes": np.array([[square, square + 100, square + 300]]),
        "true_class": np.array([[0, 0, 0]]), "crowd": np.array([[False, False, True]]),
        "area": np.full((1, 3), 100.0),
    }  # fmt: skip
    assert detection.voc(rows) == pytest.approx(0.75)
    rows["boxes"][0, 1] = square + 300  # the difficult one: neither right nor wrong
    assert detection.voc(rows) == pytest.approx(0.5 + 0.5 * 2 / 3)
