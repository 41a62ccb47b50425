"""What a model's frozen features are worth: few-shot regression, nearest neighbours, linear probes.

Functions of features [N, D] (the representation before the head) and labels [N] of a training and
an evaluation split, in NumPy, float64. scikit-learn fits the linear probes. Few-shot least squares
is our own: the paper's closed form, with every penalty's leave-one-out error from one
decomposition.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array

from vit_jax.errors import UserError
from vit_jax.models import Model

L2_GRID = tuple(2.0**power for power in range(-10, 21))
BIAS = 100.0  # the constant feature; it is large, so that its weight is hardly penalised


def make_feature_step(model: Model, gather: Callable | None = None) -> Callable:
    """(params, batch) -> `features` [B, D] and `label` [B]; `gather` as in `Model.apply`."""

    def feature_step(params, batch: dict[str, Array]) -> dict[str, Array]:
        images = model.data_config.normalise(batch["image"])
        _, out = model.apply(params, images, gather=gather)
        return {"label": batch["label"], "features": out["pre_logits"].astype("float32")}

    return feature_step


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets of features with the training features' mean 0 and standard deviation 1."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-5
    return (train - mean) / std, (test - mean) / std


def few_shot(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
) -> tuple[float, float]:
    """Accuracy of regularised least squares from features to targets of -1 and 1, in closed form
    (ViT paper, section 4.1), and the L2 penalty. The penalty is the one of `L2_GRID` with the
    smallest leave-one-out error on the training images, so no test image influences it."""
    x, z = (np.pad(f, ((0, 0), (0, 1)), constant_values=BIAS) for f in standardised(train, test))
    y = 2.0 * np.eye(num_classes)[train_labels] - 1.0
    # x = u s v gives the solution and the leave-one-out residuals for every penalty.
    u, s, v = np.linalg.svd(x, full_matrices=False)
    projected = u.T @ y
    errors = []
    for penalty in L2_GRID:
        kept = s**2 / (s**2 + penalty)
        leverage = (u**2 * kept).sum(axis=1)
        residual = (y - (u * kept) @ projected) / np.maximum(1e-12, 1 - leverage)[:, None]
        errors.append((residual**2).sum())
    penalty = L2_GRID[int(np.argmin(errors))]
    weights = (v.T * (s / (s**2 + penalty))) @ projected
    return float(((z @ weights).argmax(axis=1) == test_labels).mean()), penalty


def nearest(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[int, float]:
    """Accuracy of k nearest neighbours by cosine similarity, for each k up to the number of
    training images. A neighbour votes for its class with the weight exp(similarity / temperature)
    (arXiv 1805.01978, section 3.4)."""
    train = train.astype(np.float64) / np.linalg.norm(train, axis=1, keepdims=True).clip(1e-12)
    test = test.astype(np.float64) / np.linalg.norm(test, axis=1, keepdims=True).clip(1e-12)
    ks = [k for k in ks if k <= len(train)] or [len(train)]
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(test), 256):
        rows = slice(start, start + 256)
        similar = test[rows] @ train.T
        order = np.argsort(-similar, axis=1, kind="stable")[:, : max(ks)]
        near = np.take_along_axis(similar, order, axis=1)
        votes = np.exp((near - near[:, :1]) / temperature)  # only their ratios matter
        for k in ks:
            totals = np.zeros((len(order), num_classes))
            row = np.repeat(np.arange(len(order)), k)
            np.add.at(totals, (row, train_labels[order[:, :k]].ravel()), votes[:, :k].ravel())
            right[k] += int((totals.argmax(axis=1) == test_labels[rows]).sum())
    return {k: count / len(test) for k, count in right.items()}


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    grid: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
) -> tuple[float, float]:
    """Accuracy of scikit-learn's multinomial logistic regression, and its C: the value of the grid
    with the best accuracy on every tenth training example, which is held out for this choice."""
    from sklearn.linear_model import LogisticRegression

    if len(set(train_labels)) < 2:
        raise UserError("evaluator linear_probe: its training split has only one class")
    x, z = standardised(train, test)
    held_out = np.arange(len(x)) % 10 == 9
    if not held_out.any() or len(set(train_labels[~held_out])) < 2:
        held_out = np.zeros(len(x), bool)  # too few examples to choose C

    def fitted(c: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=1000).fit(x[rows], train_labels[rows])

    scores = [
        fitted(c, ~held_out).score(x[held_out], train_labels[held_out]) if held_out.any() else 0.0
        for c in grid
    ]
    best = grid[int(np.argmax(scores))]
    return float(fitted(best, np.ones(len(x), bool)).score(z, test_labels)), best
