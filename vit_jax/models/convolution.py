"""The convolutions of ResNets, whose kernels may be standardised (arXiv 1903.10520). They are
products of matrices where that is faster on a CPU (benchmarks/convolutions.py)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

FEW = 4  # positions: those of the last 3 x 3 convolutions of an image of 64 pixels

# Divisor of a centred kernel, from its variance. Each set of published weights needs its own.
STANDARDIZATION = {
    "google": lambda variance: jnp.sqrt(variance) + 1e-5,  # vision_transformer's hybrids
    "bit": lambda variance: jnp.sqrt(variance + 1e-10),  # big_transfer's BiT
    "timm": lambda variance: jnp.sqrt(variance + 1e-8),  # timm's hybrids and BiT
    "none": None,  # a plain convolution
}


class StdConv(nnx.Module):
    """A convolution without bias. Every forward pass standardises its kernel (h, w, in, out).

    So the scale of an output channel's weights does not change what they compute, only how fast
    they learn. They start LeCun-normal, as in Google's code.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, *, padding: str,
        standardization: str, dtype, rngs, dilation: int = 1,
    ):  # fmt: skip
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.stride, self.padding, self.dtype = stride, padding, dtype
        self.standardization, self.dilation = standardization, dilation

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch h w outputs"]:
        kernel = self.kernel[...]
        if divisor := STANDARDIZATION[self.standardization]:
            kernel = kernel - kernel.mean(axis=(0, 1, 2))
            kernel = kernel / divisor(jnp.square(kernel).mean(axis=(0, 1, 2)))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.dilation > 1:  # of a stage without stride, so that positions stay
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", rhs_dilation=(self.dilation,) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
        return convolve(x, kernel, self.stride, self.padding)


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "size size inputs outputs"],
    stride: int,
    padding: str,
) -> Float[Array, "batch h w outputs"]:
    """The convolution. With a kernel of size 1, or with at most `FEW` positions of the result, it
    is one product of matrices: XLA's convolutions are many times slower there on a CPU, most of all
    their gradients (benchmarks/convolutions.py)."""
    size = kernel.shape[0]
    if size == 1:
        x = x[:, ::stride, ::stride]
        return product(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)
    pads = [(size // 2, size // 2)] * 2
    if padding == "same":
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    high, wide = (
        (n + sum(pad) - size) // stride + 1 for n, pad in zip(x.shape[1:3], pads, strict=True)
    )
    if high * wide > FEW:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    down, across = (jnp.arange(n)[:, None] * stride + jnp.arange(size) for n in (high, wide))
    windows = x[:, down][:, :, :, across]  # [batch, high, size, wide, size, inputs]
    return jnp.einsum("bhpwqi,pqio->bhwo", windows, kernel)


@jax.custom_vjp
def product(
    x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """x @ kernel, with a gradient of its own: the kernel's is x.T @ dy.

    JAX's rule transposes dy. On a CPU, XLA then computes dy a second time, column by column, which
    takes 1.6 to 4.3 times as long (benchmarks/convolutions.py). So there is no forward mode here.
    """
    return x @ kernel


def _product_vjp(kept, dy):
    x, kernel = kept
    dx = jax.lax.dot_general(dy, kernel, (((1,), (1,)), ((), ())))
    return dx, jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_vjp)
