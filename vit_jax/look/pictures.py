"""Arrays as pictures: maps over a photograph, tiles, frames; and as files of PNG and JPEG."""

from collections.abc import Sequence

import cv2
import numpy as np

ORANGE, BLUE = (230, 159, 0), (86, 180, 233)  # of frames; told apart by the colour-blind
DIMMED = 0.3  # of the light of a pixel where a map is 0


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """The first three channels of images [..., channels]; three times the first of fewer."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)


def png(pixels: np.ndarray) -> bytes:
    """A file of uint8 [height, width] (grey), [..., 3] (RGB) or [..., 4] (RGBA)."""
    if pixels.ndim == 3:
        pixels = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=-1)  # OpenCV's order
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(pixels: np.ndarray) -> bytes:
    """A file of uint8 [height, width, 3], RGB."""
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def levels(map_: np.ndarray) -> np.ndarray:
    """A map of numbers from 0 on as uint8; its largest number is 255."""
    highest = float(map_.max())
    return np.round(255 * np.maximum(map_, 0) / (highest if highest > 0 else 1.0)).astype(np.uint8)


def shade(map_: np.ndarray) -> np.ndarray:
    """A black picture [rows, columns, 4] to be laid over a photograph: the larger a map's number,
    the more of the photograph is seen through it."""
    alpha = 255 - levels(map_)
    return np.concatenate([np.zeros((*alpha.shape, 3), np.uint8), alpha[..., None]], axis=-1)


def lit(photograph: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """A photograph [height, width, 3] as bright as a map [rows, columns], which is interpolated."""
    height, width = photograph.shape[:2]
    light = cv2.resize(levels(map_), (width, height), interpolation=cv2.INTER_LINEAR) / 255
    return np.round(photograph * (DIMMED + (1 - DIMMED) * light)[..., None]).astype(np.uint8)


def enlarged(pixels: np.ndarray, least: int) -> np.ndarray:
    """A picture whose short side has at least so many pixels, each of them a square."""
    times = -(-least // min(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def framed(photograph: np.ndarray, box: Sequence[float], colour: Sequence[int]) -> np.ndarray:
    """With a frame at x1, y1, x2, y2, in pixels."""
    x1, y1, x2, y2 = (round(edge) for edge in box)
    thick = max(1, round(max(photograph.shape) / 300))
    found = np.array(photograph)  # a copy, because OpenCV draws in place
    return cv2.rectangle(found, (x1, y1), (x2, y2), tuple(map(int, colour)), thick)


def spread(values: np.ndarray) -> np.ndarray:
    """Numbers of both signs as uint8: 0 becomes grey, the largest magnitude black or white."""
    highest = float(np.abs(values).max()) or 1.0
    return np.round(127.5 + 127.5 * values / highest).astype(np.uint8)


def mosaic(tiles: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Equal tiles [count, height, width, …] in rows, with white gaps."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    sheet = np.full(shape, 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet
