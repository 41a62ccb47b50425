"""Made weights: values for every parameter of a model, from its name and shape alone.

They stand in for published checkpoints, which tests cannot download. A value depends on its name
and the seed only, so two descriptions of one model get the same numbers; and all of them keep
activations of order one, with no parameter at an initial value that would hide a mistake.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Flat = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

# Parameters that are added to tokens or are tokens themselves, in any of the formats.
TOKENS = (
    "cls", "token", "pos_embed", "position_embed", "positional_embedding", "probe", "latent",
    "register",
)  # fmt: skip


def names_and_shapes(
    module: nn.Module, image_size: int | tuple[int, int], channels: int = 3
) -> Shapes:
    """Every parameter of a Linen module, as `a/b/kernel`; nothing is computed."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def fill(shapes: Shapes, seed: int = 0, layout: str = "flax") -> Flat:
    """float32 values for names of Linen modules ('flax', `a/b/kernel`) or of state dicts ('torch',
    `a.b.weight`).

    Kernels are normal with variance 1 / fan-in, scales 1 + 0.1 N, biases 0.1 N, tokens and
    positions 0.3 N, LayerScales uniform between 0.5 and 1.5. A name of another kind is an error.
    """
    if layout not in {"flax", "torch"}:
        raise ValueError(f"layout {layout!r} is neither 'flax' nor 'torch'")
    return {name: _value(name, tuple(shape), seed, layout) for name, shape in shapes.items()}


def save_npz(
    path: str | Path, flat: Flat, prefix: str = "", bfloat16_as_void: bool = False
) -> None:
    """Write a flat `.npz`; in bfloat16 as two-byte voids, which is how NumPy reads such files."""

    def as_written(value):
        return value.astype(jnp.bfloat16).view("V2") if bfloat16_as_void else value

    with open(path, "wb") as file:  # NumPy would append .npz to a bare path
        np.savez(file, **{prefix + name: as_written(value) for name, value in flat.items()})


def forward(module: nn.Module, flat: Flat, images: np.ndarray) -> tuple[np.ndarray, Flat]:
    """Logits and intermediates by name, of images [B, H, W, C], in full float32.

    The names must be the module's, no more and no fewer; norms stored as (1, 1, 1, C) are read.
    """
    shapes = names_and_shapes(module, images.shape[1:3], images.shape[3])
    if flat.keys() != shapes.keys():
        raise ValueError(f"names differ: {sorted(flat.keys() ^ shapes.keys())}")
    values: dict[str, Any] = {}
    for name, shape in shapes.items():
        if flat[name].shape not in {shape, (1, 1, 1, *shape)}:
            raise ValueError(f"{name} is {flat[name].shape} and not {shape}")
        values[name] = jnp.asarray(flat[name], jnp.float32).reshape(shape)
    with jax.default_matmul_precision("highest"):
        variables = {"params": traverse_util.unflatten_dict(values, sep="/")}
        logits, out = jax.jit(module.apply)(variables, jnp.asarray(images, jnp.float32))
    return np.asarray(logits), {name: np.asarray(value) for name, value in out.items()}


def _value(name: str, shape: tuple[int, ...], seed: int, layout: str) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(f"{seed}:{name}".encode()))
    parts = name.split("/" if layout == "flax" else ".")
    last = parts[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    layer_scale = last in {"gamma", "lambda1"} and "group_norm" not in parts
    if layer_scale or last == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif last in {"scale", "gamma"} or (last == "weight" and len(shape) == 1):
        value = 1 + 0.1 * rng.standard_normal(shape)
    elif last in {"beta", "running_mean"} or last.endswith("bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif any(token in last for token in TOKENS) or _is_table(parts):
        value = 0.3 * rng.standard_normal(shape)
    elif last in {"kernel", "weight"} or last.endswith("_weight"):
        value = rng.standard_normal(shape) / math.sqrt(_fan_in(parts, shape, layout))
    else:
        raise ValueError(f"no rule says what {name} {shape} is")
    return value.astype(np.float32)


def _is_table(parts: list[str]) -> bool:
    """A torch.nn.Embedding of positions."""
    return len(parts) > 1 and "position" in parts[-2] and parts[-1] == "weight"


def _fan_in(parts: list[str], shape: tuple[int, ...], layout: str) -> int:
    if layout == "torch":
        return math.prod(shape[1:])
    if "encoderblock" in parts:  # scanned: a leading axis of layers
        shape = shape[1:]
    if len(parts) > 1 and parts[-2] in {"query", "key", "value"}:  # (width, heads, head's width)
        return shape[0]
    return math.prod(shape[:-1])
