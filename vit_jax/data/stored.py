"""Reads the values that an image file stores, in the file's own depth of 8 bits or more.

The bytes may be anything. The first bytes decide the format, and only the decoder of that format
reads the file. Sizes are compared with the limit before any pixels are made. Whatever a decoder
raises becomes DamagedImage. `decode.py` reads plain JPEGs.
"""

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from jaxtyping import Num
from PIL import Image, ImageOps

from vit_jax.data.formats import HEAD, NAMES, format_of
from vit_jax.data.levels import DamagedImage, NeedsRange, eight_bits
from vit_jax.errors import UserError, printable

Values = Num[np.ndarray, "height width channels"]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit, against decompression bombs
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG and Pillow

# EXIF orientation: a function that turns an image [H, W, ...] upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1),
    6: lambda v: np.rot90(v, -1),
    7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about odd metadata
# OpenCV 4 or 5 prints nothing, because damage is raised here.
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)


def stored(data: bytes, channels: int, *, deep: bool) -> Values:
    """The values of a file, with as many channels as the model has.

    With `deep`, files of more than 8 bits keep the type of their values. Without, all become uint8:
    16 unsigned bits become their upper eight, floats and other integers raise NeedsRange.

    Raises DamagedImage with the reason. Raises UserError: a file cannot have such channels.
    """
    with _decoding(data) as kind:
        read = _array if kind == "NumPy" else _image
        values = read(data, kind, channels, deep)
        return values if deep else eight_bits(values, None)


def stored_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the header of a file states, before EXIF turns the image.

    Raises DamagedImage with the reason.
    """
    with _decoding(data) as kind:
        if kind == "NumPy":
            height, width, *_ = numpy_header(io.BytesIO(data))[0]
            return height, width
        if kind == "TIFF":
            _check_tags(data)
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return image.height, image.width


@contextlib.contextmanager
def _decoding(data: bytes) -> Iterator[str]:
    """Gives the format of a file, and makes what its decoder raises DamagedImage."""
    kind = format_of(data[:HEAD])
    if kind is None:
        raise DamagedImage(f"cannot identify image file: its bytes are none of {NAMES}")
    try:
        yield kind
    except (DamagedImage, UserError):
        raise
    except Exception as error:  # a decoder may raise anything
        text = str(error).replace(repr(data[:0]), "").split("<_io")[0].strip()
        raise DamagedImage(printable(" ".join(text.split())[:300]) or type(error).__name__) from (
            error
        )


def check_size(height: int, width: int, what: str = "") -> None:
    """Raises DamagedImage: the image has more pixels than are allowed."""
    if height * width > MAX_PIXELS:
        raise DamagedImage(
            f"{what}{height} x {width} pixels are more than the {MAX_PIXELS} allowed"
        )


# -- by Pillow and OpenCV -------------------------------------------------------------------


def _image(data: bytes, kind: str, channels: int, deep: bool) -> Values:
    if channels not in MODES:
        raise UserError(
            f"image files have 1 to 4 channels, the model wants {channels}: give it "
            "--config.model.channels, or NumPy files (.npy) of [H, W, channels]"
        )
    if kind == "TIFF":
        _check_tags(data)
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        tile = image.tile[0] if image.tile else ("", (), 0, "")  # loading the image removes it
        dtype = _depth(image, tile, data, kind)
        if dtype not in (np.uint8, np.uint16) and not deep:
            raise NeedsRange(dtype)
        image.load()
        _check_tags(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
        turn = image.getexif().get(ORIENTATION, 1)
        if dtype != np.uint8 and deep:
            values = TURNS.get(turn, np.asarray)(_deep(image, tile, data, kind))
            return _with_channels(values, channels)
        whole: Image.Image = ImageOps.exif_transpose(image) if turn != 1 else image
        if whole.mode.startswith("I"):  # 16 bits, which Pillow's conversion would clip
            whole = Image.fromarray((np.asarray(whole) >> 8).astype(np.uint8))
        pixels = np.asarray(whole.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _depth(image: Image.Image, tile: tuple, data: bytes, kind: str) -> np.dtype:
    """The type of a file's values, from what Pillow knows before it reads them."""
    if image.mode == "F":
        return np.dtype(np.float32)
    if image.mode.startswith("I;16"):
        return np.dtype(np.uint16)
    if image.mode == "I" and kind in ("PNG", "PPM"):
        return np.dtype(np.uint16)
    if image.mode == "I":
        return np.dtype(np.uint32 if _unsigned(image) else np.int32)
    if kind in ("PNG", "TIFF"):
        return np.dtype(np.uint16 if ";16" in str(tile[3]) else np.uint8)
    if kind == "JPEG2000":
        return np.dtype(np.uint16 if _precision(data) > 8 else np.uint8)
    return np.dtype(np.uint16 if kind == "PPM" and _maximum(tile) > 255 else np.uint8)


def _unsigned(image: Image.Image) -> bool:
    """Whether a TIFF holds 32 unsigned bits, which Pillow reads as signed."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(339, (1,))[0] == 1 and tags.get(258, (0,))[0] == 32


def _maximum(tile: tuple) -> int:
    """The maximum that a PPM or PGM states if Pillow stretches the values by it; else 0."""
    return tile[3][-1] if tile[0] in ("ppm", "ppm_plain") else 0


def _precision(data: bytes) -> int:
    """Bits of a JPEG 2000's first component (ITU-T T.800, A.5.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    return (data[start + 42] & 0x7F) + 1 if start >= 0 else 8


