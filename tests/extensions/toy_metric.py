"""Metrics of one's own, in one file: the F1 score, averaged over classes, and how many are right
among the first k."""

import dataclasses

import numpy as np
from sklearn.metrics import f1_score

from vit_jax.evaluators.named import Evaluator


def macro_f1(scores, labels):
    """Of examples with one label each."""
    return f1_score(labels, scores.argmax(axis=-1), average="macro")


def hits(scores, labels, k=3):
    """`hits_K`: the share of examples of which any label is among the K highest scores."""
    first = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    labels = labels.reshape(len(labels), -1)
    return {f"hits_{k}": (first[:, :, None] == labels[:, None]).any(axis=(1, 2)).mean()}


@dataclasses.dataclass(frozen=True)
class Sure(Evaluator):
    """The share of examples whose confidence is above `least`: an evaluator, which may have data
    and an interval of its own."""

    least: float = 0.5
    kind = "sure"

    def measure(self, rows, names):
        return {"share": float((rows["confidence"] > self.least).mean()),
                "examples": len(rows["label"])}  # fmt: skip
