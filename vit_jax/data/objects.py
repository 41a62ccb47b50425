"""The objects of an image: boxes and their classes, and how they follow what operations do."""

import dataclasses

import numpy as np

from vit_jax.errors import UserError

# The edges of a part of an image, as shares of its sides: left, top, right, bottom. The whole image
# is 0, 0, 1, 1. Right may be left of left: then the part is shown mirrored.
Window = tuple[float, float, float, float]
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of an image, as its pixels are now.

    boxes: float64 [N, 4], the edges of each as shares of the image's sides: x1, y1, x2, y2.
    classes: int [N]. crowd: bool [N], whether a box holds many objects that are not told apart.
    area: float64 [N], pixels of the original image that each object covers.
    window: the edges of what the image shows, in pixels of the original: left, top, right, bottom.
    content: (height, width) of the image as shares of a canvas that was padded around it, at its
      top left.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    window: Window
    content: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of_pixels(
        cls, boxes: np.ndarray, classes: np.ndarray, size: tuple[int, int],
        crowd: np.ndarray | None = None, area: np.ndarray | None = None,
    ) -> "Objects":  # fmt: skip
        """The objects of an original image of `size` (height, width), with boxes in its pixels."""
        height, width = size
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        return cls(
            boxes / (width, height, width, height), np.asarray(classes, np.int64),
            np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool),
            sides.prod(axis=1) if area is None else np.asarray(area, np.float64),
            (0.0, 0.0, float(width), float(height)),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.boxes)

    def check_size(self, shape: tuple[int, ...]) -> None:
        """Raises UserError if an original image has another size than its annotation states, also
        because EXIF turns it: its boxes would lie elsewhere."""
        height, width = self.window[3], self.window[2]
        if shape[:2] != (height, width):
            raise UserError(
                f"the annotation is of an image of {width:g} x {height:g} pixels, the file shows "
                f"{shape[1]} x {shape[0]} (as EXIF turns it): annotate it anew, or remove its EXIF"
            )

    def seen(self, window: Window) -> "Objects":
        """The objects of a part of the image. Boxes are cut at its edges, and those that lie
        outside are left out."""
        if self.content != (1.0, 1.0):
            raise UserError(
                "operation pad in pipeline comes behind all that move what an image shows"
            )
        left, top, right, bottom = window
        start, sides = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
        boxes = (self.boxes - start) / sides
        low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
        boxes = np.clip(np.concatenate([low, high], axis=1), 0, 1)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        x1, y1, x2, y2 = self.window
        across, down = x2 - x1, y2 - y1
        return dataclasses.replace(
            self, boxes=boxes[kept], classes=self.classes[kept], crowd=self.crowd[kept],
            area=self.area[kept],
            window=(x1 + left * across, y1 + top * down, x1 + right * across, y1 + bottom * down),
        )  # fmt: skip

    def padded(self, height: float, width: float) -> "Objects":
        """The objects of an image that takes these shares of a canvas' sides, at its top left."""
        down, across = self.content
        return dataclasses.replace(self, content=(down * height, across * width))


@dataclasses.dataclass(frozen=True)
class Moved:
    """What an operation returns that moves what an image shows: the new image, and which part of
    the old one it is."""

    image: np.ndarray
    window: Window


@dataclasses.dataclass(frozen=True)
class Padded:
    """What an operation returns that adds a border at the bottom and at the right."""

    image: np.ndarray
    content: tuple[float, float]  # shares of the new sides that the old image takes
