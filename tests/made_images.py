"""Images made for the tests: smooth ones that a JPEG keeps, and folders of tiny files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def smooth(height: int = 24, width: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]: red falls, green grows to the right, blue swings."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = [255 * (1 - y), 255 * x, 127.5 * (1 + np.sin(3 * x + 2 * y))]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    """The bytes of a file of `kind`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of_images(root: Path, counts: dict[str, int]) -> Path:
    """Tiny JPEGs `root/FOLDER/0.jpg` … for {"train/cat": 3, …}; each folder has its own colour."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.full((40, 48, 3), [37 * number % 256, 10 * index % 256, 128], np.uint8)
            (root / folder / f"{index}.jpg").write_bytes(encoded(pixels))
    return root
