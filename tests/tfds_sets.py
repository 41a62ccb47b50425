"""Prepared TFDS sets with objects, made of TFDS's own features and without TensorFlow."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from made_images import encoded

F = tfds.features
PICTURE = encoded(np.zeros((40, 60, 3), np.uint8))


def fields(bbox_format: str | None = "REL_YXYX", **others) -> dict:
    """The features of an object: a box, one of two classes, and others."""
    classes = F.ClassLabel(names=["cat", "dog"])
    return {"bbox": F.BBoxFeature(bbox_format=bbox_format), "label": classes, **others}


def prepare(root: Path, of_object: dict, images: list[list[dict]], **others) -> str:
    """Writes the set `tiny_boxes`, whose split `train` has images of 60 x 40 pixels with these
    objects, or those that an example of `others` has. Returns its source's name.

    others: name -> (feature, its value in all examples), beside `image`, `image/filename` and
      `objects`.
    """

    class TinyBoxes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            usual = {
                "image": F.Image(encoding_format="jpeg"), "image/filename": F.Text(),
                "objects": F.Sequence(of_object),
            }  # fmt: skip
            features = usual | {name: feature for name, (feature, _) in others.items()}
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, objects in enumerate(images):
                usual = {"image": PICTURE, "image/filename": f"{number}.jpg", "objects": objects}
                yield number, usual | {name: value for name, (_, value) in others.items()}

    tfds.disable_progress_bar()
    TinyBoxes(data_dir=str(root), file_format="array_record").download_and_prepare()
    return "tfds:tiny_boxes"
