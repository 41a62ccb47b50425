"""Milliseconds of the gradients of a ResNet's convolutions, computed in three ways.

    python benchmarks/convolutions.py

vit_jax: products of matrices where the kernel is 1 x 1 or the result has few positions
(`models/convolution.py`). plain product: the same where the kernel is 1 x 1, with the gradient that
JAX derives. convolution: XLA's convolution. All compute the same, in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.benching import report
from vit_jax.benching.timing import alternate, compare, in_a_row
from vit_jax.models.convolution import convolve

OURS = "vit_jax, products"
CASES = {  # (batch, height, width, inputs, outputs, size, stride)
    # of a detector's ResNet at 480 x 640 pixels
    "1 x 1, 256 to 512, 120 x 160, stride 2": (1, 120, 160, 256, 512, 1, 2),
    "1 x 1, 512 to 1024, 60 x 80, stride 2": (1, 60, 80, 512, 1024, 1, 2),
    # of a ResNet at 64 pixels
    "1 x 1, 64 to 256, 16 x 16": (64, 16, 16, 64, 256, 1, 1),
    "1 x 1, 256 to 512, 16 x 16, stride 2": (64, 16, 16, 256, 512, 1, 2),
    "3 x 3, 512 to 512, 4 x 4, stride 2": (64, 4, 4, 512, 512, 3, 2),
    "3 x 3, 512 to 512, 2 x 2": (64, 2, 2, 512, 512, 3, 1),
}


def convolution(x, kernel, stride, padding):
    pads = [(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain(x, kernel, stride, padding):
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])


def squares(way: Callable, stride: int) -> Callable:
    """The gradients of a sum over what follows a convolution in a ResNet: a norm's scale and bias,
    ReLU, and the square in the place of a loss."""

    def total(x, kernel):
        y = way(x, kernel, stride, "symmetric")
        return jnp.sum(jax.nn.relu(y * 1.01 + 0.01) ** 2)

    return jax.jit(jax.grad(total, (0, 1)))


def main() -> None:
    """Measures all ways."""
    options = report.parser(__doc__).parse_args()
    rows = []
    for case, (batch, high, wide, inputs, outputs, size, stride) in list(CASES.items())[
        -1 if options.quick else 0 :
    ]:
        rng = np.random.default_rng(0)
        shapes = (batch, high, wide, inputs), (size, size, inputs, outputs)
        arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
        ways = {OURS: convolve, "convolution": convolution}
        if size == 1:
            ways["plain product"] = plain
        sides, results = {}, {}
        for name, way in ways.items():
            gradient = squares(way, stride)
            results[name] = gradient(*arrays)
            sides[name] = in_a_row(lambda f=gradient, a=arrays: f(*a), jax.block_until_ready, 1)
        for of_way in results.values():
            for ours, theirs in zip(results[OURS], of_way, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())
        rows += compare(case, alternate(sides, options.rounds or (3 if options.quick else 9)), OURS)
    report.finish("convolutions", rows, options)


if __name__ == "__main__":
    main()
