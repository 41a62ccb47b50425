"""Measures of a classifier on a whole split, from what it says of each example.

The compiled step tells of every row; what is counted, averaged and ranked is counted on the host in
float64, each example once. So the numbers do not depend on batches, devices or processes.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax.data.source import NO_LABEL
from vit_jax.models import Model

Rows = dict[str, np.ndarray]  # name -> values, one row for each example of a split
BINS = 15  # intervals of confidence, for the calibration error
# What `metrics` returns, and what a run adds.
METRICS = (
    "accuracy", "top5_accuracy", "loss", "class_accuracy", "ece", "map", "examples",
    "damaged_images",
)  # fmt: skip


def make_eval_step(model: Model, scores: bool = False, gather: Callable | None = None) -> Callable:
    """A function (params, batch) -> `label`, `ahead` (how many classes rank before the label),
    `nll`, `predicted` and `confidence` of each row; with `scores` also the logits, `scores`.

    Of several labels, the one that ranks highest counts, and the loss is that of the sigmoid.
    `gather` as in `Model.apply`.
    """

    def eval_step(params, batch: dict[str, Array]) -> dict[str, Array]:
        labels = batch["label"] if batch["label"].ndim == 2 else batch["label"][:, None]
        images = model.data_config.normalise(batch["image"])
        logits, _ = model.apply(params, images, gather=gather)
        of_labels = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=-1)
        wanted = jnp.max(jnp.where(labels < 0, -jnp.inf, of_labels), axis=-1, keepdims=True)
        # Equal logits rank before the label, so that constant logits score nothing. So do NaNs,
        # because no comparison with them is true.
        ahead = jnp.sum(~(logits < wanted), axis=-1) - 1
        if batch["label"].ndim == 2:
            ahead = jnp.where(jnp.any(labels >= 0, axis=-1), ahead, logits.shape[-1])
            of_labels = jnp.where(labels < 0, 0.0, of_labels)
            nll = jnp.sum(jax.nn.softplus(logits), axis=-1) - jnp.sum(of_labels, axis=-1)
        else:
            nll = jax.nn.logsumexp(logits, axis=-1) - wanted[:, 0]
        rows = {
            "label": batch["label"], "ahead": ahead, "nll": nll,
            "predicted": jnp.argmax(logits, axis=-1),
            "confidence": jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1),
        }  # fmt: skip
        return rows | ({"scores": logits} if scores else {})

    return eval_step


def metrics(rows: Rows) -> dict[str, float]:
    """`accuracy`, `top5_accuracy`, `loss` and `examples`. If each example has one label, also
    `class_accuracy` (the mean over classes) and `ece`; if several and with `scores`, also `map`."""
    count = len(rows["label"])
    if not count:
        return {"accuracy": 0.0, "top5_accuracy": 0.0, "loss": 0.0, "examples": 0}
    correct = rows["ahead"] < 1
    measured = {
        "accuracy": float(correct.mean()),
        "top5_accuracy": float((rows["ahead"] < 5).mean()),
        "loss": float(rows["nll"].astype(np.float64).mean()),
    }
    if rows["label"].ndim == 1:
        right, total = np.bincount(rows["label"], correct), np.bincount(rows["label"])
        measured["class_accuracy"] = float((right[total > 0] / total[total > 0]).mean())
        measured["ece"] = calibration_error(rows["confidence"], correct)
    elif "scores" in rows:
        measured["map"] = mean_average_precision(rows["scores"], rows["label"])
    return measured | {"examples": count}


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error (arXiv 1706.04599, eq. 3) over `BINS` bins of equal width. A
    bin does not include its lower end."""
    confidence, bins = _binned(confidence)
    gap = np.bincount(bins, correct, BINS) - np.bincount(bins, confidence, BINS)
    return float(np.abs(gap).sum() / len(correct))


def by_confidence(rows: Rows) -> list[tuple[float, float]]:
    """(Mean confidence, accuracy) of the examples in each bin of `calibration_error` that has some,
    by ascending confidence."""
    right = rows["ahead"] < 1
    confidence, bins = _binned(rows["confidence"])
    return [
        (float(confidence[bins == one].mean()), float(right[bins == one].mean()))
        for one in np.unique(bins)
    ]


