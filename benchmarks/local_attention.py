"""Milliseconds of a gradient through stand-alone self-attention's layer, computed in three ways.

    python benchmarks/local_attention.py

blocks: queries in blocks of 4 x 4 share the keys around them (`models/sasa.py`). copies: keys and
values are copied for every neighbour. shifts: keys and values are shifted once for each neighbour,
and nothing is copied; the products are sums of elements. All three compute the same, in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.benching import report
from vit_jax.benching.timing import alternate, compare, in_a_row
from vit_jax.models.sasa import attend_locally

OURS, HEADS, BATCH = "vit_jax, blocks", 8, 8
CASES = {  # (side, width, window): of ResNet-26 at 224 and at 64 pixels
    "56 x 56, width 64, window 7": (56, 64, 7), "28 x 28, width 128, window 7": (28, 128, 7),
    "14 x 14, width 256, window 7": (14, 256, 7), "16 x 16, width 64, window 3": (16, 64, 3),
}  # fmt: skip


def neighbours(x, window):
    """Each shift of x that brings a neighbour to its position: window² arrays of x's shape."""
    halo, (height, width) = window // 2, x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (halo, halo), (halo, halo), (0, 0), (0, 0)))
    return [x[:, i : i + height, j : j + width] for i in range(window) for j in range(window)]


def position(q, rows, columns):
    """qᵀr of each neighbour, along the last axis."""
    half = rows.shape[-1]
    by_row = jnp.einsum("bhwnd,knd->bhwnk", q[..., :half], rows)
    by_column = jnp.einsum("bhwnd,knd->bhwnk", q[..., half:], columns)
    return (by_row[..., :, None] + by_column[..., None, :]).reshape(*by_row.shape[:-1], -1)


def copies(q, k, v, rows, columns):
    k, v = (jnp.stack(neighbours(x, rows.shape[0]), axis=-2) for x in (k, v))
    logits = jnp.einsum("bhwnd,bhwnkd->bhwnk", q, k) + position(q, rows, columns)
    return jnp.einsum("bhwnk,bhwnkd->bhwnd", jax.nn.softmax(logits), v)


def shifts(q, k, v, rows, columns):
    k, v = (neighbours(x, rows.shape[0]) for x in (k, v))
    logits = jnp.stack([(q * x).sum(axis=-1) for x in k], axis=-1) + position(q, rows, columns)
    weights = jax.nn.softmax(logits)
    return sum(weights[..., i, None] * x for i, x in enumerate(v))


def main() -> None:
    """Measures the three ways on the layers of a ResNet."""
    options = report.parser(__doc__).parse_args()
    rows = []
    for case, (side, width, window) in list(CASES.items())[-1 if options.quick else 0 :]:
        rng, dim = np.random.default_rng(0), width // HEADS
        shapes = [(BATCH, side, side, HEADS, dim)] * 3 + [(window, HEADS, dim // 2)] * 2
        arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
        sides, results = {}, {}
        for name, way in {OURS: attend_locally, "copies": copies, "shifts": shifts}.items():
            gradient = jax.jit(
                jax.grad(lambda *a, way=way: jnp.sum(way(*a) ** 2), argnums=tuple(range(5)))
            )
            results[name] = gradient(*arrays)
            sides[name] = in_a_row(lambda f=gradient, a=arrays: f(*a), jax.block_until_ready, 1)
        for result in results.values():
            for ours, theirs in zip(results[OURS], result, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())
        rows += compare(case, alternate(sides, options.rounds or (3 if options.quick else 9)), OURS)
    report.finish("local_attention", rows, options)


if __name__ == "__main__":
    main()
