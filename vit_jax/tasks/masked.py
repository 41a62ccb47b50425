"""Pixels of masked patches (MAE, arXiv 2111.06377): no labels are read.

The loss is the mean squared error of the masked patches' pixels (section 3), each patch less its
mean and over its deviation, unless `model.norm_pixels` is false. Training masks other patches in
every step. In evaluation the mask of an image follows from its pixels, so that its loss is the same
at any batch size and on any device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vit_jax.data.source import Facts
from vit_jax.errors import UserError
from vit_jax.models import Model
from vit_jax.models.mae import noise_of, scales_of
from vit_jax.models.vit import patches_of
from vit_jax.tasks.task import Batch, Task


def targets(
    images: Float[Array, "batch height width channels"], patch: int, normalised: bool
) -> Float[Array, "batch patches pixels"]:
    """The pixels to predict, of images as the model is shown them."""
    patches = patches_of(images, patch)
    if not normalised:
        return patches
    mean, deviation = scales_of(patches)
    return (patches - mean) / deviation


class Masked(Task):
    """Learns to predict the masked patches of an image. The held-out loss ranks evaluations."""

    best = "min loss"

    def __init__(self, config: ConfigDict, model: Model, facts: Facts):
        super().__init__(config, model, facts)
        c = model.config
        if c.num_visible == c.num_patches:
            raise UserError(
                f"model.mask_ratio {c.mask_ratio:g} masks none of {c.num_patches} patches: there "
                "is nothing to predict"
            )

    @staticmethod
    def outputs(config: ConfigDict, facts: Facts) -> int:
        return config.model.num_classes or 0

    def prepared(self, batch: Batch, key: Array) -> Batch:
        """Draws the masks of the whole batch, so that passes of any size have the same ones."""
        shape = (len(batch["image"]), self.model.config.num_patches)
        return batch | {"noise": jax.random.uniform(key, shape)}

    def losses(self, params: Any, batch: Batch, **how: Any) -> Float[Array, " batch"]:
        """The loss of each image. `batch` has `noise`; `how` is for `Model.apply`."""
        c = self.model.config
        images = self.model.data_config.normalise(batch["image"])
        predicted, out = self.model.apply(params, images, noise=batch["noise"], **how)
        wanted = targets(images, c.patch_size, c.norm_pixels)
        of_patch = jnp.square(predicted - wanted).mean(axis=-1)
        return (of_patch * out["mask"]).sum(axis=-1) / (c.num_patches - c.num_visible)

    def loss(
        self, params: Any, batch: Batch, key: Array, *, gather: Any = None, held: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        return self.losses(params, batch, train=True, key=key, gather=gather).mean(), {}

    def judge(self, gather: Any = None) -> dict[str, Callable[[Any, Batch], dict[str, Array]]]:
        count = self.model.config.num_patches

        def rows(params: Any, batch: Batch) -> dict[str, Array]:
            batch = batch | {"noise": noise_of(batch["image"], count)}
            return {"loss": self.losses(params, batch, gather=gather)}

        return {"rows": rows}
