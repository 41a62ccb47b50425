"""Positions of patches: learned (paper, eq. 1) or fixed sines and cosines, and their resizing."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def sincos2d(
    rows: int, columns: int, width: int, temperature: float = 10_000.0
) -> Float[np.ndarray, "rows columns width"]:
    """Fixed 2-D positions: sin x, cos x, sin y, cos y of width/4 frequencies each
    (arXiv 2205.01580, section 2, after MoCo v3). Raises ValueError where width % 4 != 0."""
    if width % 4:
        raise ValueError(f"posemb 'sincos2d' needs a hidden_size divisible by 4, not {width}")
    frequency = temperature ** -(np.arange(width // 4) / (width // 4 - 1 or 1))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    y, x = row[..., None] * frequency, column[..., None] * frequency
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], -1).astype(np.float32)


class LearnedPositions(nnx.Module):
    """One vector a patch on its grid, and one for the class token if there is one (eq. 1).

    `grid` (rows, columns, D) states the grid it was trained on, so that resizing never guesses.
    """

    def __init__(self, rows: int, columns: int, width: int, class_token: bool, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(stddev=0.02)
        self.grid = nnx.Param(normal(rngs.params(), (rows, columns, width), jnp.float32))
        if class_token:
            self.prefix = nnx.Param(normal(rngs.params(), (1, width), jnp.float32))


def resize_grid(
    grid: Float[Array, "rows columns width"], shape: tuple[int, int]
) -> Float[Array, "new_rows new_columns width"]:
    """2-D interpolation of learned positions for another resolution (paper, section 3.2):
    bicubic, antialiased where the grid shrinks."""
    return jax.image.resize(grid, (*shape, grid.shape[-1]), method="bicubic", antialias=True)