def _deep(image: Image.Image, tile: tuple, data: bytes, kind: str) -> np.ndarray:
    """Values of more than 8 bits as they are stored: [H, W] or [H, W, channels]."""
    if kind == "PPM" and image.mode != "F":
        return _netpbm(image, tile, data)
    upper: Any = np.asarray(image)
    if kind != "JPEG2000" and upper.ndim == 2:
        return upper.view(np.uint32) if image.mode == "I" and _unsigned(image) else upper
    # Pillow cuts colours of 16 bits to their upper eight, and stretches the bits of JPEG 2000.
    # OpenCV does neither, but also reads files that are cut short. So both read, and must agree.
    values: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    bits = _precision(data) if kind == "JPEG2000" else 16
    if values is not None and values.ndim == 3:
        order = [2, 1, 0, 3][: values.shape[-1]]  # OpenCV has the colours in reverse
        values = values[..., order][..., : upper.shape[-1]]
    if values is not None and values.dtype == np.uint16 and values.shape == upper.shape:
        exact = values if upper.dtype == np.uint16 else values >> (bits - 8)
        checked = upper >> (16 - bits) if upper.dtype == np.uint16 else upper
        if np.abs(exact.astype(np.int32) - checked).max() <= (kind == "JPEG2000"):  # it rounds
            return values[..., :3] if image.mode == "RGBX" else values
    raise DamagedImage(
        f"its {bits} bits ({image.mode}) cannot be read whole: save it as a PNG of 16 bits or a "
        "NumPy file"
    )


def _netpbm(image: Image.Image, tile: tuple, data: bytes) -> np.ndarray:
    """The values of a PPM or PGM. Pillow stretches them to a range of its own."""
    shape = (image.height, image.width, *((3,) if image.mode == "RGB" else ()))
    if tile[0] == "ppm_plain":
        if len(shape) == 3:
            raise DamagedImage("its 16 bits are written as text: save it as a binary PPM")
        return np.rint(np.asarray(image) * (_maximum(tile) / 65535)).astype(np.uint16)
    values = np.frombuffer(data, ">u2", math.prod(shape), tile[2])
    return values.astype(np.uint16).reshape(shape)


def _with_channels(values: np.ndarray, channels: int) -> Values:
    """Converts between grey, grey and alpha, RGB and RGBA. Without alpha an image is opaque."""
    values = values.reshape(*values.shape[:2], -1)
    colours = values[..., : 1 if values.shape[-1] < 3 else 3]
    if channels < 3 and colours.shape[-1] == 3:
        colours = (colours @ LUMA)[..., None]
    elif channels >= 3 and colours.shape[-1] == 1:
        colours = colours.repeat(3, axis=-1)
    if channels in (1, 3):
        return colours
    if values.shape[-1] in (2, 4):
        alpha = values[..., -1:]
    else:
        most = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        alpha = np.full((*values.shape[:2], 1), most, values.dtype)
    return np.concatenate([colours, alpha.astype(colours.dtype)], axis=-1)


# -- TIFF's directories ---------------------------------------------------------------------

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}  # fmt: skip


def _check_tags(data: bytes) -> None:
    """Raises DamagedImage: the tags of a directory claim more bytes than the file can hold. Several
    tags may name the same bytes, and a decoder copies them for each."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    big = data[2:4] in (b"+\0", b"\0+")  # BigTIFF
    head, entry = (order + "Q", order + "HHQ8x") if big else (order + "H", order + "HHI4x")
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(head, data, start)
    except struct.error:
        return
    at, size = start + struct.calcsize(head), struct.calcsize(entry)
    entries = data[at : at + min(count * size, len(data))]
    whole = entries[: len(entries) // size * size]
    claimed = sum(_SIZES.get(kind, 1) * n for _, kind, n in struct.iter_unpack(entry, whole))
    if claimed > 2 * len(data) + 1024:
        raise DamagedImage(f"its tags claim {claimed:,} bytes, the file has {len(data):,}")


# -- NumPy's files --------------------------------------------------------------------------


def numpy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, type) of a NumPy file. Raises ValueError or KeyError."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    return read(file)


def _array(data: bytes, _: str, channels: int, deep: bool) -> Values:
    """[H, W] or [H, W, channels] of any numbers. The size that the header claims is compared with
    the bytes that are there."""
    file = io.BytesIO(data)
    try:
        shape, by_column, dtype = numpy_header(file)
    except Exception as error:  # NumPy may raise anything
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise DamagedImage(f"no whole NumPy file: {printable(reason)}") from error
    is_image = len(shape) in (2, 3) and all(isinstance(side, int) and side > 0 for side in shape)
    if dtype.kind not in "buif" or not is_image:
        raise DamagedImage(
            f"a NumPy file of {printable(str(dtype)[:40])} {str(list(shape))[:60]}, not numbers "
            "of [H, W] or [H, W, channels]"
        )
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16) and not deep:
        raise NeedsRange(dtype)
    check_size(shape[0], shape[1])
    count, available = math.prod(shape), len(data) - file.tell()
    if count * dtype.itemsize > available:
        raise DamagedImage(
            f"no whole NumPy file: its head claims {count * dtype.itemsize:,} bytes of pixels, "
            f"{available:,} are there"
        )
    values = np.frombuffer(data, dtype, count, file.tell())
    values = values.reshape(shape, order="F" if by_column else "C")
    values = np.ascontiguousarray(values, dtype.newbyteorder("=")).reshape(*shape[:2], -1)
    if values.shape[-1] != channels:
        turned = len(shape) == 3 and shape[0] == channels
        key = f"--config.model.channels={values.shape[-1]}"
        hint = "it seems to be [channels, H, W]: save array.transpose(1, 2, 0)" if turned else key
        raise UserError(
            f"a NumPy file has {values.shape[-1]} channels, the model wants {channels} ({hint})"
        )
    return values
