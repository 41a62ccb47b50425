"""Losses and mixup against NumPy statements of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.tasks.losses import sigmoid_cross_entropy, softmax_cross_entropy, targets
from vit_jax.tasks.mixing import partners

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (5, 7))
LABELS = np.array([0, 6, 3, 3, 1])


def one_hot(smoothing):
    return np.eye(7)[LABELS] * (1 - smoothing) + smoothing / 7


def test_targets_are_one_hot_with_smoothing_spread_over_all_classes():
    found = np.asarray(targets(jnp.asarray(LABELS), 7, 0.1))
    np.testing.assert_allclose(found, one_hot(0.1), atol=1e-7)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-6)


def test_softmax_cross_entropy_is_the_negative_log_likelihood():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    wanted = -(one_hot(0.2) * np.log(p)).sum(-1)
    found = softmax_cross_entropy(jnp.float32(LOGITS), jnp.float32(one_hot(0.2)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_sigmoid_cross_entropy_sums_binary_losses_over_classes():
    p = 1 / (1 + np.exp(-LOGITS))
    t = one_hot(0.0)
    wanted = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(-1)
    found = sigmoid_cross_entropy(jnp.float32(LOGITS), jnp.float32(t))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_sigmoid_loss_is_finite_for_extreme_logits():
    found = sigmoid_cross_entropy(jnp.full((1, 3), 1e4), jnp.zeros((1, 3)))
    assert np.isfinite(found).all()


def test_mixup_pairs_each_row_with_the_one_before_and_one_share_of_half_at_least():
    images = jnp.asarray(RNG.integers(0, 256, (6, 2, 2, 1)), jnp.uint8)
    labels = jnp.arange(6)
    shares = []
    for seed in range(200):
        batch = {"image": images, "label": labels}
        mixed = partners(batch, 0.2, 0.0, False, jax.random.key(seed))
        share = np.asarray(mixed["share"])
        assert np.all(share == share[0])
        shares.append(share[0])
    np.testing.assert_array_equal(mixed["label2"], np.roll(np.arange(6), 1))
    np.testing.assert_array_equal(mixed["image2"], np.roll(np.asarray(images), 1, 0))
    assert min(shares) >= 0.5
    # max(l, 1 - l) of Beta(0.2, 0.2): mean by numerical integration is 0.862
    draws = np.random.default_rng(1).beta(0.2, 0.2, 200_000)
    np.testing.assert_allclose(np.mean(shares), np.maximum(draws, 1 - draws).mean(), atol=0.03)