def _binned(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidences as float64, and the number of each one's bin."""
    confidence = np.nan_to_num(confidence.astype(np.float64))  # if logits are NaN
    return confidence, np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """The average precision of each class that occurs, averaged over these classes. `scores` are
    [N, classes], `labels` [N, max_labels], filled with numbers below 0."""
    from sklearn.metrics import average_precision_score

    has_label = np.zeros(scores.shape, bool)
    row, column = np.nonzero(labels >= 0)
    has_label[row, labels[row, column]] = True
    occurs = has_label.any(axis=0)
    return float(
        np.mean(average_precision_score(has_label[:, occurs], scores[:, occurs], average=None))
    )


def within(rows: Rows, classes: np.ndarray) -> Rows:
    """The rows as if the model could only choose among some `classes`, which include all labels
    (ImageNet-A and -R: arXiv 1907.07174, 2006.16241). Needs `scores` and one label each."""
    scores = np.full(rows["scores"].shape, -np.inf)
    scores[:, classes] = rows["scores"][:, classes]
    wanted = np.take_along_axis(scores, rows["label"][:, None], axis=-1)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = shares.sum(axis=-1)
    return {
        "label": rows["label"],
        "ahead": (~(scores < wanted)).sum(axis=-1) - 1,
        "nll": np.log(total) + scores.max(axis=-1) - wanted[:, 0],
        "predicted": scores.argmax(axis=-1),
        "confidence": 1 / total,
    }


def mean_of_views(views: Iterable[Rows]) -> Rows:
    """The rows of examples from the mean of their probabilities in several views, each of which has
    `label`, `index` and the logits `scores`. The probabilities are those of a softmax, or of a
    sigmoid if examples have several labels."""
    from scipy.special import expit, softmax

    total, count, rows = np.zeros(()), 0, Rows()
    for rows in views:
        logits = rows["scores"].astype(np.float64)
        several = rows["label"].ndim == 2
        shares = expit(logits) if several else softmax(logits, axis=-1)
        total, count = total + shares, count + 1
    return of_probabilities(rows["label"], total / count) | {"index": rows["index"]}


def of_probabilities(label: np.ndarray, probabilities: np.ndarray) -> Rows:
    """What `make_eval_step` says of logits, from probabilities. `scores` are their logarithms.

    `label` is [N] or [N, max_labels], `probabilities` [N, classes], float64.
    """
    tiny = np.finfo(np.float64).tiny
    scores = np.log(np.maximum(probabilities, tiny))
    labels = label if label.ndim == 2 else label[:, None]
    of_labels = np.take_along_axis(scores, np.maximum(labels, 0), axis=-1)
    wanted = np.max(np.where(labels < 0, -np.inf, of_labels), axis=-1, keepdims=True)
    ahead = (~(scores < wanted)).sum(axis=-1) - 1
    nll = -wanted[:, 0]
    if label.ndim == 2:
        ahead = np.where((labels >= 0).any(axis=-1), ahead, scores.shape[-1])
        others = np.log(np.maximum(1 - probabilities, tiny))
        of_others = np.take_along_axis(others, np.maximum(labels, 0), axis=-1)
        nll = -others.sum(axis=-1) - np.where(labels < 0, 0.0, of_labels - of_others).sum(axis=-1)
    return {
        "label": label, "ahead": ahead, "nll": nll, "predicted": probabilities.argmax(axis=-1),
        "confidence": probabilities.max(axis=-1), "scores": scores,
    }  # fmt: skip


def real_accuracy(predicted: np.ndarray, numbers: np.ndarray, labels: list[list[int]]) -> float:
    """ReaL accuracy (arXiv 2006.07159, section 3): a prediction is right if it is one of the
    image's labels. Images without labels are left out. `numbers` are the images', from 0."""
    right = [p in labels[n] for p, n in zip(predicted, numbers, strict=True) if labels[n]]
    return float(np.mean(right)) if right else 0.0


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts [class, predicted class], and the numbers of the wrongly classified examples, those
    with the highest confidence first."""

    counts: np.ndarray
    mistakes: np.ndarray

    @classmethod
    def of(cls, rows: Rows, num_classes: int) -> "Confusion":
        labels = rows["label"] if rows["label"].ndim == 1 else rows["label"][:, 0]
        known = labels != NO_LABEL
        counts = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(counts, (labels[known], rows["predicted"][known]), 1)
        wrong = np.flatnonzero(rows["ahead"] >= 1)
        return cls(counts, wrong[np.argsort(-rows["confidence"][wrong], kind="stable")])
