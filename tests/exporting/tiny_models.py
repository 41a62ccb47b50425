"""A tiny model of each family, saved as weights."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import vit_jax
from vit_jax.models import Model
from vit_jax.models.data_config import DataConfig

NAMES = ["roof", "tree, tall", "wäter"]
VIT = {
    "hidden_size": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 24, "image_size": 32,
    "num_classes": 3,
}  # fmt: skip
DINO = VIT | {"image_size": 28}
DETECTOR = {
    "detector_width": 16, "detector_heads": 2, "detector_mlp_dim": 24, "detector_encoder": 1,
    "detector_decoder": 1, "num_queries": 5,
}  # fmt: skip
MIXER = {
    "hidden_size": 16, "num_layers": 1, "tokens_mlp_dim": 8, "mlp_dim": 24, "image_size": 32,
    "num_classes": 3,
}  # fmt: skip
RESNET = {"image_size": 32, "num_classes": 3, "resnet_layers": (1, 1)}

FAMILIES = {
    "vit": ("vit_base_patch16_224", VIT),
    "vit, scanned, one output": (
        "vit_base_patch16_224", VIT | {"scan": True, "num_layers": 2, "num_classes": 1},
    ),
    "vit, averaged": ("vit_base_patch16_224", VIT | {"posemb": "sincos2d", "pool": "gap"}),
    "siglip": ("vit_base_patch16_siglip_224", VIT),
    "deit": ("deit_base_distilled_patch16_224", VIT),
    "dinov2": ("vit_small_patch14_dinov2", DINO),
    "dinov2, without a head": ("vit_small_patch14_dinov2", DINO | {"num_classes": 0}),
    "dinov2, registers": ("vit_small_patch14_reg4_dinov2", DINO),
    "dinov2, swiglu": ("vit_giant_patch14_reg4_dinov2", DINO),
    "hybrid": ("vit_base_r50_s16_224", VIT | {"resnet_layers": (1, 1), "patch_size": 8}),
    "mixer": ("mixer_b16_224", MIXER),
    "bit": ("resnetv2_50x1_bit", RESNET),
    "detr": ("detr_vit_base_patch16_224", VIT | DETECTOR),
    "detr, refined": (
        "detr_vit_base_patch16_224", VIT | DETECTOR | {"queries": "refined", "detector_decoder": 2},
    ),
    "detr, resnet": ("detr_resnet50", RESNET | DETECTOR),
    "yolos": ("yolos_tiny", VIT | {"num_queries": 5}),
}  # fmt: skip


def made(name: str, fields: dict, *, activation: str = "softmax", **data) -> tuple[Model, dict]:
    """A model and its parameters: random, of a size that keeps activations near one."""
    model = vit_jax.create_model(name, **fields)
    data = {"crop": 1.0, "squash": True} | data
    model = dataclasses.replace(
        model, activation=activation, data_config=DataConfig((0.3, 0.5, 0.6), 0.25, **data)
    )
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
        fan_in = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 100
        noise = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return (centre + noise).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, model.abstract_params)


def saved(folder, family: str = "vit", **more):
    """Weights of a family in a folder that is made: their path, their model and its parameters."""
    name, fields = FAMILIES[family]
    fields = fields | more.pop("fields", {})
    model, params = made(name, fields, **more)
    path = folder / f"weights of {family}".replace(", ", "_")
    names = NAMES if model.config.num_classes == 3 else None
    vit_jax.save_pretrained(model, params, path, "orbax", classes=names)
    return path, model, params


def noise(model: Model, batch: int, seed: int = 5) -> np.ndarray:
    """uint8 images."""
    shape = (batch, *model.config.image_size, model.config.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def computed(model: Model, params, pixels: np.ndarray, **more) -> dict[str, np.ndarray]:
    """What an artefact must give: `model.apply`, with the rest stated again in NumPy."""
    mean, std = np.array((0.3, 0.5, 0.6)), 0.25
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    logits, out = jax.device_get(jax.jit(model.apply)(params, images, **more))
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = shifted / shifted.sum(axis=-1, keepdims=True)
    if model.family.task == "detection":
        centre, half = out["boxes"][..., :2], out["boxes"][..., 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=-1)
        return {"scores": shares[..., :-1], "boxes": boxes, "logits": logits}
    if not model.config.num_classes:
        return {"features": logits}
    several = 1 / (1 + np.exp(-logits))
    if model.activation == "sigmoid" or model.config.num_classes == 1:
        shares = several
    return {"probabilities": shares, "logits": logits, "values": logits}


def ran_without(package: str, code: str, folder: Path) -> str:
    """What a program prints, in a process of its own that cannot import a package."""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys\nsys.modules[{package!r}] = None\n{code}"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False, encoding="utf-8",
        env={"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
