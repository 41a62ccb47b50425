"""Containers of tensors: `.npz`, `.safetensors`, PyTorch's `.bin` and `.pth` (read alone).

Opening reads names, shapes and metadata; tensors are read one at a time, from memory-mapped files
where the container allows it. Nothing in a file is ever executed.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.numpy import bfloat16

from vit_jax.errors import UserError

INDEX = ".index.json"  # of a model in several safetensors files
PICKLE = b"\x80"  # begins a pickle, then its protocol
OURS = "vit_jax"  # key of our own metadata


@dataclasses.dataclass
class Tensors:
    """An opened file, or a folder's several files.

    `metadata` is what this package wrote beside the tensors (sizes that shapes do not tell), and
    `config` the folder's `config.json`.
    """

    path: Path
    container: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    def below(self, prefix: str) -> "Tensors":
        """The tensors whose names begin with `prefix`, without it."""
        shapes = {
            name.removeprefix(prefix): shape
            for name, shape in self.shapes.items()
            if name.startswith(prefix)
        }
        return dataclasses.replace(self, shapes=shapes, read=lambda name: self.read(prefix + name))


def open_tensors(path: Path) -> Tensors:
    """Opens a file by its content, or a folder with `config.json` and weights.

    Raises UserError: no such file, not one of the containers, truncated, or it holds code.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file, _whole(path):
        head = file.read(16)
        if head[:4] == b"PK\x03\x04":
            names = zipfile.ZipFile(path).namelist()
            if any(name.endswith(".npy") for name in names):
                return _open_npz(path)
            if any(name.endswith("data.pkl") for name in names):
                return _open_torch(path)
            raise UserError(f"{path} is a zip archive of neither NumPy's nor PyTorch's tensors")
        if head[8:9] == b"{":
            return _open_safetensors(path)
        if len(head) == 16 and head[:1] == PICKLE and head[1] <= 5:  # PyTorch's before 1.6
            return _open_torch(path)
    raise UserError(
        f"{path} is no .npz, .safetensors, .bin or .pth file"
        + (" (it is empty)" if not head else f" (it begins with {head[:8]!r})")
    )


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turns what the containers' readers raise over bytes that make no sense into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError,
                 LookupError, AttributeError, TypeError, RuntimeError)  # fmt: skip
        if not isinstance(error, known) and type(error).__name__ != "SafetensorError":
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0][:160] or type(error).__name__
    return UserError(f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): {reason}")


def _open_npz(path: Path) -> Tensors:
    archive = zipfile.ZipFile(path)
    shapes, where, checked = {}, {}, set()
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(member)
            shape, fortran, dtype = header
            if dtype.hasobject:
                raise UserError(
                    f"{path}: {name!r} is an array of Python objects, which only a pickle can "
                    "hold; pickles can run code and are not read"
                )
            if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                raise ValueError(f"{name!r} is not as long as its shape {list(shape)} says")
            shapes[name], where[name] = shape, (info, member.tell(), fortran, dtype)
    file = path.open("rb")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(name: str) -> np.ndarray:
        info, header, fortran, dtype = where[name]
        with _whole(path):
            if info.compress_type == zipfile.ZIP_STORED:
                # The local header's own lengths say where the member's bytes begin.
                local = mapped[info.header_offset : info.header_offset + 30]
                start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
                data = memoryview(mapped)[start : start + info.file_size]
                if name not in checked and zlib.crc32(data) != info.CRC:
                    raise ValueError(f"the checksum of {name!r} is another one")
                checked.add(name)  # a file of stacked layers reads each tensor many times
            else:
                data = memoryview(archive.read(info))  # which checks it
            flat = np.frombuffer(data, dtype, math.prod(shapes[name]), header)
        if dtype == np.dtype("V2"):  # NumPy's way of writing bfloat16
            flat = flat.view(bfloat16)
        return flat.reshape(shapes[name], order="F" if fortran else "C")

    return Tensors(path, "npz", shapes, read, _parsed(archive.comment).get(OURS, {}))


def _parsed(text: bytes | str) -> dict[str, Any]:
    """A JSON object, or nothing where a file's comment is anything else."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    metadata = _parsed((file.metadata() or {}).get(OURS, "{}"))

    def read(name: str) -> np.ndarray:
        with _whole(path):
            return file.get_tensor(name)

    return Tensors(path, "safetensors", shapes, read, metadata)


def _open_torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file: reading it needs PyTorch (pip install torch), or the same "
            "weights as .safetensors"
        ) from error
    try:
        tree = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:
        if "weights" not in str(error).lower() and "unsupported" not in str(error).lower():
            raise _damaged(path, error) from error
        raise UserError(
            f"{path} holds more than tensors (a pickle that could run code) and is not read: save "
            "its state dict alone, torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no state dict but a {type(tree).__name__}")
    state = {
        name: x for name, x in tree.items() if isinstance(name, str) and isinstance(x, torch.Tensor)
    }

    def read(name: str) -> np.ndarray:
        x = state[name].detach()
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()

    return Tensors(path, "torch", {name: tuple(x.shape) for name, x in state.items()}, read)


def _open_folder(folder: Path) -> Tensors:
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / f"{name}{INDEX}").is_file():
            opened = _open_shards(folder, folder / f"{name}{INDEX}")
        elif (folder / name).is_file():
            opened = open_tensors(folder / name)
        else:
            continue
        return dataclasses.replace(opened, path=folder, config=config)
    raise UserError(
        f"{folder} holds no weights: expected a work folder with checkpoints/STEP, or config.json "
        "with model.safetensors or pytorch_model.bin"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError where it holds none."""
    with _whole(path):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def _open_shards(folder: Path, index: Path) -> Tensors:
    with _whole(index):
        where = json.loads(index.read_text(encoding="utf-8"))
    where = where.get("weight_map") if isinstance(where, dict) else None
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{index} has no weight_map from tensors to files")
    for name in where.values():
        if Path(name).name != name:
            raise UserError(f"{index} names the file {name!r}, which is not beside it")
    shards = {name: open_tensors(folder / name) for name in sorted(set(where.values()))}
    lost = [name for name, shard in where.items() if name not in shards[shard].shapes]
    if lost:
        raise UserError(f"{index} names {lost[0]!r} in {where[lost[0]]}, which does not hold it")
    shapes = {name: shards[shard].shapes[name] for name, shard in where.items()}
    return Tensors(folder, "safetensors", shapes, lambda name: shards[where[name]].read(name))


def write_npz(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """As `numpy.savez` writes; what shapes do not tell goes into the archive's comment."""
    with path.open("wb") as file:
        np.savez(file, **tensors)  # type: ignore[arg-type]
    comment = json.dumps({OURS: metadata})
    if len(comment) > 2**16 - 1:  # the room that the format has: leave out the names of classes
        comment = json.dumps({OURS: metadata | {"classes": None}})
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment.encode()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Our metadata stands in the header, as a string."""
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata={"format": "pt", OURS: json.dumps(metadata)})
    path.chmod(0o644)  # the library makes files that their owner alone may read
