"""Positions, filters, tokens and features: their similarity, and their principal components."""

import re

import jax
import numpy as np

from vit_jax.models.model import Model, Params
from vit_jax.models.position import sincos2d
from vit_jax.paths import path_of

# The first layer of every family: of patches, or of a ResNet's root.
FIRST = re.compile(r"(backbone/)*(embed|root/conv\d*)/kernel")
POSITIONS = re.compile(r"(backbone/)*pos_embed/grid")


def _first(params: Params, path: re.Pattern[str]) -> np.ndarray | None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    found = (leaf for keys, leaf in leaves if path.fullmatch(path_of(keys)))
    leaf = next(found, None)
    return None if leaf is None else np.asarray(leaf, np.float64)


def positions(model: Model, params: Params) -> np.ndarray | None:
    """The embeddings of positions [rows, columns, width]; None where there are none."""
    learned = _first(params, POSITIONS)
    if learned is None and getattr(model.config, "posemb", "") == "sincos2d":
        rows, columns = model.config.grid
        return np.asarray(sincos2d(rows, columns, model.config.hidden_size), np.float64)
    return learned


def position_similarity(table: np.ndarray) -> np.ndarray:
    """Cosine similarity of the embedding of each position with all others [rows, columns, rows,
    columns] (ViT paper, figure 7), of a table [rows, columns, width]."""
    flat = unit(table.reshape(-1, table.shape[-1]))
    return (flat @ flat.T).reshape(*table.shape[:2], *table.shape[:2])


def filters(params: Params) -> np.ndarray | None:
    """The principal components of the first layer's filters [components, height, width, channels],
    each of length 1, the largest first (ViT paper, figure 7). Their signs are arbitrary. None where
    the first layer is no filter of pixels."""
    kernel = _first(params, FIRST)
    if kernel is None or kernel.ndim != 4:
        return None
    return components(kernel.reshape(-1, kernel.shape[-1]).T).reshape(-1, *kernel.shape[:3])


def components(rows: np.ndarray) -> np.ndarray:
    """The principal components [components, columns] of rows [rows, columns]."""
    rows = rows.astype(np.float64)
    return np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2]


def token_colours(tokens: np.ndarray) -> np.ndarray:
    """The first three principal components of tokens [batch, rows, columns, width] as colours
    [batch, rows, columns, 3] from 0 to 1. Images of one call have the same components and the same
    range, so that equal colours mean similar tokens."""
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    values = flat @ components(flat)[:3].T
    low, high = values.min(axis=0), values.max(axis=0)
    values = (values - low) / np.where(high > low, high - low, 1.0)
    colours = np.zeros((len(values), 3))
    colours[:, : values.shape[1]] = values
    return colours.reshape(*tokens.shape[:3], 3)


def nearest(features: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the `count` rows of `others` [N, width] that are most similar to each row of
    `features` [M, width], best first, and their cosine similarities: both [M, count]."""
    similar = unit(features) @ unit(others).T
    order = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(similar, order, axis=1)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
