"""Encoded bytes to uint8 pixels, by content and never by file name.

A JPEG is decoded by the operation that needs it: a random crop at the head of a pipeline reads the
size, and then decodes only the rows down to its lower edge, or a fraction of the resolution.
Photographs stand upright: an EXIF orientation is applied. Alpha is dropped unless the model has a
channel for it. What is no plain JPEG is read by `stored.py`; more than 8 bits become eight by the
range that a pipeline states (`levels.py`).
"""

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vit_jax.data.levels import DamagedImage, Levels, eight_bits
from vit_jax.data.stored import ORIENTATION, Values, check_size, stored
from vit_jax.errors import UserError

__all__ = [
    "ORIENTATION", "DamagedImage", "EncodedJpeg", "Pixels", "as_given", "decode", "encoded",
    "values_of",
]  # fmt: skip

JPEG = b"\xff\xd8\xff"  # first bytes of a JPEG

PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")  # of Pillow, which a PNG holds as they are

Pixels = UInt8[np.ndarray, "height width channels"]


def decode(data: bytes | np.ndarray, channels: int = 3, levels: Levels | None = None) -> Pixels:
    """The pixels of encoded bytes, or of values [H, W, channels]. The bytes have a format of
    `formats.py`: an image with 1 to 4 channels (grey, grey and alpha, RGB, RGBA), or a NumPy file,
    [H, W] or [H, W, channels].

    libjpeg-turbo decodes JPEGs exactly. If it complains about one, Pillow decodes it: Pillow
    accepts harmless errors and refuses truncated files.

    Args:
      channels: the number of channels of the model.
      levels: the range of values of more than 8 bits. Without, 16 bits become their upper eight.

    Raises DamagedImage with the reason, and UserError if a file cannot have such channels.
    """
    image = encoded(data, channels, levels)
    return image.pixels() if isinstance(image, EncodedJpeg) else image


def values_of(image: bytes | np.ndarray, channels: int) -> Values:
    """The values of an image in its own depth. Raises the same errors as `decode`."""
    if not isinstance(image, bytes):
        return image
    return decode(image, channels) if image[:3] == JPEG else stored(image, channels, deep=True)


def as_given(image: Any) -> bytes | np.ndarray:
    """An image of a caller in the form that a source has it: an array as it is, with an axis of
    channels; an image of Pillow as the bytes of a PNG, so that its mode, its alpha and its EXIF
    orientation are treated as those of a file.

    Raises UserError for what is no image.
    """
    if isinstance(image, Image.Image):
        image.load()  # which turns a TIFF by itself
        image = ImageOps.exif_transpose(image)
        image = image if image.mode in PNG_MODES else image.convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"an image is uint8 [height, width, channels], not {pixels.dtype} "
            f"{list(pixels.shape)}: scale it, as in (x * 255).astype('uint8')"
        )
    return pixels


@dataclasses.dataclass(frozen=True)
class EncodedJpeg:
    """An upright JPEG that is not decoded yet. To decode a part of it takes less time."""

    data: bytes
    shape: tuple[int, int, int]
    frame: int | None = None  # offset of the frame header, if its height may be changed

    def pixels(self) -> Pixels:
        """The whole image."""
        return self._decode(*self.shape[:2])

    def region(
        self, top: int, left: int, height: int, width: int, least: tuple[int, int]
    ) -> Pixels:
        """A part of the image, at a half, quarter or eighth of its resolution if that is still at
        least `least` (height, width). libjpeg reduces it in the frequency domain. At full
        resolution, the pixels are the same as those of `pixels`."""
        factor = next((f for f in (8, 4, 2) if height >= f * least[0] and width >= f * least[1]), 1)
        rows = slice(top // factor, top // factor + height // factor)
        columns = slice(left // factor, left // factor + width // factor)
        if factor == 1:
            upper = self._down_to(top + height)
            if upper is not None:
                return upper[rows, columns]
        tall, wide = (-(-side // factor) for side in self.shape[:2])
        return self._decode(tall, wide)[rows, columns]

    def _down_to(self, bottom: int) -> Pixels | None:
        """The image from the top to a row, and a few rows more; None if that is not possible.

        Huffman decoding takes most of the time, and can only stop at the end of the image. So the
        header gets a smaller height. The decoder then complains about the data that follows.
        """
        rows = -(-(bottom + 8) // 16) * 16  # whole blocks, and rows that smooth upsampling reads
        if self.frame is None or rows >= self.shape[0] or b"\xff\xd9" not in self.data[-64:]:
            return None
        shorter = bytearray(self.data)
        shorter[self.frame + 5 : self.frame + 7] = rows.to_bytes(2, "big")
        try:
            return simplejpeg.decode_jpeg(shorter, self._colours, strict=False)
        except ValueError:
            return None

    @property
    def _colours(self) -> str:
        return "RGB" if self.shape[2] == 3 else "GRAY"

    def _decode(self, height: int, width: int) -> Pixels:
        try:
            return simplejpeg.decode_jpeg(
                self.data, self._colours, min_height=height, min_width=width, strict=True
            )
        except ValueError:
            whole = stored(self.data, self.shape[2], deep=False)
        if whole.shape[:2] == (height, width):
            return whole
        reduced = Image.fromarray(whole.squeeze()).resize((width, height), Image.Resampling.BOX)
        return np.asarray(reduced).reshape(height, width, -1)


def _head(data: bytes) -> tuple[int | None, bytes]:
    """The offset of the frame header of a sequential JPEG (ITU-T T.81, B.2.2), None for other
    JPEGs; and the EXIF data before it."""
    at, exif = 2, b""
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1):
            return at, exif
        if marker == 0xDA or (0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            exif = data[at + 4 : end]
        at = end
    return None, exif


def encoded(
    data: bytes | np.ndarray, channels: int, levels: Levels | None = None
) -> Pixels | EncodedJpeg:
    """As `decode`, but a plain JPEG is not decoded: only its size is read from its header."""
    if not isinstance(data, bytes):
        numbers = data.dtype.kind in "buif" if levels else data.dtype == np.uint8
        if not numbers or data.ndim != 3:
            raise UserError(
                f"it has pixels of {data.dtype}: a source gives encoded bytes or uint8 [height, "
                "width, channels] (other numbers where the pipeline begins with decode(low, high)"
                f"), not {list(data.shape)} of {data.dtype}"
            )
        return eight_bits(data, levels)
    if data[:3] != JPEG or channels not in (1, 3):
        return eight_bits(stored(data, channels, deep=levels is not None), levels)
    frame, exif = _head(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return stored(data, channels, deep=False)
    check_size(height, width)
    if colours == "CMYK" or not _upright(exif):
        return stored(data, channels, deep=False)
    return EncodedJpeg(data, (height, width, channels), frame)


def _upright(exif: bytes) -> bool:
    tags = Image.Exif()
    with contextlib.suppress(Exception):  # damaged EXIF is ignored
        tags.load(exif)
        return tags.get(ORIENTATION, 1) == 1
    return True
