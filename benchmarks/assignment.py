"""Milliseconds of a DETR's matching of queries and objects, beside the rest of its training step.

    python benchmarks/assignment.py

Matching: 6 layers of 64 images, 100 queries, by `optax.assignment`, as in the loss. Objects are
random, which is the slowest case: after training, costs differ clearly. Step: forward and backward
pass of DETR R50 on one image of 800 x 1,066 pixels, whose time is taken 64 times. A ratio is the
step's time over the matching's: 20 is a share of 5%.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.benching import report
from vit_jax.benching.timing import alternate, compare, in_a_row
from vit_jax.models import create_model
from vit_jax.tasks.detection import Weights, matching, set_loss

BATCH, LAYERS, QUERIES, CLASSES = 64, 6, 100, 91
OURS, STEP = "vit_jax, matching", "step"
OBJECTS = (7, 30, 93)  # COCO's mean, many, and the most of any image
WEIGHTS = Weights(5.0, 2.0, 0.1)


def scene(rng: np.random.Generator, images: int, objects: int):
    """Logits, boxes, classes and wanted boxes of images, all random."""

    def boxes(count):
        centre, sides = rng.uniform(0.2, 0.8, (2, images, count, 2))
        return np.concatenate([centre, sides / 2], axis=-1).astype(np.float32)

    logits = rng.standard_normal((images, QUERIES, CLASSES + 1)).astype(np.float32)
    return logits, boxes(QUERIES), rng.integers(0, CLASSES, (images, objects)), boxes(objects)


def step_of(size: tuple[int, int], objects: int):
    """A compiled training step of one image, and its arguments."""
    model = create_model("detr_resnet50", image_size=size)
    rng = np.random.default_rng(0)
    _, _, classes, wanted = scene(rng, 1, objects)
    images = rng.standard_normal((1, *size, 3)).astype(np.float32)

    def loss(params, images):
        _, out = model.apply(params, images)
        parts = jax.vmap(lambda logits, boxes: set_loss(logits, boxes, classes, wanted, WEIGHTS))(
            out["layers_logits"], out["layers_boxes"]
        )
        return sum(part.sum() for part in parts.values())

    return jax.jit(jax.grad(loss)), (model.init(), images)


def main() -> None:
    """Measures both in turns."""
    options = report.parser(__doc__).parse_args()
    step, arguments = step_of((96, 128) if options.quick else (800, 1066), OBJECTS[0])
    jax.block_until_ready(step(*arguments))
    whole = in_a_row(lambda: step(*arguments), jax.block_until_ready, 1)
    match = jax.jit(jax.vmap(functools.partial(matching, weights=WEIGHTS)))
    rows = []
    for objects in OBJECTS[:1] if options.quick else OBJECTS:
        given = jax.tree.map(jnp.asarray, scene(np.random.default_rng(1), BATCH * LAYERS, objects))
        jax.block_until_ready(match(*given))
        sides = {
            OURS: in_a_row(lambda given=given: match(*given), jax.block_until_ready, 1),
            STEP: lambda: BATCH * whole(),
        }
        rows += compare(f"{objects} objects an image", alternate(sides, options.rounds or 3), OURS)
    report.finish("assignment", rows, options)


if __name__ == "__main__":
    main()
