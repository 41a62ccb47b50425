"""Flax's msgpack files: `checkpoint_N` of training scripts, `flax_model.msgpack` of Transformers.

The structure is walked through here, and every length is compared with the bytes that are there.
`flax.serialization` reads the tensors, each when it is wanted, from the memory-mapped file.
"""

import dataclasses
import math
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization
from jax.numpy import bfloat16

from vit_jax.pretrained.tensors import Tensors, readable

DEEPEST = 32  # maps within each other
MOST_VALUES = 10**6  # values of a file; a large model with its optimiser has some thousands
ARRAY = 1  # Flax's number of the extension type for arrays
CHUNKED = "__msgpack_chunked_array__"  # key of an array that Flax cut into pieces of 1 GiB
# The first byte of a value: (bytes of its length, lengths there are before, what it is). Those that
# hold their length or their value themselves are in `_Reader.head`.
_SIZED = {
    0xC4: (1, "text"), 0xC5: (2, "text"), 0xC6: (4, "text"),
    0xC7: (1, "extension"), 0xC8: (2, "extension"), 0xC9: (4, "extension"),
    0xD9: (1, "text"), 0xDA: (2, "text"), 0xDB: (4, "text"),
    0xDC: (2, "list"), 0xDD: (4, "list"), 0xDE: (2, "map"), 0xDF: (4, "map"),
}  # fmt: skip
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # extensions of these lengths
# Numbers, and nothing, true and false: bytes that follow.
_SCALAR = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_UNSIGNED = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array in the file: its shape and dtype, and where it lies."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


