"""What attention weights say: of one image, and of the layers over many.

Weights are [layers, batch, heads, queries, keys], as `Seen.attention` has them. All is computed in
float64.
"""

import numpy as np

from vit_jax.look.seen import Seen
from vit_jax.models.model import Model


def rollout(attention: np.ndarray) -> np.ndarray:
    """How much of each token of the image stands in each token of the last layer [batch, queries,
    keys], if only the residual connection and the mean of the heads moved it (arXiv 2005.00928,
    section 3): the product of (A + I) / 2 over the layers."""
    flow = np.eye(attention.shape[-1])
    for layer in attention.astype(np.float64).mean(axis=2):
        flow = (layer + np.eye(layer.shape[-1])) / 2 @ flow
    return flow


def evidence(attention: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Which tokens of the image speak for a class, as seen from each token of the last layer
    [batch, queries, keys] (arXiv 2103.15679, equations 5 and 6).

    Args:
      attention: the weights.
      gradient: of the class's logit by the weights, of the same shape.
    """
    relevance = np.eye(attention.shape[-1])
    for weights, slope in zip(attention.astype(np.float64), gradient, strict=True):
        positive = np.maximum(weights * slope, 0).mean(axis=1)
        relevance = relevance + positive @ relevance
    return relevance


def read(model: Model, tokens: np.ndarray, seen: Seen) -> np.ndarray:
    """What the head reads of [batch, queries, keys]: the class token's row, or the mean of the
    patches' rows where the model has none. Returns it in the places of the patches [batch, rows,
    columns]."""
    patches = slice(seen.prefix, seen.prefix + seen.grid[0] * seen.grid[1])
    by_class = str(getattr(model.config, "pool", "")).startswith("cls")
    row = tokens[:, 0] if by_class else tokens[:, patches].mean(axis=1)
    return row[:, patches].reshape(-1, *seen.grid)


def distance(seen: Seen, image_size: tuple[int, int]) -> np.ndarray:
    """How far a patch looks, in pixels, by layer and head [layers, heads]: the distance between the
    centres of patches, weighted by attention, as a mean over the patches and the images (ViT paper,
    figure 7 and appendix D.7). Weights are those between patches alone, with a sum of 1."""
    assert seen.attention is not None
    rows, columns = seen.grid
    number = np.arange(rows * columns)
    sides = np.array([image_size[0] / rows, image_size[1] / columns])
    centres = np.stack([number // columns, number % columns], axis=-1) * sides
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1)
    patches = slice(seen.prefix, seen.prefix + len(number))
    weights = seen.attention[..., patches, patches].astype(np.float64)
    weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return np.einsum("lbhqk,qk->lh", weights, apart) / (weights.shape[1] * len(number))


def of_boxes(seen: Seen) -> np.ndarray:
    """Where each query of a detector looks in the last layer, as the mean of the heads [batch,
    queries, rows, columns]."""
    assert seen.attention is not None
    assert seen.boxes is not None
    queries = seen.boxes.shape[1]
    patches = slice(seen.prefix, seen.prefix + seen.grid[0] * seen.grid[1])
    last = seen.attention[-1].astype(np.float64).mean(axis=1)[:, -queries:, patches]
    return last.reshape(*last.shape[:2], *seen.grid)
