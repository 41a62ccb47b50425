"""The loss of sets equals the paper's equations in NumPy, with SciPy's assignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from vit_jax.errors import UserError
from vit_jax.recipe import load, override
from vit_jax.tasks.detection import LossWeights, centred, edges, giou, matching, set_loss
from vit_jax.training.resolve import resolve

WEIGHTS = LossWeights(l1=5.0, giou=2.0, empty=0.1)


def made(seed, batch=4, queries=9, classes=5, objects=6):
    """Random logits and boxes, and a number of objects that differs between images."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (batch, objects))
    label[np.arange(objects) >= rng.integers(0, objects + 1, batch)[:, None]] = -1
    sides = rng.uniform(0.05, 0.4, (2, batch, max(queries, objects), 2))
    centre = rng.uniform(0.2, 0.8, sides.shape)
    boxes = np.concatenate([centre, sides], axis=-1)
    return (
        rng.normal(size=(batch, queries, classes + 1)), boxes[0][:, :queries], label,
        boxes[1][:, :objects],
    )  # fmt: skip


def giou_of(a, b):
    """Of two boxes (cx, cy, w, h), from the definition."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)
    )
    common = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return common / union - (hull - union) / hull


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def costs(logits, boxes, wanted, label):
    shares = softmax(logits)
    return np.array([
        [5 * np.abs(box - want).sum() - 2 * giou_of(box, want) - share[one]
         for want, one in zip(wanted, label, strict=True)]
        for box, share in zip(boxes, shares, strict=True)
    ])  # fmt: skip


def loss_of(logits, boxes, label, wanted):
    """The paper's, one image and one object at a time."""
    nll = weight = l1 = overlap = 0.0
    for image in range(len(logits)):
        real = label[image] >= 0
        told = np.full(logits.shape[1], logits.shape[2] - 1)
        if real.any():
            cost = costs(logits[image], boxes[image], wanted[image][real], label[image][real])
            for q, m in zip(*linear_sum_assignment(cost), strict=True):
                told[q] = label[image][real][m]
                l1 += np.abs(boxes[image][q] - wanted[image][real][m]).sum()
                overlap += 1 - giou_of(boxes[image][q], wanted[image][real][m])
        share = np.where(told == logits.shape[2] - 1, 0.1, 1.0)
        nll -= (share * np.log(softmax(logits[image]))[np.arange(len(told)), told]).sum()
        weight += share.sum()
    count = max(1, (label >= 0).sum())
    return {"class": nll / weight, "l1": 5 * l1 / count, "giou": 2 * overlap / count}


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_the_papers(seed):
    given_ = made(seed)
    ours = jax.jit(lambda *x: set_loss(*x, WEIGHTS))(*given_)
    for name, expected in loss_of(*given_).items():
        assert float(ours[name]) == pytest.approx(expected, rel=2e-5), name


def test_the_mean_over_microbatches_is_the_loss_of_the_whole_batch():
    whole = made(5, batch=4)
    expected = loss_of(*whole)
    real = whole[2] >= 0
    assert len({int(n) for n in real.sum(axis=1)}) > 1  # images of different numbers of objects
    objects = np.float32(real.sum() / 4)
    for size in (1, 2):
        parts = [
            set_loss(*(part[i : i + size] for part in whole), WEIGHTS, objects)
            for i in range(0, 4, size)
        ]
        for name in expected:
            mean = np.mean([float(part[name]) for part in parts])
            assert mean == pytest.approx(expected[name], rel=2e-5), (size, name)


def test_without_objects_only_the_class_counts():
    logits, boxes, label, wanted = made(0)
    ours = set_loss(logits, boxes, np.full_like(label, -1), wanted, WEIGHTS)
    assert (float(ours["l1"]), float(ours["giou"])) == (0.0, 0.0)
    expected = -np.log(softmax(logits))[..., -1].mean()
    assert float(ours["class"]) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 12))
