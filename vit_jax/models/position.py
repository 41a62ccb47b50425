"""Positions of patches: learned (paper, eq. 1) or fixed sines and cosines, and their resizing."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float


def sincos2d(
    rows: int, columns: int, width: int, temperature: float = 10_000.0
) -> Float[np.ndarray, "rows columns width"]:
    """Fixed 2-D positions: sin x, cos x, sin y, cos y of width/4 frequencies each
    (arXiv 2205.01580, section 2, after MoCo v3). Raises ValueError if width % 4 != 0."""
    if width % 4:
        raise ValueError(f"posemb 'sincos2d' needs a hidden_size divisible by 4, not {width}")
    frequency = temperature ** -(np.arange(width // 4) / (width // 4 - 1 or 1))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    y, x = row[..., None] * frequency, column[..., None] * frequency
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], -1).astype(np.float32)


class LearnedPositions(nnx.Module):
    """A vector for each patch of the grid, and for each prefix token that has a position (eq. 1).

    `grid` is (rows, columns, D), so that its shape states the grid that it was trained on.
    """

    def __init__(self, rows: int, columns: int, width: int, num_prefix: int, rngs: Any):
        normal = nnx.initializers.normal(stddev=0.02)
        self.grid = nnx.Param(normal(rngs.params(), (rows, columns, width), jnp.float32))
        if num_prefix:
            self.prefix = nnx.Param(normal(rngs.params(), (num_prefix, width), jnp.float32))


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel (1981, eq. 4) with its free parameter `a`."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _sampled(source: np.ndarray, old: int, kernel, reach: int) -> np.ndarray:
    """Weights of the neighbours of each source coordinate. Outside the grid, the border repeats."""
    weights = np.zeros((len(source), old))
    first = np.floor(source).astype(int)
    for offset in range(1 - reach, reach + 1):
        place = first + offset
        rows, columns = np.arange(len(source)), np.clip(place, 0, old - 1)
        np.add.at(weights, (rows, columns), kernel(source - place))
    return weights


def _filtered(old: int, new: int) -> np.ndarray:
    """Bicubic (a = -1/2). Its support grows if the grid shrinks. Each row sums to 1."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.arange(old)[None] + 0.5 - centres[:, None]
    weights = _cubic(distance / max(scale, 1.0), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _half_pixel(old: int, new: int, scale: float | None = None) -> np.ndarray:
    return (np.arange(new) + 0.5) * (scale or old / new) - 0.5


# How positions are interpolated along one side, as a matrix [new, old]. Each code base has its own
# rule. At another resolution, weights lose accuracy with any other rule than their own.
RESIZE_RULES = {
    # vision_transformer: corners stay corners (scipy.ndimage.zoom of order 1).
    "google": lambda old, new: _sampled(
        np.arange(new) * ((old - 1) / max(new - 1, 1)), old, _linear, 1
    ),
    # timm on Google's files: pixel centres, no smoothing.
    "timm_npz": lambda old, new: _sampled(np.maximum(_half_pixel(old, new), 0), old, _linear, 1),
    # timm on its own files, and DINOv2 with registers: smoothed where the grid shrinks.
    "timm": _filtered,
    "dinov2_reg": _filtered,
    # Transformers: PyTorch's bicubic (a = -3/4), no smoothing.
    "huggingface": lambda old, new: _sampled(
        _half_pixel(old, new), old, lambda x: _cubic(x, -0.75), 2
    ),
    # DINOv2 without registers: the same, but 0.1 is added to the new side for the scale.
    "dinov2": lambda old, new: _sampled(
        _half_pixel(old, new, old / (new + 0.1)), old, lambda x: _cubic(x, -0.75), 2
    ),
}


def resize_grid(
    grid: Float[np.ndarray, "rows columns width"], shape: tuple[int, int], rule: str = "timm"
) -> Float[np.ndarray, "new_rows new_columns width"]:
    """2-D interpolation of learned positions for another resolution (paper, section 3.2). `rule` is
    that of the code base that the weights come from (`RESIZE_RULES`)."""
    if grid.shape[:2] == tuple(shape):
        return grid
    down, across = (
        RESIZE_RULES[rule](old, new) for old, new in zip(grid.shape[:2], shape, strict=True)
    )
    return np.einsum("nh,hwd,mw->nmd", down, grid, across, optimize=True).astype(np.float32)
