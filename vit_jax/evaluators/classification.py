"""Accuracy, top-5 accuracy and loss over a whole split, each example counted once."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax.data.source import PADDING
from vit_jax.models import Model

IN_FLIGHT = 4  # batches queued on the device at most


def make_eval_step(model: Model) -> Callable:
    """(params, batch) -> sums over the batch's real rows and their count.

    Of several labels, the one that ranks highest counts, and the loss is that of the sigmoid.
    """

    def eval_step(params, batch: dict[str, Array]) -> dict[str, Array]:
        labels = batch["label"] if batch["label"].ndim == 2 else batch["label"][:, None]
        real = labels[:, 0] != PADDING
        logits, _ = model.apply(params, model.data_config.normalise(batch["image"]))
        of_labels = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=-1)
        wanted = jnp.max(jnp.where(labels < 0, -jnp.inf, of_labels), axis=-1, keepdims=True)
        # The rank among logits; ties count against, so that constant logits score nothing, and so
        # does what is not a number, which is ahead of nothing and behind nothing.
        ahead = jnp.sum(~(logits < wanted), axis=-1) - 1
        if batch["label"].ndim == 2:
            ahead = jnp.where(jnp.any(labels >= 0, axis=-1), ahead, logits.shape[-1])
            of_labels = jnp.where(labels < 0, 0.0, of_labels)
            nll = jnp.sum(jax.nn.softplus(logits), axis=-1) - jnp.sum(of_labels, axis=-1)
        else:
            nll = jax.nn.logsumexp(logits, axis=-1) - wanted[:, 0]
        return {
            "count": jnp.sum(real),
            "correct": jnp.sum(real & (ahead < 1)),
            "correct5": jnp.sum(real & (ahead < 5)),
            "nll": jnp.sum(jnp.where(real, nll, 0.0)),
        }

    return eval_step


def evaluate(eval_step: Callable, params, batches: Iterable[dict[str, Array]]) -> dict[str, float]:
    """`accuracy`, `top5_accuracy`, `loss` (softmax cross-entropy) and `examples` of a split.

    Sums are fetched at the end, counts are exact integers, losses are added in float64.
    """
    sums: list[dict[str, Array]] = []
    for batch in batches:
        sums.append(eval_step(params, batch))
        if len(sums) > IN_FLIGHT:
            jax.block_until_ready(sums[-IN_FLIGHT])
    total: dict[str, float] = {}
    for row in jax.device_get(sums):
        for name, value in row.items():
            total[name] = total.get(name, 0) + float(np.asarray(value, np.float64))
    count = max(1.0, total.get("count", 0.0))
    return {
        "accuracy": float(total.get("correct", 0.0) / count),
        "top5_accuracy": float(total.get("correct5", 0.0) / count),
        "loss": float(total.get("nll", 0.0) / count),
        "examples": int(total.get("count", 0.0)),
    }
