"""A classifier's weights as those of the backbone that a detector has."""

import dataclasses

from vit_jax.models.family import BACKBONE, CLASSES, FRESH
from vit_jax.models.model import Model
from vit_jax.pretrained.opened import Weights


def as_backbone(weights: Weights, detector: Model) -> Weights:
    """The weights by the detector's paths. The classifier's head is unused; what is the detector's
    own is lacking. Their dialect says that they are a backbone's."""
    theirs = weights.model
    fields = {field: getattr(theirs.config, field) for field in theirs.family.fields}
    fields.pop("num_classes")
    config = dataclasses.replace(detector.config, **fields)
    head = [path for path in weights.shapes if theirs.family.at_init(path) in (CLASSES, FRESH)]
    kept = weights.shapes.keys() - set(head)
    return dataclasses.replace(
        weights, model=dataclasses.replace(theirs, config=config), classes=None,
        shapes={f"{BACKBONE}/{path}": weights.shapes[path] for path in sorted(kept)},
        read=lambda path: weights.read(path.removeprefix(f"{BACKBONE}/")),
        unused=weights.unused | dict.fromkeys(head, "a classifier's head"),
        dialect=weights.dialect | {BACKBONE: True},
    )  # fmt: skip
