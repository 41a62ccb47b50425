"""A whole training step (forward, backward, update): ours, plain flax.linen, and timm.

    python benchmarks/train_step.py                                  # Ti/16 and S/16, float32
    python benchmarks/train_step.py --dtype=bfloat16 --batch=256 --models=vit_base_patch16_224

Ours is the step that `vit train` runs, set up from a config and compiled by the package; it takes
uint8 images and normalises them, guards against non-finite gradients and reports their norm. The
linen side (linen_vit.py) takes images that were normalised before and does none of that. timm's
step is PyTorch: eager on a CPU; on a GPU compiled, in autocast bfloat16 where asked for, channels
last. All train the same sizes with AdamW on softmax cross-entropy, on one device. Without timm the
other two are measured, and that is said.
"""

import argparse
import contextlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

# PyTorch shares the device: JAX reserves a part of its memory, not most of it.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")

import harness
import jax
import jax.numpy as jnp
from linen_vit import LinenViT, make_linen_step

from vit_jax.config import base
from vit_jax.models.flops import train_flops
from vit_jax.models.vit import ViTConfig
from vit_jax.parallel.chips import peak_flops
from vit_jax.training.setup import Run, set_up

CLASSES = 1000
OURS = "vit_jax"
QUICK = {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "mlp_dim": 96, "image_size": 32}


def our_run(name: str, options: argparse.Namespace) -> Run:
    """A plain run: AdamW at a constant rate on softmax; no clipping, mixup or dropout."""
    c = base()
    c.batch_size, c.total_steps = options.batch, 1_000_000
    c.model.name = name
    c.model.dtype, c.model.scan, c.model.attention = options.dtype, options.scan, options.attention
    if options.quick:
        c.model.update(QUICK)
    side = c.model.image_size or int(name.rpartition("_")[2])
    c.data.train.source = f"synthetic:examples={options.batch},classes={CLASSES},size={side}"
    c.data.train.pipeline, c.data.eval.split = "decode", ""
    c.optimizer.weight_decay = 1e-4
    c.schedule.name = "constant"
    return set_up(c, devices=jax.devices()[:1])


def our_step(run: Run, batch: dict[str, jax.Array]) -> Callable[[], Any]:
    """A function that runs one more step and returns its loss, not awaited."""
    compiled, state = run.compile_train_step(), run.init_state()

    def step() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics["loss"]

    return step


def linen_step(c: ViTConfig, images: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """The same of the linen model."""
    made = make_linen_step(
        LinenViT(
            hidden_size=c.hidden_size, num_layers=c.num_layers, num_heads=c.num_heads,
            mlp_dim=c.mlp_dim, patch_size=c.patch_size, num_classes=c.num_classes,
            dtype=jnp.dtype(c.dtype),
        )
    )  # fmt: skip
    params, opt_state = made.init(jax.random.key(0), images)
    same_size(jax.tree.leaves(params), c)
    compiled = made.step.lower(params, opt_state, images, labels).compile()

    def step() -> jax.Array:
        nonlocal params, opt_state
        params, opt_state, loss = compiled(params, opt_state, images, labels)
        return loss

    return step
