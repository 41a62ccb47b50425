"""Encoded bytes to uint8 pixels, by content and never by file name.

Photographs stand upright: an EXIF orientation is applied. Alpha is dropped unless the model has a
channel for it; 16 bits are read as their upper eight.
"""

import dataclasses
import io
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vit_jax.errors import UserError

Pixels = UInt8[np.ndarray, "height width channels"]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit: more is taken for a decompression bomb
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class DamagedImage(ValueError):
    """The bytes are no whole image."""


def decode(data: bytes, channels: int = 3) -> Pixels:
    """Pixels of a JPEG, PNG, WebP, BMP, GIF or TIFF with 1 to 4 channels (grey, grey and alpha,
    RGB, RGBA), or of a NumPy file, [H, W] or [H, W, channels] of uint8 or uint16.

    JPEGs go through libjpeg-turbo's exact decoder. Whatever it complains about is judged by
    Pillow, which takes harmless oddities and refuses truncated files.

    Raises DamagedImage with the reason, and UserError where a file cannot have such channels.
    """
    image = encoded(data, channels)
    return image.pixels() if isinstance(image, EncodedJpeg) else image


@dataclasses.dataclass(frozen=True)
class EncodedJpeg:
    """An upright JPEG that is not decoded yet, of which a part may be had for less."""

    data: bytes
    shape: tuple[int, int, int]
    frame: int | None = None  # where the header with its height stands, if that may be changed

    def pixels(self) -> Pixels:
        """The whole image."""
        return self._decode(*self.shape[:2])

    def region(
        self, top: int, left: int, height: int, width: int, least: tuple[int, int]
    ) -> Pixels:
        """A part of the image, at a half, quarter or eighth of its resolution where that is still
        `least` (height, width) or more. The reduction is libjpeg's, in the frequency domain; at
        full resolution the pixels are those of `pixels`."""
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
        """The image down to a row and a little more, or None where that cannot be had.

        Most of the time goes into Huffman's code, which only ends where the image does: so the
        decoder is told that this image ends after the row. It then complains about what follows.
        """
        rows = -(-(bottom + 8) // 16) * 16  # whole blocks, and what smooth upsampling looks at
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
            whole = _by_pillow(self.data, self.shape[2])
        if whole.shape[:2] == (height, width):
            return whole
        reduced = Image.fromarray(whole.squeeze()).resize((width, height), Image.Resampling.BOX)
        return np.asarray(reduced).reshape(height, width, -1)


def _head(data: bytes) -> tuple[int | None, bytes]:
    """Where the frame header of a sequential JPEG stands (ITU-T T.81, B.2.2), None for others; and
    the EXIF before it."""
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


def encoded(data: bytes, channels: int) -> Pixels | EncodedJpeg:
    """What `decode` gives, but a plain JPEG as it is, its size read from its head."""
    if data[:6] == b"\x93NUMPY":
        return _array(data, channels)
    if data[:2] != b"\xff\xd8" or channels not in (1, 3):
        return _by_pillow(data, channels)
    frame, exif = _head(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return _by_pillow(data, channels)
    if height * width > MAX_PIXELS:
        raise DamagedImage(f"{height} x {width} pixels are more than the {MAX_PIXELS} allowed")
    if colours == "CMYK" or not _upright(exif):
        return _by_pillow(data, channels)
    return EncodedJpeg(data, (height, width, channels), frame)


def _upright(exif: bytes) -> bool:
    if not exif:
        return True
    try:
        tags = Image.Exif()
        tags.load(exif)
        return tags.get(ORIENTATION, 1) == 1
    except Exception:  # EXIF that is damaged turns nothing
        return True


def _by_pillow(data: bytes, channels: int) -> Pixels:
    if channels not in MODES:
        raise UserError(
            f"image files have 1 to 4 channels, the model wants {channels}: give it "
            "--config.model.channels, or NumPy files (.npy) of [H, W, channels]"
        )
    try:
        with Image.open(io.BytesIO(data)) as image:
            whole: Image.Image = image
            if image.mode == "F":
                raise ValueError("its pixels are floats, not 8 or 16 bits")
            if ORIENTATION in image.getexif():
                whole = ImageOps.exif_transpose(image)
            if whole.mode.startswith("I"):  # 16 bits, which Pillow's conversion would cut off
                whole = Image.fromarray((np.asarray(whole) >> 8).astype(np.uint8))
            pixels = np.asarray(whole.convert(MODES[channels]))
    except (
        OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        reason = str(error).replace(repr(data[:0]), "").split("<_io")[0].strip()
        raise DamagedImage(reason or type(error).__name__) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _array(data: bytes, channels: int) -> Pixels:
    try:
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # whatever NumPy makes of such bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedImage(f"no whole NumPy file: {reason}") from error
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or not pixels.size:
        raise DamagedImage(f"a NumPy file of {pixels.dtype} {list(pixels.shape)}, not of uint8")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[-1] != channels:
        raise UserError(
            f"a NumPy file has {pixels.shape[-1]} channels, the model wants {channels} "
            f"(--config.model.channels={pixels.shape[-1]})"
        )
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