def test_the_matching_costs_as_little_as_scipys(seed, real):
    rng = np.random.default_rng(seed)
    logits, boxes, label, wanted = made(seed, batch=1, queries=12, objects=12)
    label = np.where(np.arange(12) < real, rng.integers(0, 5, 12), -1)
    query = np.asarray(_matching(logits[0], boxes[0], label, wanted[0]))
    assert len(set(query[:real])) == real  # each query once
    assert (query[real:] == -1).all()  # no query for no object
    cost = costs(logits[0], boxes[0], wanted[0][:real], label[:real]) if real else np.zeros((12, 0))
    rows, columns = linear_sum_assignment(cost)
    assert cost[query[:real], np.arange(real)].sum() == pytest.approx(
        cost[rows, columns].sum(), abs=1e-4
    )


_matching = jax.jit(lambda *given: matching(*given, WEIGHTS))


def test_a_nan_ends_in_the_loss_and_not_in_an_endless_loop():
    logits, boxes, label, wanted = made(1)
    logits[0, 0, 0] = boxes[1, 2, 1] = np.nan
    assert not np.isfinite(float(set_loss(logits, boxes, label, wanted, WEIGHTS)["class"]))


def test_gradients_are_finite_differences():
    logits, boxes, label, wanted = made(2)

    def of(boxes):
        return sum(set_loss(logits, boxes, label, wanted, WEIGHTS).values())

    with jax.enable_x64(True):
        gradient = jax.grad(of)(jnp.asarray(boxes))
        direction = np.random.default_rng(0).normal(size=boxes.shape)
        slope = (of(boxes + 1e-6 * direction) - of(boxes - 1e-6 * direction)) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], 1.0),
        ([0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0], 0.0),  # side by side
        ([0.125, 0.5, 0.25, 1.0], [0.875, 0.5, 0.25, 1.0], -0.5),  # half of the hull is empty
        ([0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], 0.0),
    ],
)
def test_giou_by_hand(a, b, expected):
    assert float(giou(edges(jnp.array(a)), edges(jnp.array(b)))) == pytest.approx(expected)


def test_edges_and_centres_are_each_others_inverse():
    boxes = jnp.asarray(made(0)[1], jnp.float32)
    np.testing.assert_allclose(centred(edges(boxes)), boxes, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.name": "vit_nano_patch8_64"},
            "is for task=classification, not for task=detection",
        ),
        (
            {"data.train.source": "digits", "data.eval.source": "digits"},
            "digits gives labels and no boxes",
        ),
        ({"model.num_queries": "3"}, "up to 4 objects an image, more than the 3 queries"),
        ({"data.train.pipeline": "decode|rotate"}, "moves what the image shows, but not the"),
        ({"detection.l1": "None"}, "'detection.l1' cannot be empty"),
        (
            {"model.map_positions": "learned", "model.patch_size": "1"},
            "50 rows and columns at most",
        ),
        ({"model.detector_heads": "5"}, "detector_width is divisible by 4 and by detector_heads"),
    ],
    ids=str,
)
def test_the_task_names_what_it_needs(changes, said):
    config = load("detr.py:digits")

    def resolved():
        override(config, changes)
        return resolve(config, devices=1)

    with pytest.raises(UserError, match=said):
        resolved()


@pytest.mark.parametrize("backbone", ["r5", "mixer_b16_224", "sasa_resnet26"])
def test_the_recipe_names_the_backbones_that_it_knows(backbone):
    with pytest.raises(UserError, match=f"knows no backbone '{backbone}': r50, r50_dc5"):
        load(f"detr.py:{backbone},voc:X")


@pytest.mark.parametrize("size", ["b16", "resnet50_gn"])
def test_the_recipe_of_yolos_names_the_sizes_that_it_knows(size):
    with pytest.raises(UserError, match=f"knows no size '{size}': tiny, small, base"):
        load(f"yolos.py:{size},voc:X")


def test_a_batch_without_objects_has_no_loss_where_empty_queries_weigh_nothing():
    logits, boxes = np.zeros((2, 3, 4), np.float32), np.full((2, 3, 4), 0.5, np.float32)
    nothing = np.full((2, 1), -1), np.zeros((2, 1, 4), np.float32)
    parts = set_loss(logits, boxes, *map(jnp.asarray, nothing), LossWeights(5.0, 2.0, empty=0.0))
    assert {name: float(part) for name, part in parts.items()} == {"class": 0, "l1": 0, "giou": 0}
