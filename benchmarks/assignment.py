"""Milliseconds of a DETR's matching of queries and objects, beside the rest of its training step.

    python benchmarks/assignment.py

Matching: 6 layers of 64 images, 100 queries, as in the loss. Every image has room for 93 objects,
the most of COCO's. Objects are random, which is the slowest case: after training, costs differ
clearly. optax: `optax.assignment`, which assigns the room that is left, too. Step: forward and
backward pass of DETR R50 on one image of 800 x 1,066 pixels, whose time is taken 64 times. The
ratio to it is the step's time over the matching's: 20 is a share of 5%.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.benching import report
from vit_jax.benching.timing import alternate, compare, in_a_row
from vit_jax.models import create_model
from vit_jax.tasks.detection import LossWeights, edges, giou, matching, set_loss

BATCH, LAYERS, QUERIES, CLASSES = 64, 6, 100, 91
OURS, OPTAX, STEP = "vit_jax, matching", "optax, matching", "step"
OBJECTS = (7, 30, 93)  # COCO's mean, many, and the most of any image
WEIGHTS = LossWeights(5.0, 2.0, 0.1)


def scene(rng: np.random.Generator, images: int, objects: int):
    """Logits, boxes, classes and wanted boxes of images, all random. No object has class -1."""

    def boxes(count):
        centre, sides = rng.uniform(0.2, 0.8, (2, images, count, 2))
        return np.concatenate([centre, sides / 2], axis=-1).astype(np.float32)

    logits = rng.standard_normal((images, QUERIES, CLASSES + 1)).astype(np.float32)
    classes = rng.integers(0, CLASSES, (images, OBJECTS[-1]))
    classes[:, objects:] = -1
    return logits, boxes(QUERIES), classes, boxes(OBJECTS[-1])


def by_optax(logits, boxes, classes, wanted):
    """The query of each object of one image."""
    shares = jax.nn.softmax(logits)[:, jnp.maximum(classes, 0)]
    l1 = jnp.abs(boxes[:, None] - wanted).sum(axis=-1)
    overlap = giou(edges(boxes)[:, None], edges(wanted))
    cost = jnp.where(classes >= 0, WEIGHTS.l1 * l1 - WEIGHTS.giou * overlap - shares, 0.0)
    query, target = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(len(classes), jnp.int32).at[target].set(query)


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
    matches = {
        OURS: jax.jit(jax.vmap(functools.partial(matching, weights=WEIGHTS))),
        OPTAX: jax.jit(jax.vmap(by_optax)),
    }
    rows = []
    for objects in OBJECTS[:1] if options.quick else OBJECTS:
        given = jax.tree.map(jnp.asarray, scene(np.random.default_rng(1), BATCH * LAYERS, objects))
        sides = {}
        for name, match in matches.items():
            jax.block_until_ready(match(*given))
            sides[name] = in_a_row(
                lambda match=match, given=given: match(*given), jax.block_until_ready, 1
            )
        sides[STEP] = lambda: BATCH * whole()
        rows += compare(f"{objects} objects an image", alternate(sides, options.rounds or 3), OURS)
    report.finish("assignment", rows, options)


if __name__ == "__main__":
    main()
