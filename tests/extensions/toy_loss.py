"""A loss of one's own, in one file: the focal loss (arXiv 1708.02002, eq. 4)."""

import jax
import jax.numpy as jnp


def focal(logits, targets, gamma=2.0):
    """-sum_k t_k (1 - p_k)^gamma log p_k, with p = softmax(logits)."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1 - jnp.exp(log_p)) ** gamma * log_p, axis=-1)


def binary_focal(logits, targets, gamma=2.0):
    """The same with a sigmoid for each class, so that an example may have several labels."""
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    present = targets * jnp.exp(gamma * log_not_p) * log_p
    absent = (1 - targets) * jnp.exp(gamma * log_p) * log_not_p
    return -jnp.sum(present + absent, axis=-1)


binary_focal.activation = "sigmoid"
