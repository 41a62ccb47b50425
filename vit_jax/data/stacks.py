"""Files that hold several images: pages of a TIFF, NumPy arrays with a leading axis.

Training reads the first image of a file (`stored.py`). What shows all of them to a model asks
`images_in` for each as the bytes of a file of its own, so that all are decoded alike.
"""

import functools
import io
import math
import struct
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.data.formats import HEAD, format_of
from vit_jax.data.levels import DamagedImage
from vit_jax.data.stored import numpy_header

MOST = 2**16  # images of a file

# TIFF 6.0, and BigTIFF: formats of the offset of a directory, and of the number of its entries;
# where the first offset stands; bytes of an entry; where the value stands in it.
CLASSIC, BIG = ("I", "H", 4, 12, 8), ("Q", "Q", 8, 20, 12)
KIND, OLD_KIND = 254, 255  # tags NewSubfileType and SubfileType
COPY_OR_MASK = 0b101  # bits of NewSubfileType: a smaller copy of another page, a mask of one


def images_in(data: bytes) -> list[Callable[[], bytes]]:
    """The images of a file, each as a function that gives the bytes of a file with this image
    alone: the pages of a TIFF, except smaller copies (thumbnails, pyramids) and masks; the images
    of a NumPy file [N, H, W, channels]; of any other file, that file.

    Raises DamagedImage: more than `MOST` images, or directories of a TIFF that overlap.
    """
    kind = format_of(data[:HEAD])
    if kind == "TIFF":
        return _pages(data)
    if kind == "NumPy":
        return _rows(data)
    return [lambda: data]


def _pages(data: bytes) -> list[Callable[[], bytes]]:
    pages: list[Callable[[], bytes]] = []
    for offset, is_page in _directories(data):
        if offset is None:
            pages.append(_lost)
        elif is_page or not pages:
            pages.append(functools.partial(_beginning_at, data, offset))
        if len(pages) > MOST:
            raise DamagedImage(f"it has more than {MOST:,} pages")
    return pages if len(pages) > 1 else [lambda: data]


def _lost() -> bytes:
    raise DamagedImage("the file ends before this page")


def _layout(data: bytes) -> tuple[str, tuple[str, str, int, int, int]]:
    """The order of bytes, and `CLASSIC` or `BIG`."""
    return {b"II": "<", b"MM": ">"}[data[:2]], BIG if b"+" in data[2:4] else CLASSIC


def _directories(data: bytes) -> Iterator[tuple[int | None, bool]]:
    """(Offset, whether it is a page of its own) of each directory. A directory that does not lie in
    the file has no offset, and is the last one."""
    order, (offset_format, count_format, first, size, value_at) = _layout(data)
    seen, read = set[int](), 0
    try:
        (offset,) = struct.unpack_from(order + offset_format, data, first)
        while offset and offset not in seen:
            seen.add(offset)
            (count,) = struct.unpack_from(order + count_format, data, offset)
            entries = offset + struct.calcsize(count_format)
            end = entries + count * size
            (after,) = struct.unpack_from(order + offset_format, data, end)
            read += end - offset
            if read > len(data):  # else a small file could have any number of large ones
                raise DamagedImage("its directories overlap")
            is_page = True
            for at in range(entries, end, size):
                tag, kind = struct.unpack_from(order + "HH", data, at)
                if tag in (KIND, OLD_KIND):
                    (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data,
                                                  at + value_at)  # fmt: skip
                    is_page = not (value & COPY_OR_MASK if tag == KIND else value == 2)
                    break
                if tag > OLD_KIND:  # they ascend
                    break
            yield offset, is_page
            offset = after
    except (struct.error, OverflowError):
        yield None, True


def _beginning_at(data: bytes, offset: int) -> bytes:
    """The TIFF with another directory as the first one, which is all that readers read."""
    order, (offset_format, _, first, *_) = _layout(data)
    rest = first + struct.calcsize(offset_format)
    return b"".join([
        data[:first], struct.pack(order + offset_format, offset), memoryview(data)[rest:]
    ])  # fmt: skip


def _rows(data: bytes) -> list[Callable[[], bytes]]:
    file = io.BytesIO(data)
    try:
        shape, by_column, dtype = numpy_header(file)
        start, size = file.tell(), math.prod(shape) * dtype.itemsize
    except Exception:  # `stored` says what is wrong
        return [lambda: data]
    one = len(shape) != 4 or shape[-1] < 1 or dtype.hasobject
    if one or min(shape) < 1 or start + size > len(data):
        return [lambda: data]
    if shape[0] > MOST:
        raise DamagedImage(f"it has {shape[0]:,} images, more than {MOST:,}")
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    values = values.reshape(shape, order="F" if by_column else "C")
    return [functools.partial(_as_file, values, number) for number in range(shape[0])]


def _as_file(values: np.ndarray, number: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(values[number]), allow_pickle=False)
    return file.getvalue()
