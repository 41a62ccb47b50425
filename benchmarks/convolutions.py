"""Milliseconds of the gradients of a ResNet's convolutions, computed in two ways.

    python benchmarks/convolutions.py

vit_jax: products of matrices where the kernel is 1 x 1 or the result has few positions
(`models/resnet.py`). convolution: XLA's convolution. Both compute the same, in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.benching import report
from vit_jax.benching.timing import alternate, compare, in_a_row
from vit_jax.models.resnet import convolve

OURS, BATCH = "vit_jax, products", 64
CASES = {  # (side, inputs, outputs, size, stride): of a ResNet at 64 pixels
    "1 x 1, 64 to 256, 16 x 16": (16, 64, 256, 1, 1),
    "1 x 1, 256 to 512, 16 x 16, stride 2": (16, 256, 512, 1, 2),
    "3 x 3, 512 to 512, 4 x 4, stride 2": (4, 512, 512, 3, 2),
    "3 x 3, 512 to 512, 2 x 2": (2, 512, 512, 3, 1),
}


def convolution(x, kernel, stride, padding):
    pads = [(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def main() -> None:
    """Measures both ways."""
    options = report.parser(__doc__).parse_args()
    rows = []
    for case, (side, inputs, outputs, size, stride) in list(CASES.items())[
        -1 if options.quick else 0 :
    ]:
        rng = np.random.default_rng(0)
        shapes = (BATCH, side, side, inputs), (size, size, inputs, outputs)
        arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
        sides, results = {}, {}
        for name, way in {OURS: convolve, "convolution": convolution}.items():
            gradient = jax.jit(
                jax.grad(
                    lambda x, k, way=way, s=stride: jnp.sum(way(x, k, s, "symmetric") ** 2), (0, 1)
                )
            )
            results[name] = gradient(*arrays)
            sides[name] = in_a_row(lambda f=gradient, a=arrays: f(*a), jax.block_until_ready, 1)
        for ours, theirs in zip(*results.values(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())
        rows += compare(case, alternate(sides, options.rounds or (3 if options.quick else 9)), OURS)
    report.finish("convolutions", rows, options)


if __name__ == "__main__":
    main()