@dataclasses.dataclass
class _Walk:
    """Walks through a file. Raises ValueError if a length is more than what is there."""

    data: Any
    at: int = 0
    values: int = 0

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self.data[start : self.at]

    def skip(self, count: int) -> int:
        """Moves on by `count` bytes, and returns where they begin."""
        start = self.at
        if count > len(self.data) - start:
            raise ValueError(f"it ends within a value of {count:,} bytes")
        self.at += count
        return start

    def head(self) -> tuple[str, int]:
        """What the next value is, and its length or its value."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        first = self.take(1)[0]
        if first <= 0x7F:
            return "number", first
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "list", first & 0x0F
        if first <= 0xBF:
            return "text", first & 0x1F
        if first >= 0xE0:
            return "number", first - 256
        if first in _FIXED:
            return "extension", _FIXED[first]
        if first in _SIZED:
            count, kind = _SIZED[first]
            return kind, int.from_bytes(self.take(count), "big")
        if first not in _SCALAR:
            raise ValueError(f"byte {first:#x} begins no value of msgpack")
        value = self.take(_SCALAR[first])
        return "number", struct.unpack(_UNSIGNED[first], value)[0] if first in _UNSIGNED else -1

    def text(self) -> str:
        kind, length = self.head()
        if kind == "number":  # Flax writes the numbers of a list as keys
            return str(length)
        if kind != "text":
            raise ValueError(f"the key of a map is a {kind}")
        return self.take(length).decode()

    def numbers(self) -> list[int]:
        """A list of numbers, or the values of a map of them."""
        kind, length = self.head()
        if kind not in ("list", "map") or length > 32:
            raise ValueError("the shape of an array is no short list of numbers")
        found = []
        for _ in range(length):
            if kind == "map":
                self.text()
            found.append(self.head())
        if any(kind != "number" or value < 0 for kind, value in found):
            raise ValueError("the shape of an array is no list of numbers")
        return [value for _, value in found]

    def array(self, start: int, length: int) -> Leaf:
        """An array of Flax: the list of its shape, its dtype and its bytes."""
        stop = self.at + length
        if self.head() != ("list", 3):
            raise ValueError("an array is no list of shape, dtype and bytes")
        shape, name = tuple(self.numbers()), self.text()
        kind, size = self.head()
        dtype = np.dtype(bfloat16 if name == "bfloat16" else name)
        if dtype.name != name or dtype.hasobject:
            raise ValueError(f"an array of {name[:80]!r}")
        if kind != "text" or self.at + size != stop or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"an array is not as long as its shape {list(shape)} says")
        self.skip(size)
        return Leaf(shape, name, start, stop)

    def leaves(self, path: str = "", depth: int = 0) -> Iterator[tuple[str, Leaf]]:
        """(name, array) of every array in the next value. The parts of a name are joined by /."""
        if depth > DEEPEST:
            raise ValueError(f"it holds more than {DEEPEST} maps within each other")
        start = self.at
        kind, length = self.head()
        if kind == "text":
            self.skip(length)
        elif kind == "list":
            for number in range(length):
                yield from self.leaves(f"{path}/{number}", depth + 1)
        elif kind == "map":
            for number in range(length):
                key = self.text()
                if number == 0 and key == CHUNKED:
                    yield path[1:], self.chunked(start, length)
                    return
                yield from self.leaves(f"{path}/{key}", depth + 1)
        elif kind == "extension":
            code = self.take(1)[0]
            if length > len(self.data) - self.at:
                raise ValueError(f"it ends within an array of {length:,} bytes")
            if code == ARRAY:
                yield path[1:], self.array(start, length)
            else:
                self.skip(length)

    def chunked(self, start: int, length: int) -> Leaf:
        """An array in pieces: a map of true, the shape, and the pieces."""
        self.head()
        shape: tuple[int, ...] | None = None
        pieces: list[Leaf] = []
        for _ in range(length - 1):
            if (key := self.text()) == "shape":
                shape = tuple(self.numbers())
            elif key == "chunks":
                pieces = [piece for _, piece in self.leaves(depth=DEEPEST - 1)]
            else:
                raise ValueError(f"an array in pieces has the part {key[:80]!r}")
        sizes = sum(math.prod(piece.shape) for piece in pieces)
        if shape is None or len({piece.dtype for piece in pieces}) != 1:
            raise ValueError("an array in pieces has no shape or no pieces")
        if sizes != math.prod(shape):
            raise ValueError(f"the pieces of an array do not have its shape {list(shape)}")
        return Leaf(shape, pieces[0].dtype, start, self.at)


def open_flax(path: Path) -> Tensors:
    """Opens a file that `flax.serialization.msgpack_serialize` wrote. Raises ValueError if it is
    damaged."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    walk = _Walk(mapped)
    found: dict[str, Leaf] = {}
    for name, leaf in walk.leaves():
        if name in found:
            raise ValueError(f"it holds two tensors of the name {name!r}")
        found[name] = leaf
    if walk.at != len(mapped):
        raise ValueError(f"{len(mapped) - walk.at:,} bytes follow its end")

    def read(name: str) -> np.ndarray:
        with readable(path):
            return serialization.msgpack_restore(mapped[found[name].start : found[name].stop])

    shapes = {name: leaf.shape for name, leaf in found.items()}
    return Tensors(path, "flax", shapes, {n: leaf.dtype for n, leaf in found.items()}, read)


# The order of PyTorch's dimensions, by their number: Flax's have the outputs last.
_AS_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}


def named_as_torch(tensors: Tensors) -> Tensors:
    """The tensors of Transformers' Flax models with the names and the dimensions of PyTorch's."""
    theirs = {
        re.sub(r"\.(kernel|scale)$", ".weight", name.replace("/", ".")): name
        for name in tensors.shapes
    }

    def order(name: str) -> tuple[int, ...]:
        shape = tensors.shapes[name]
        turned = _AS_TORCH.get(len(shape)) if name.endswith("/kernel") else None
        return turned or tuple(range(len(shape)))

    return dataclasses.replace(
        tensors,
        shapes={n: tuple(tensors.shapes[x][axis] for axis in order(x)) for n, x in theirs.items()},
        dtypes={name: tensors.dtypes[x] for name, x in theirs.items()},
        read=lambda name: tensors.read(theirs[name]).transpose(order(theirs[name])),
    )
