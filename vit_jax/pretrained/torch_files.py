"""PyTorch's `.bin` and `.pth` files, which are pickles (read, not written).

PyTorch's own `weights_only` loader reads them, so that nothing in them is executed. Of objects that
training scripts save beside the weights, nothing is made: `Unread` stands for each.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.pretrained.tensors import Tensors, damaged, readable
from vit_jax.pretrained.wrapped import beside

# Usual names of a state dict in a training script's file. The first one in the file is used.
STATE_DICTS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")


class Unread:
    """Stands for an object that is not read. What the file says of it is dropped."""

    def __init__(self, *arguments: Any, **more: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What training scripts save beside the weights: arguments, paths, NumPy's numbers and arrays. Names
# are those that different versions of Python and NumPy write.
UNREAD = (
    "argparse.Namespace",
    *(f"{module}.{pure}{kind}Path" for module in ("pathlib", "pathlib._local")
      for pure in ("", "Pure") for kind in ("", "Posix", "Windows")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
)  # fmt: skip


def open_torch(path: Path, part: str = "") -> Tensors:
    """Opens a PyTorch file.

    Args:
      part: the name of a state dict in it; empty for the first of `STATE_DICTS`.

    Raises UserError: PyTorch is not installed, the file is damaged, or it holds other objects than
      tensors, numbers, texts and those of `UNREAD`.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file: reading it needs PyTorch (pip install torch), or the same "
            "weights as .safetensors"
        ) from error
    try:
        with torch.serialization.safe_globals([(Unread, name) for name in UNREAD]):
            tree = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:
        if "weights" not in str(error).lower() and "unsupported" not in str(error).lower():
            raise damaged(path, error) from error
        raise UserError(
            f"{path} holds more than tensors (a pickle that could run code) and is not read: save "
            "its state dict alone, torch.save(model.state_dict(), FILE)"
        ) from error
    entries = tree.items() if isinstance(tree, dict) else ()
    parts = tuple(
        key for key, value in entries if isinstance(key, str) and _has_state(value, torch.Tensor)
    )
    others = [key for key, value in entries if isinstance(value, dict) and key not in parts]
    others = [key for key in others if isinstance(key, str) and parts]
    tree, notes = _state_dict(path, tree, parts, part if part in parts else "")
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no state dict but a {type(tree).__name__}")
    state = {
        name: x for name, x in tree.items() if isinstance(name, str) and isinstance(x, torch.Tensor)
    }

    def read(name: str) -> np.ndarray:
        x = state[name].detach().resolve_conj().resolve_neg()
        with readable(path):
            return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()

    shapes = {name: tuple(x.shape) for name, x in state.items()}
    dtypes = {name: _torch_dtype(x) for name, x in state.items()}
    whys = dict.fromkeys(others, "not a state dict of the model") | beside(others, ())
    return Tensors(path, "torch", shapes, dtypes, read, notes=notes, parts=parts, beside=whys)


def _torch_dtype(x: Any) -> str:
    """NumPy's name of a tensor's dtype, or a description if the tensor is not a dense array."""
    dtype = str(x.dtype).removeprefix("torch.")
    if x.is_meta:
        return "a tensor without values (meta)"
    layout = str(x.layout).removeprefix("torch.")
    return dtype if layout == "strided" else f"{layout} {dtype}"


def _state_dict(
    path: Path, tree: Any, parts: tuple[str, ...], part: str
) -> tuple[Any, tuple[str, ...]]:
    """The state dict to read from a checkpoint, and a line that names the other ones."""
    taken = part or next((key for key in STATE_DICTS if key in parts), "")
    others = ", ".join(f"{path}/{printable(key)}" for key in parts if key != taken)
    notes = (f"{path} holds several state dicts; {taken} is taken (others: {others})",)
    if taken:
        tree = tree[taken]
    for key in STATE_DICTS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    return tree, notes if taken and others and not part else ()


def _has_state(value: Any, kind: type, depth: int = 2) -> bool:
    """Whether a value is a dict of tensors (`kind`), or holds one under a usual name."""
    if not isinstance(value, dict) or not depth:
        return False
    inside = any(_has_state(value.get(key), kind, depth - 1) for key in STATE_DICTS)
    return inside or any(isinstance(x, kind) for x in value.values())
