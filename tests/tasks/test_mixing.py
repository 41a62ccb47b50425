"""Mixup and CutMix: of images and labels, the shares are those of the pixels, and mass is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.tasks.losses import targets
from vit_jax.tasks.mixing import mix_images, mix_targets, partners

ROWS, SIDE, CLASSES = 16, 20, 5
KINDS = [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)]


def batch():
    """Row i is an image of i + 1 everywhere, of class i modulo 5."""
    image = np.broadcast_to(np.arange(1, ROWS + 1, dtype=np.uint8)[:, None, None, None],
                            (ROWS, SIDE, SIDE, 1))  # fmt: skip
    return {"image": jnp.asarray(image), "label": jnp.arange(ROWS) % CLASSES}


def mixed(mixup, cutmix, each, seed=0):
    drawn = partners(batch(), mixup, cutmix, each, jax.random.key(seed))
    images = mix_images(*(drawn[name].astype(jnp.float32) for name in ("image", "image2")), drawn)
    wanted = mix_targets(*(targets(drawn[n], CLASSES, 0.0) for n in ("label", "label2")), drawn)
    return {k: np.asarray(v) for k, v in drawn.items()}, np.asarray(images), np.asarray(wanted)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_label_mass_is_one_and_divided_as_the_pixels_are(mixup, cutmix, each):
    for seed in range(20):
        drawn, images, wanted = mixed(mixup, cutmix, each, seed)
        np.testing.assert_allclose(wanted.sum(-1), 1.0, atol=1e-6)
        own = np.arange(1, ROWS + 1)
        partner = np.roll(own, 1)
        # A pixel is the share s of the image and 1 - s of the partner: the mean tells the share.
        share = (images.mean((1, 2, 3)) - partner) / (own - partner)
        np.testing.assert_allclose(drawn["share"], share, atol=2e-5)
        np.testing.assert_array_equal(drawn["label2"], np.roll(drawn["label"], 1))


@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_a_batch_has_one_draw_or_each_example_its_own(mixup, cutmix):
    shares = [mixed(mixup, cutmix, False, seed)[0]["share"] for seed in range(20)]
    assert all(len(set(row)) == 1 for row in shares)
    assert len({row[0] for row in shares}) > 5
    assert len(set(mixed(mixup, cutmix, True)[0]["share"])) > ROWS // 2


def test_cutmix_shows_the_partner_in_a_box_of_the_images_proportions_and_nothing_else():
    areas = []
    for seed in range(300):
        drawn, images, _ = mixed(0.0, 1.0, False, seed)
        top, bottom, left, right = drawn["box"][0]
        inside = np.zeros((SIDE, SIDE), bool)
        inside[top:bottom, left:right] = True
        partner = np.roll(np.arange(1, ROWS + 1), 1)
        own = np.arange(1, ROWS + 1)
        wanted = np.where(inside, partner[:, None, None], own[:, None, None])
        np.testing.assert_array_equal(images[..., 0], wanted)
        areas.append(inside.mean())
    # The share outside is Beta(1, 1), that is uniform; borders cut the box. By simulation of the
    # definition (arXiv 1905.04899, section 3.1) with NumPy:
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(1, 1, 200_000))
    centres = rng.random((2, 200_000))
    edges = [np.clip(c + side / 2, 0, 1) - np.clip(c - side / 2, 0, 1) for c in centres]
    np.testing.assert_allclose(np.mean(areas), np.mean(edges[0] * edges[1]), atol=0.04)


def test_with_both_either_is_taken_half_of_the_time():
    boxes = mixed(0.8, 1.0, True)[0]["box"]
    many = np.concatenate([mixed(0.8, 1.0, True, seed)[0]["box"] for seed in range(40)])
    cut = (many[:, 1] > many[:, 0]) & (many[:, 3] > many[:, 2])
    assert boxes.shape == (ROWS, 4)
    assert 0.4 < cut.mean() < 0.6  # 640 draws, of which some boxes are empty: 5 sigma is 0.1


def test_several_labels_become_a_class_each_and_places_without_a_label_none():
    labels = jnp.asarray([[2, 0, -2], [-2, -2, -2], [4, -2, -2]])
    wanted = [[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(targets(labels, CLASSES, 0.0), wanted)
