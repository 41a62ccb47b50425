"""Containers of tensors: `.npz` and `.safetensors`, and PyTorch's `.bin` and `.pth` (not written).

Opening a file reads names, shapes and metadata. Tensors are read one at a time, from memory-mapped
files if the container allows it. Nothing in a file is ever executed.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.numpy import bfloat16

from vit_jax.errors import UserError, nearest, printable
from vit_jax.pretrained.cache import fits
from vit_jax.pretrained.stated import MOST_BYTES, brief
from vit_jax.records import object_in, read_object

INDEX = ".index.json"  # ending of the index of a model in several files
MOST_NAME = 255  # bytes of a file's name that every file system allows
PICKLE = b"\x80"  # the first byte of a pickle; its protocol follows
OURS = "vit_jax"  # key of our own metadata
NUMBERS = r"b?float(16|32|64|96|128)"  # dtypes that parameters are read from
# Dtypes of quantised weights, which mean nothing without their scales.
QUANTISED = r"(q?u?int|float[48]|F[468]|I|U)\d*.*"
_DTYPES = {"BF16": "bfloat16", "BOOL": "bool", "F": "float", "I": "int", "U": "uint"}
# Usual names of a state dict in a training script's file. The first one in the file is used.
STATE_DICTS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")


@dataclasses.dataclass
class Tensors:
    """An opened file, or the opened files of a folder.

    `dtypes` are NumPy's names if it has one. `metadata` is what this package wrote beside the
    tensors, such as sizes that do not follow from shapes. `config` is the folder's `config.json`.
    `notes` are lines about choices that were made while opening.
    """

    path: Path
    container: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def below(self, prefix: str) -> "Tensors":
        """The tensors whose names begin with `prefix`. The new names lack it."""
        inside = [name for name in self.shapes if name.startswith(prefix)]
        return dataclasses.replace(
            self,
            shapes={name.removeprefix(prefix): self.shapes[name] for name in inside},
            dtypes={name.removeprefix(prefix): self.dtypes[name] for name in inside},
            read=lambda name: self.read(prefix + name),
        )

    def check_numbers(self, names: Iterable[str]) -> None:
        """Raises UserError for the first tensor whose dtype is not that of weights."""
        for name in names:
            dtype = self.dtypes[name]
            if re.fullmatch(NUMBERS, dtype):
                continue
            why = "weights are dense arrays of floating-point numbers (16, 32 or 64 bits)"
            if re.fullmatch(QUANTISED, dtype):
                why = "quantised weights without their scales; take the file that is not quantised"
            raise UserError(f"{self.path}: {printable(name)} is {printable(dtype)}: {why}")


def open_tensors(path: Path, part: str = "") -> Tensors:
    """Opens a file by its content, or a folder with `config.json` and weights.

    Args:
      part: the name of a state dict in a PyTorch file; empty for the first of `STATE_DICTS`.

    Raises UserError: there is no such file, it is no known container, it is damaged, or it could
      run code.
    """
    if path.is_dir():
        return _open_folder(path)
    return _open_file(path, part)


def _open_file(path: Path, part: str = "") -> Tensors:
    if not path.is_file():
        raise UserError(f"{printable(path)}: no such file")
    opened = _by_content(path, part)
    if part and opened.container != "torch":
        raise UserError(f"{path}/{part}: {path.name} is one set of tensors, without parts")
    return opened


def _by_content(path: Path, part: str) -> Tensors:
    with path.open("rb") as file, _readable(path):
        head = file.read(16)
        if head[:4] == b"PK\x03\x04":
            names = zipfile.ZipFile(path).namelist()
            if any(name.endswith(".npy") for name in names):
                return _open_npz(path)
            if any(name.endswith("data.pkl") for name in names):
                return _open_torch(path, part)
            raise UserError(f"{path} is a zip archive of neither NumPy's nor PyTorch's tensors")
        if head[8:9] == b"{":
            return _open_safetensors(path)
        if len(head) == 16 and head[:1] == PICKLE and head[1] <= 5:  # PyTorch before 1.6
            return _open_torch(path, part)
    raise UserError(
        f"{path} is no .npz, .safetensors, .bin or .pth file"
        + (" (it is empty)" if not head else f" (it begins with {head[:8]!r})")
    )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns the errors that the containers' readers raise for a damaged file into a UserError."""
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
    reason = printable(str(error).strip().partition("\n")[0])[:160] or type(error).__name__
    return UserError(f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): {reason}")


