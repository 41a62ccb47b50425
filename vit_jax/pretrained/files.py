"""Containers of tensors: `.npz`, `.safetensors`, and, which are not written, PyTorch's `.bin` and
`.pth` (`torch_files.py`) and Flax's msgpack (`flax_files.py`).

Opening a file reads names, shapes and metadata. Tensors are read one at a time, from memory-mapped
files if the container allows it. Nothing in a file is ever executed.
"""

import dataclasses
import json
import math
import mmap
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jax.numpy import bfloat16

from vit_jax.errors import UserError, nearest, printable
from vit_jax.pretrained.cache import fits
from vit_jax.pretrained.flax_files import named_as_torch, open_flax
from vit_jax.pretrained.stated import MOST_BYTES, brief
from vit_jax.pretrained.tensors import Tensors, readable
from vit_jax.pretrained.torch_files import open_torch
from vit_jax.records import object_in, read_object

INDEX = ".index.json"  # ending of the index of a model in several files
MOST_NAME = 255  # bytes of a file's name that every file system allows
PICKLE = b"\x80"  # the first byte of a pickle; its protocol follows
MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # the first byte of a map in msgpack
POINTER = b"version https://git-lfs"  # the text that stands for a file in Git LFS
OURS = "vit_jax"  # key of our own metadata
_DTYPES = {"BF16": "bfloat16", "BOOL": "bool", "F": "float", "I": "int", "U": "uint"}


def open_tensors(path: Path, part: str = "") -> Tensors:
    """Opens a file by its content, or a folder with `config.json` and weights.

    Args:
      part: the name of a state dict in a PyTorch file; empty for the first of `STATE_DICTS`. Or
        what all names of one of several models begin with.

    Raises UserError: there is no such file, it is no known container, it is damaged, or it could
      run code.
    """
    if path.is_dir():
        return _open_folder(path)
    opened = _open_file(path, part)
    if not part or part in opened.parts:
        return opened
    for mark in "./":
        inside = opened.below(part + mark)
        if inside.shapes:
            return inside
    if opened.container != "torch":
        raise UserError(f"{path}/{part}: {path.name} is one set of tensors, without parts")
    names = [printable(key) for key in opened.parts]
    has = f"{path.name} holds {', '.join(names)}" if names else "it is one state dict"
    raise UserError(f"{path}/{part}: {has}" + (f"; {nearest(part, names)}" if names else ""))


def _open_file(path: Path, part: str = "") -> Tensors:
    if not path.is_file():
        raise UserError(f"{printable(path)}: no such file")
    with path.open("rb") as file, readable(path):
        head = file.read(len(POINTER))
        if head[:4] == b"PK\x03\x04":
            names = zipfile.ZipFile(path).namelist()
            if any(name.endswith(".npy") for name in names):
                return _open_npz(path)
            if any(name.endswith("data.pkl") for name in names):
                return open_torch(path, part)
            raise UserError(f"{path} is a zip archive of neither NumPy's nor PyTorch's tensors")
        if head[8:9] == b"{":
            return _open_safetensors(path)
        if len(head) >= 16 and head[:1] == PICKLE and head[1] <= 5:  # PyTorch before 1.6
            return open_torch(path, part)
        if head[:1] and head[0] in MAPS:
            return open_flax(path)
    if head == POINTER:
        raise UserError(
            f"{path} is a Git LFS pointer, which stands for the file: fetch the file itself with "
            "git lfs pull"
        )
    raise UserError(
        f"{path} is no .npz, .safetensors, .bin or .pth file, and none of Flax's msgpack"
        + (" (it is empty)" if not head else f" (it begins with {head[:8]!r})")
    )


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
        with readable(path):
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
        with readable(path):
            return file.get_tensor(name)

    return Tensors(path, "safetensors", shapes, dtypes, read, metadata)


def _numpy_name(dtype: str) -> str:
    """NumPy's name of a dtype of safetensors (F32, BF16, I8), if it has one."""
    match = re.fullmatch(r"(F(?!8)|I|U)(8|16|32|64)", dtype)
    return _DTYPES[match[1]] + match[2] if match else _DTYPES.get(dtype, dtype)


def _open_folder(folder: Path) -> Tensors:
    beside = folder / "config.json"
    config = read_object(beside, most=MOST_BYTES) if beside.is_file() else {}
    for name in ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
        if (folder / f"{name}{INDEX}").is_file():
            opened = _open_shards(folder, folder / f"{name}{INDEX}")
        elif name.endswith(".msgpack") and (folder / name).is_file():
            opened = named_as_torch(open_tensors(folder / name))
        elif (folder / name).is_file():
            opened = open_tensors(folder / name)
        else:
            continue
        return dataclasses.replace(opened, path=folder, config=config)
    raise UserError(
        f"{folder} holds no weights: expected a work folder with checkpoints/STEP, or config.json "
        "with model.safetensors, pytorch_model.bin or flax_model.msgpack"
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
