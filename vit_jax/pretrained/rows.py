"""Rows of a layout: each maps tensors of a file to parameters of a model.

A row holds templates for both names, such as `encoder/block{i:02d}/norm1/scale` and
`blocks.{i}.norm1.weight`, and a codec. `expand` applies a table of rows to the abstract parameters
of a model. A file is read and written with the result, so no parameter has to be initialised.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = list[Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Codec:
    """`read` converts tensors of a file to parameters of the given shapes. `write` is the inverse.

    Both work on NumPy arrays. `write` also works on traced arrays, to compute a file's shapes.
    """

    read: Callable[[Arrays, list[Shape]], Arrays]
    write: Callable[[Arrays], Arrays]


def _like(x: Any) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


def _one(read: Callable, write: Callable) -> Codec:
    """A codec for one tensor and one parameter."""
    return Codec(lambda xs, shapes: [read(xs[0], shapes[0])], lambda ps: [write(ps[0])])


SAME = _one(lambda x, shape: x, lambda p: p)
# The file has leading dimensions of 1: tokens (1, 1, D), and old group norms (1, 1, 1, C).
BATCHED = _one(lambda x, shape: x.reshape(shape), lambda p: p[None])
WIDE = _one(lambda x, shape: x.reshape(shape), lambda p: p[None, None, None])
FLAT = _one(lambda x, shape: x.reshape(shape), lambda p: p.reshape(-1))
# PyTorch's kernels: (out, in, h, w) for convolutions, (out, in) for dense layers.
CONV = _one(lambda x, shape: x.transpose(2, 3, 1, 0), lambda p: p.transpose(3, 2, 0, 1))


def dense(inputs: int = 1) -> Codec:
    """A dense layer of PyTorch, (out, in). Here its first `inputs` dimensions are the inputs."""

    def write(p):
        rows = int(np.prod(p.shape[:inputs]))
        return p.reshape(rows, -1).T

    return _one(lambda x, shape: x.T.reshape(shape), write)


DENSE = dense(1)
DENSE_OUT = dense(2)  # the heads' output projection, (H, D/H, D)
POINTWISE = _one(  # a dense layer written as a 1 x 1 convolution of PyTorch
    lambda x, shape: x.reshape(x.shape[0], -1).T, lambda p: p.T[:, :, None, None]
)
POINTWISE_HWIO = _one(lambda x, shape: x.reshape(shape), lambda p: p[None, None])


def joined(axis: int, parts: int, each: Codec = SAME) -> Codec:
    """Several tensors, such as q, k and v, that are stacked along `axis` into one parameter."""

    def read(xs, shapes):
        (shape,) = shapes
        part = shape[:axis] + shape[axis + 1 :]
        return [np.stack([each.read([x], [part])[0] for x in xs], axis=axis)]

    def write(ps):
        (p,) = ps
        return [
            each.write([_like(p).take(p, part, axis=axis)])[0] for part in range(parts)
        ]  # fmt: skip

    return Codec(read, write)


def _read_positions(xs: Arrays, shapes: list[Shape]) -> Arrays:
    (x,) = xs
    grid, *prefix = shapes
    tokens = prefix[0][0] if prefix else 0
    return [x[0, tokens:].reshape(grid), *([x[0, :tokens]] if tokens else [])]


def _write_positions(ps: Arrays) -> Arrays:
    grid, *prefix = ps
    rows = grid.reshape(-1, grid.shape[-1])
    return [_like(grid).concatenate([*prefix, rows])[None]]


# Positions in one table (1, prefix + h w, D): the prefix tokens, then the patches row by row.
POSITIONS = Codec(_read_positions, _write_positions)


@dataclasses.dataclass(frozen=True)
class Row:
    """Templates of parameter paths (`ours`) and tensor names (`theirs`), and the codec.

    `{i}` is the number of the layer. `{s}` and `{u}` are a ResNet's stage and unit, counted from 1;
    `{s0}` and `{u0}` are counted from 0. `{c}` is the chunk of blocks that holds the layer.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    codec: Codec = SAME


def row(ours: str | Iterable[str], theirs: str | Iterable[str], codec: Codec = SAME) -> Row:
    """A row, from a single path or name or from several."""
    paths, names = ((x,) if isinstance(x, str) else tuple(x) for x in (ours, theirs))
    return Row(paths, names, codec)


def torch_dense(ours: str, theirs: str, codec: Codec = DENSE) -> list[Row]:
    """The rows of a dense layer, with PyTorch's names."""
    bias = row(f"{ours}/bias", f"{theirs}.bias", FLAT)
    return [row(f"{ours}/kernel", f"{theirs}.weight", codec), bias]


def torch_norm(ours: str, theirs: str) -> list[Row]:
    """The rows of a normalisation layer, with PyTorch's names."""
    return [row(f"{ours}/scale", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")]


def pattern_of(template: str) -> re.Pattern[str]:
    """A pattern whose groups are the numbers in a template. `{s0}` and `{u0}` are `s` and `u`."""
    escaped = re.escape(template)
    return re.compile(re.sub(r"\\\{(\w)0?(:02d)?\\\}", r"(?P<\1>\\d+)", escaped))


@dataclasses.dataclass(frozen=True)
class Bound:
    """A row applied to one layer: shapes of parameters by path, and of tensors by name."""

    ours: dict[str, Shape]
    theirs: dict[str, Shape]
    codec: Codec


def expand(
    rows: Iterable[Row], params: Mapping[str, Any], chunk: int | None = None
) -> tuple[list[Bound], list[str]]:
    """The rows for the parameters that a model has, and the paths that no row covers.

    Args:
      params: path -> anything with a shape. Layers are listed one by one.
      chunk: number of blocks in a chunk, for `{c}`.
    """
    bound, known = [], set()
    for item in rows:
        pattern = pattern_of(item.ours[0])
        for path in params:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            numbers = {name: int(value) for name, value in match.groupdict().items()}
            numbers |= {f"{name}0": value - 1 for name, value in numbers.items() if name in "su"}
            if chunk:
                numbers["c"] = numbers.get("i", 0) // chunk
            ours = [template.format(**numbers) for template in item.ours]
            ours = [path for path in ours if path in params]  # some have no pos_embed/prefix
            shapes = tuple(tuple(params[path].shape) for path in ours)
            theirs = (template.format(**numbers) for template in item.theirs)
            names = dict(zip(theirs, _written_shapes(item.codec, shapes), strict=True))
            bound.append(Bound(dict(zip(ours, shapes, strict=True)), names, item.codec))
            known.update(ours)
    return bound, sorted(set(params) - known)


@functools.cache
def _written_shapes(codec: Codec, shapes: tuple[Shape, ...]) -> list[Shape]:
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return [x.shape for x in jax.eval_shape(codec.write, structs)]