def _check_comment(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises ValueError if the comment at the archive's end is cut off. `zipfile` accepts that."""
    end = path.stat().st_size - 22 - len(archive.comment)  # of the directory; its record follows
    with path.open("rb") as file:
        file.seek(max(end, 0))
        record = file.read(22)
    if record[:4] == b"PK\x05\x06" and struct.unpack("<H", record[20:])[0] != len(archive.comment):
        raise ValueError("its comment is cut off")


def _open_npz(path: Path) -> Tensors:
    archive = zipfile.ZipFile(path)
    _check_comment(path, archive)
    shapes, dtypes, members, checked = {}, {}, {}, set()
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in shapes:
            raise ValueError(f"it holds two tensors of the name {name!r}")
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
            shapes[name], members[name] = shape, (info, member.tell(), fortran, dtype)
            # NumPy writes bfloat16 as the dtype "two bytes of void".
            dtypes[name] = "bfloat16" if dtype == np.dtype("V2") else dtype.name
    file = path.open("rb")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(name: str) -> np.ndarray:
        info, header, fortran, dtype = members[name]
        with _readable(path):
            if info.compress_type == zipfile.ZIP_STORED:
                # The data follow the local header, two fields of which state its length.
                local = mapped[info.header_offset : info.header_offset + 30]
                start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
                data = memoryview(mapped)[start : start + info.file_size]
                if name not in checked and zlib.crc32(data) != info.CRC:
                    raise ValueError(f"the checksum of {name!r} is another one")
                checked.add(name)  # stacked layers are read many times, one by one
            else:
                data = memoryview(archive.read(info))  # verifies the checksum
            flat = np.frombuffer(data, dtype, math.prod(shapes[name]), header)
        if dtypes[name] == "bfloat16":
            flat = flat.view(bfloat16)
        return flat.reshape(shapes[name], order="F" if fortran else "C")

    return Tensors(path, "npz", shapes, dtypes, read, _ours(_parsed(archive.comment).get(OURS)))


def _parsed(text: bytes) -> dict[str, Any]:
    """The JSON object in a text; an empty one if the text is anything else."""
    try:
        return object_in(text) if len(text) <= MOST_BYTES else {}
    except ValueError:
        return {}


def _ours(metadata: Any) -> dict[str, Any]:
    """This package's metadata in a file. If it is no object, the key "" lets its check fail."""
    return metadata if isinstance(metadata, dict) else {} if metadata is None else {"": metadata}


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    dtypes = {name: _numpy_name(part.get_dtype()) for name, part in slices.items()}
    metadata = _parsed((file.metadata() or {}).get(OURS, "{}").encode(errors="replace"))

    def read(name: str) -> np.ndarray:
        with _readable(path):
            return file.get_tensor(name)

    return Tensors(path, "safetensors", shapes, dtypes, read, metadata)


def _numpy_name(dtype: str) -> str:
    """NumPy's name of a dtype of safetensors (F32, BF16, I8), if it has one."""
    match = re.fullmatch(r"(F(?!8)|I|U)(8|16|32|64)", dtype)
    return _DTYPES[match[1]] + match[2] if match else _DTYPES.get(dtype, dtype)


def _open_torch(path: Path, part: str) -> Tensors:
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
    tree, notes = _state_dict(path, tree, part, torch.Tensor)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no state dict but a {type(tree).__name__}")
    state = {
        name: x for name, x in tree.items() if isinstance(name, str) and isinstance(x, torch.Tensor)
    }

    def read(name: str) -> np.ndarray:
        x = state[name].detach().resolve_conj().resolve_neg()
        with _readable(path):
            return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()

    shapes = {name: tuple(x.shape) for name, x in state.items()}
    dtypes = {name: _torch_dtype(x) for name, x in state.items()}
    return Tensors(path, "torch", shapes, dtypes, read, notes=notes)


def _torch_dtype(x: Any) -> str:
    """NumPy's name of a tensor's dtype, or a description if the tensor is not a dense array."""
    dtype = str(x.dtype).removeprefix("torch.")
    if x.is_meta:
        return "a tensor without values (meta)"
    layout = str(x.layout).removeprefix("torch.")
    return dtype if layout == "strided" else f"{layout} {dtype}"


def _state_dict(path: Path, tree: Any, part: str, kind: type) -> tuple[Any, tuple[str, ...]]:
    """The state dict to read from a checkpoint, and a line that names the other ones."""
    entries = tree.items() if isinstance(tree, dict) else ()
    parts = [key for key, value in entries if isinstance(key, str) and _has_state(value, kind)]
    if part and part not in parts:
        names = [printable(key) for key in parts]
        has = f"{path.name} holds {', '.join(names)}" if names else "it is one state dict"
        raise UserError(f"{path}/{part}: {has}" + (f"; {nearest(part, names)}" if names else ""))
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


def _open_folder(folder: Path) -> Tensors:
    beside = folder / "config.json"
    config = read_object(beside, most=MOST_BYTES) if beside.is_file() else {}
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


def _open_shards(folder: Path, index: Path) -> Tensors:
    file_of = read_object(index, most=MOST_BYTES).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise UserError(f"{index} has no weight_map from tensors to files")
    for name in file_of.values():
        if not fits(name) or len(name.encode()) > MOST_NAME:
            raise UserError(f"{index} names the file {brief(name)}, which is not beside it")
    shards = {name: _open_file(folder / name) for name in sorted(set(file_of.values()))}
    missing = [name for name, shard in file_of.items() if name not in shards[shard].shapes]
    if missing:
        name, shard = missing[0], file_of[missing[0]]
        raise UserError(f"{index} names {name!r} in {shard!r}, which does not hold it")
    shapes = {name: shards[shard].shapes[name] for name, shard in file_of.items()}
    dtypes = {name: shards[shard].dtypes[name] for name, shard in file_of.items()}
    return Tensors(
        folder, "safetensors", shapes, dtypes, lambda name: shards[file_of[name]].read(name)
    )


def write_npz(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Writes tensors with `numpy.savez`, and the metadata into the archive's comment."""
    with path.open("wb") as file:
        np.savez(file, **tensors)  # type: ignore[arg-type]
    comment = json.dumps({OURS: metadata})
    if len(comment) > 2**16 - 1:  # the format allows no more: leave out the names of classes
        comment = json.dumps({OURS: metadata | {"classes": None}})
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment.encode()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Writes tensors with the safetensors library, and the metadata into the header as a string."""
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata={"format": "pt", OURS: json.dumps(metadata)})
    path.chmod(0o644)  # the library lets only the owner read the file
