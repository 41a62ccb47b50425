"""Mixup and CutMix of a batch, on the device, inside the compiled step.

`partners` draws what is mixed with what and adds it to the batch, row by row, so that a batch can
still be split into microbatches; `mix_images` and `mix_targets` do it. Of both losses and targets
the mass is kept: shares sum to one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Batch = dict[str, Array]


def partners(batch: Batch, mixup: float, cutmix: float, each: bool, key: Array) -> Batch:
    """Adds each example's partner (the row before it) and how much of the example stays.

    Args:
      batch: `image` [B, H, W, C] and `label`.
      mixup: p of Beta(p, p), of which the share of the example is max(x, 1 - x)
        (arXiv 1710.09412); 0 is off.
      cutmix: p of Beta(p, p), the share outside of the box that shows the partner
        (arXiv 1905.04899, section 3.1); 0 is off. With both, either is taken half of the time.
      each: every example has a draw of its own; else a batch has one.

    Returns the batch with `image2`, `label2`, `share` [B] of the example's label and, with CutMix,
    `blend` [B] of its pixels outside of the `box` [B, 4]: top, bottom, left, right.
    """
    count, height, width = batch["image"].shape[:3]
    draws = (count,) if each else ()

    def rows(values: Array) -> Array:
        return jnp.broadcast_to(values, (count,))

    share = jax.random.beta(key, mixup, mixup, draws) if mixup else jnp.ones(draws)
    share = jnp.maximum(share, 1 - share)
    added = {
        "image2": jnp.roll(batch["image"], 1, axis=0),
        "label2": jnp.roll(batch["label"], 1, axis=0),
        "share": rows(share),
    }
    if cutmix:
        outside, middle, which = jax.random.split(jax.random.fold_in(key, 1), 3)
        side = jnp.sqrt(1 - jax.random.beta(outside, cutmix, cutmix, draws))
        centre = jax.random.uniform(middle, (2, *draws))

        def end(at: Array, sign: int, length: int) -> Array:
            return jnp.clip(jnp.round((at + sign * side / 2) * length), 0, length).astype(jnp.int32)

        top, bottom = end(centre[0], -1, height), end(centre[0], 1, height)
        left, right = end(centre[1], -1, width), end(centre[1], 1, width)
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        cut = jax.random.bernoulli(which, 0.5 if mixup else 1.0, draws)
        sides = [jnp.where(cut, side, 0) for side in (top, bottom, left, right)]
        added |= {
            "share": rows(jnp.where(cut, kept, share)),
            "blend": rows(jnp.where(cut, 1.0, share)),
            "box": jnp.stack([rows(side) for side in sides], axis=-1),
        }
    return batch | added


def mix_images(
    images: Float[Array, "B H W C"], others: Float[Array, "B H W C"], batch: Batch
) -> Float[Array, "B H W C"]:
    """The examples' images mixed with their partners', as `partners` drew it."""
    blend = batch.get("blend", batch["share"])[:, None, None, None]
    mixed = blend * images + (1 - blend) * others
    if "box" not in batch:
        return mixed
    top, bottom, left, right = (batch["box"][:, i, None, None] for i in range(4))
    y, x = jnp.arange(images.shape[1])[None, :, None], jnp.arange(images.shape[2])[None, None]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return jnp.where(inside[..., None], others, mixed)


def mix_targets(
    targets: Float[Array, "B classes"], others: Float[Array, "B classes"], batch: Batch
) -> Float[Array, "B classes"]:
    """The examples' targets mixed with their partners', by the share of the pixels."""
    share = batch["share"][:, None]
    return share * targets + (1 - share) * others
