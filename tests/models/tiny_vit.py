"""Tiny models, with no parameter at an initial value that would hide a mistake."""

import jax
import numpy as np

from tests.models import paper_numpy as paper
from vit_jax.models import Model, create_model
from vit_jax.models.model import Params


def tiny(**fields) -> Model:
    """Two blocks of width 8 with two heads on 8 x 12 images in 4 x 4 patches; 3 classes."""
    sizes = {
        "hidden_size": 8, "num_heads": 2, "num_layers": 2, "mlp_dim": 12,
        "image_size": (8, 12), "num_classes": 3,
    }  # fmt: skip
    return create_model("vit_mu_patch4_8", **(sizes | fields))


def randomised(model: Model, seed: int = 0) -> Params:
    """Every parameter random: heads, class token, biases and scales too, which start constant.

    A scanned model gets its unrolled twin's numbers, stacked.
    """
    if model.config.scan:
        twin = tiny(**vars(model.config) | {"scan": False})
        params = randomised(twin, seed)
        params["encoder"] = {"block": paper.stack_layers(paper.blocks_of(params))}
        return params
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract_params)


def images_for(model: Model, batch: int = 2, seed: int = 1) -> np.ndarray:
    """Images in [-1, 1]."""
    shape = (batch, *model.config.image_size, model.config.channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
