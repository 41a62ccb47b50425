"""Which GPUs can compute a model's attention by cuDNN's fused kernel, and why others cannot."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

LEAST = 8.0  # compute capability: Ampere. Volta and Turing have no bfloat16
LARGEST_HEAD = 128  # of what JAX gives to the kernel in the backward pass on every such GPU


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A kind of NVIDIA GPU to compile for."""

    name: str
    capability: float  # compute capability, such as 9.0
    here: bool  # whether a kernel can be tried


def gpu_of(device: Any) -> Gpu | None:
    """The kind of a device of JAX; None if it is no NVIDIA GPU."""
    if device.platform not in ("gpu", "cuda"):
        return None
    here = jax.default_backend() == "gpu" and device in jax.devices()
    return Gpu(device.device_kind, float(device.compute_capability), here)


def refusal(config: Any, gpu: Gpu | None) -> str:
    """The reason why cuDNN's attention cannot be used for a model; empty if it can."""
    if gpu is None:
        return "there is no NVIDIA GPU"
    head = config.hidden_size // config.num_heads
    if gpu.capability < LEAST:
        return f"cuDNN's needs an Ampere GPU or a newer one, and {gpu.name} is older"
    if jnp.dtype(config.dtype).itemsize != 2:
        return f"cuDNN's needs --config.model.dtype=bfloat16, not {config.dtype}"
    if config.attention_dropout:
        return (
            "cuDNN's has no dropout of the weights, and model.attention_dropout is "
            f"{config.attention_dropout:g}: --config.model.attention_dropout=0"
        )
    if head > LARGEST_HEAD or head % 8:
        return f"cuDNN's takes heads of a multiple of 8 up to {LARGEST_HEAD} numbers, not {head}"
    tokens = dataclasses.replace(config, attention="cudnn").padded_tokens
    return _tried(tokens, config.num_tokens, head, config.dtype) if gpu.here else ""


@functools.cache
def _tried(padded: int, tokens: int, head: int, dtype: str) -> str:
    """What goes wrong with the kernel's forward and backward pass on the GPU of this machine."""
    from vit_jax.models.attention import fused

    def total(q):
        return fused(q, q, q, tokens).astype(jnp.float32).sum()

    try:
        jax.block_until_ready(jax.jit(jax.grad(total))(jnp.ones((2, padded, 2, head), dtype)))
    except Exception as error:  # JAX, cuDNN or the driver may raise anything
        return f"cuDNN refuses: {str(error).partition(chr(10))[0][:150]}"
    return ""
