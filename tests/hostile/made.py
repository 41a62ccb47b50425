"""Weights and images that the hostile files are made from, and ways to damage them."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vit_jax
from vit_jax.pretrained.save import save_pretrained

SIZE = 8  # px of the images that the weights take


def weights(path: Path, to: str, classes: list[str] | None = None) -> Path:
    """A tiny ViT with two classes, written in a layout."""
    model = vit_jax.create_model(
        "vit_mu_patch4_32", image_size=SIZE, num_layers=1, num_classes=2, mlp_dim=32
    )
    params = model.init(seed=0)
    head = np.random.default_rng(0).normal(size=params["head"]["kernel"].shape)
    params["head"]["kernel"] = head.astype(np.float32)
    save_pretrained(model, params, path, to, classes=classes or ["cat", "dog"])
    return path


def npz_parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of an `.npz`, and what its comment says."""
    with zipfile.ZipFile(path) as archive:
        comment = json.loads(archive.comment)
    return dict(np.load(path)), comment


def write_npz(path: Path, tensors: dict[str, np.ndarray], comment: bytes | dict) -> None:
    """An `.npz` with any comment."""
    with path.open("wb") as file:
        np.savez(file, **tensors)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment if isinstance(comment, bytes) else json.dumps(comment).encode()


def safetensors_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and the bytes of its tensors."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(path: Path, header: bytes | dict, body: bytes, length: int = -1) -> None:
    """A safetensors file with any header, also one that says another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if length < 0 else length) + text + body)


def image(kind: str = "PNG", size: int = SIZE, **options: Any) -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
