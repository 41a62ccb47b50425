"""Losses that cannot train."""

import jax
import jax.numpy as jnp
import numpy as np


def mean(logits, targets):
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()


def of_classes(logits, targets):
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=0)


def numpys(logits, targets):
    return np.square(np.asarray(logits) - np.asarray(targets)).sum(axis=-1)


def nothing(logits, targets):
    pass


def whole(logits, targets):
    return jnp.argmax(logits, axis=-1)


def of_labels(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def fails(logits, targets):
    raise RuntimeError("out of\nluck")


def divergence(logits, targets):  # 0 log 0
    return (targets * (jnp.log(targets) - jax.nn.log_softmax(logits))).sum(axis=-1)


def cosine(logits, targets):  # of a new head, whose logits are 0
    return -(targets * logits).sum(axis=-1) / jnp.linalg.norm(logits, axis=-1)


def root(logits, targets):  # the root's gradient at 0
    return jnp.linalg.norm(logits, axis=-1)


def flat(logits, targets):
    return (logits.argmax(axis=-1) != targets.argmax(axis=-1)).astype(jnp.float32)


def shy(logits, targets):
    return mean(logits, targets) * jnp.ones(len(logits))


shy.activation = "relu"
number = 3
