"""Losses on soft targets, and the targets themselves. Everything is float32."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def targets(
    labels: Int[Array, " batch"] | Int[Array, "batch labels"], num_classes: int, smoothing: float
) -> Float[Array, "batch classes"]:
    """One-hot labels, with `smoothing` of their mass spread over all classes
    (arXiv 1512.00567, section 7). Of several labels, each class there is 1; below 0 is none."""
    if labels.ndim == 1:
        hot = jax.nn.one_hot(labels, num_classes)
    else:
        places = jnp.where(labels < 0, num_classes, labels)  # past the end is dropped
        empty = jnp.zeros((len(labels), num_classes))
        hot = empty.at[jnp.arange(len(labels))[:, None], places].set(1.0, mode="drop")
    return hot * (1.0 - smoothing) + smoothing / num_classes


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """-sum_k t_k log softmax(logits)_k."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """-sum_k [t_k log sigmoid(logits)_k + (1 - t_k) log(1 - sigmoid(logits)_k)]
    (arXiv 2006.07159, section 4)."""
    return jnp.sum(sigmoid_terms(logits, targets), axis=-1)


def sigmoid_terms(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, "batch classes"]:
    """The binary cross-entropy of each class."""
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(targets * log_p + (1.0 - targets) * log_not_p)


def weighted(
    loss: Callable, class_weights: Sequence[float] | None
) -> Callable[
    [Float[Array, "batch classes"], Float[Array, "batch classes"]], Float[Array, " batch"]
]:
    """`loss` of which each class's term counts `class_weights` times."""
    if class_weights is None:
        return loss
    weights = jnp.asarray(class_weights, jnp.float32)
    if loss is softmax_cross_entropy:
        return lambda logits, targets: loss(logits, targets * weights)
    return lambda logits, targets: jnp.sum(weights * sigmoid_terms(logits, targets), axis=-1)


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
