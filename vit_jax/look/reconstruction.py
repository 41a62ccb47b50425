"""What a masked autoencoder makes of the patches that it does not see."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax.models.mae import image_of, noise_of, scales_of
from vit_jax.models.model import Model, Params
from vit_jax.models.vit import patches_of


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """NumPy arrays.

    masked: bool [batch, rows, columns], true for each patch that the encoder did not see.
    prediction: float32 [batch, height, width, channels], the pixels that the decoder predicts, of
      visible patches too, in 0 … 255 as far as they are right.
    reconstruction: the same, but visible patches are the image's own.
    """

    masked: np.ndarray
    prediction: np.ndarray
    reconstruction: np.ndarray


def reconstruct(
    model: Model, params: Params, images: np.ndarray, noise: np.ndarray | None = None, seed: int = 0
) -> Reconstructed:
    """Shows images to a masked autoencoder.

    A model that predicts normalised pixels says nothing of a patch's mean and deviation. Its
    prediction here has those of the image's own patch, masked or not.

    Args:
      model, params: as `vit_jax.load_pretrained(WEIGHTS, decoder=True)` gives them.
      images: uint8 [batch, height, width, channels], of the model's size.
      noise: [batch, patches]; the patches with the smallest numbers are visible. By default it
        follows from each image's pixels and `seed`.
    """
    compiled = jax.jit(functools.partial(_reconstructed, model, seed))
    return Reconstructed(**jax.device_get(compiled(params, images, noise)))


def _reconstructed(
    model: Model, seed: int, params: Params, images: Array, noise: Array | None
) -> dict[str, Any]:
    c = model.config
    noise = noise_of(images, c.num_patches, seed) if noise is None else noise
    shown = model.data_config.normalise(images)
    predicted, out = model.apply(params, shown, noise=noise)
    patches = patches_of(shown, c.patch_size)
    if c.norm_pixels:
        mean, deviation = scales_of(patches)
        predicted = predicted * deviation + mean
    both = jnp.where(out["mask"][..., None], predicted, patches)
    prediction, reconstruction = (
        model.data_config.pixels(image_of(x, c.grid, c.patch_size)) for x in (predicted, both)
    )
    masked = out["mask"].reshape(-1, *c.grid)
    return {"masked": masked, "prediction": prediction, "reconstruction": reconstruction}
