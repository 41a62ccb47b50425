"""Encoded bytes to uint8 pixels, by content and never by file name."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

_MODES = {1: "L", 3: "RGB"}


class DamagedImage(ValueError):
    """The bytes are no whole image."""


def decode(data: bytes, channels: int = 3) -> UInt8[np.ndarray, "height width channels"]:
    """Pixels of a JPEG, PNG, WebP, BMP, GIF or TIFF with 1 or 3 channels.

    JPEGs go through libjpeg-turbo's exact decoder. Whatever it complains about is judged by
    Pillow, which takes harmless oddities and refuses truncated files.

    Raises DamagedImage with the reason.
    """
    if channels not in _MODES:
        raise DamagedImage(f"image files have 1 or 3 channels, the model wants {channels}")
    if data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", strict=True)
        except ValueError:
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            whole: Image.Image = image
            if image.mode.startswith("I"):  # 16 bits, which Pillow's conversion would cut off
                whole = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = np.asarray(whole.convert(_MODES[channels]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(repr(data[:0]), "").split("<_io")[0].strip()
        raise DamagedImage(reason or type(error).__name__) from error
    return pixels if channels == 3 else pixels[..., None]
