"""Objects found as a set (DETR, arXiv 2005.12872): every query is a class and a box, or nothing.

The queries of an image are matched with its objects so that the sum of the costs is the least
(section 3.1). Then the loss is that of the matched pairs, in every layer of the decoder.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vit_jax.data.objects import Objects
from vit_jax.data.source import GIVES_LABELS, PADDING, Facts
from vit_jax.errors import UserError
from vit_jax.evaluators.detection import Detection
from vit_jax.models import Model
from vit_jax.models.family import BACKBONE
from vit_jax.tasks.assignment import assign
from vit_jax.tasks.task import Batch, Entries, Task

# Of frames around objects, by class: a palette for the colour-blind (Okabe and Ito).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
           (213, 94, 0), (204, 121, 167))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ObjectRows(Entries):
    """The objects of an image, filled up to `most`.

    `boxes` float32 [most, 4]: x1, y1, x2, y2 as shares of what the image shows. `class` int32
    [most], PADDING where there is no object. `crowd` bool and `area` float32 [most]. `window`
    float32 [4]: the edges of what the image shows, in pixels of the original. `content` float32
    [2]: (height, width) of that as shares of the image's sides; the rest is padding.
    """

    most: int
    placed: ClassVar[tuple[str, ...]] = ("objects",)

    @property
    def filler(self) -> dict[str, np.ndarray]:
        return {
            "boxes": np.zeros((self.most, 4), np.float32),
            "class": np.full(self.most, PADDING, np.int32),
            "crowd": np.zeros(self.most, bool), "area": np.zeros(self.most, np.float32),
            "window": np.array([0, 0, 1, 1], np.float32), "content": np.ones(2, np.float32),
        }  # fmt: skip

    def row(self, example: dict[str, Any], name: Callable[[], str]) -> dict[str, Any]:
        """Raises UserError for an example without objects, or with more than `most`."""
        objects = example.get("objects")
        if not isinstance(objects, Objects):
            raise UserError(f"{name()} {GIVES_LABELS}")
        count = len(objects)
        if count > self.most:
            raise UserError(f"{name()} has {count} objects, more than the {self.most} stated")
        row = {key: value.copy() for key, value in self.filler.items()}
        for key, values in (
            ("boxes", objects.boxes), ("class", objects.classes), ("crowd", objects.crowd),
            ("area", objects.area),
        ):  # fmt: skip
            row[key][:count] = values
        row["window"][:], row["content"][:] = objects.window, objects.content
        return row

    def noise(self, rng: np.random.Generator) -> dict[str, Any]:
        """Seven objects, the mean of COCO's images, of the first class, in random places."""
        row = {key: value.copy() for key, value in self.filler.items()}
        count = min(self.most, 7)
        low, sides = rng.uniform(0.0, 0.5, (2, count, 2))
        row["boxes"][:count] = np.concatenate([low, low + 0.1 + 0.8 * sides], axis=1)
        row["class"][:count] = 0
        return row


def centred(boxes: Float[Array, "... 4"]) -> Float[Array, "... 4"]:
    """x1, y1, x2, y2 as centre, width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def edges(boxes: Float[Array, "... 4"]) -> Float[Array, "... 4"]:
    """Centre, width and height as x1, y1, x2, y2."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def giou(a: Float[Array, "... 4"], b: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """Generalised intersection over union of boxes as edges (arXiv 1902.09630, algorithm 1)."""

    def area(low, high):
        return jnp.prod(jnp.maximum(high - low, 0), axis=-1)

    both = area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - both
    hull = area(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    tiny = jnp.finfo(a.dtype).tiny  # boxes without area, which is no reason for a NaN
    return both / jnp.maximum(union, tiny) - (hull - union) / jnp.maximum(hull, tiny)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Of the parts of the cost and of the loss (section A.4 of the paper)."""

    l1: float
    giou: float
    empty: float  # of a query without an object, in the cross-entropy


def matching(
    logits: Float[Array, "queries outputs"],
    boxes: Float[Array, "queries 4"],
    classes: Int[Array, " objects"],
    wanted: Float[Array, "objects 4"],
    weights: LossWeights,
) -> Int[Array, " objects"]:
    """The query of each object of one image, at the least sum of costs. `boxes` and `wanted` are
    centres and sides. An object whose class is below 0 is none, and has the query -1."""
    shares = jax.nn.softmax(logits).T[jnp.maximum(classes, 0)]
    l1 = jnp.abs(wanted[:, None] - boxes).sum(axis=-1)
    overlap = giou(edges(wanted)[:, None], edges(boxes))
    cost = weights.l1 * l1 - weights.giou * overlap - shares
    # With a NaN the algorithm would not end. The loss shows the NaN.
    cost = jax.lax.stop_gradient(jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6))
    return assign(cost, classes >= 0)


def set_loss(
    logits: Float[Array, "batch queries outputs"],
    boxes: Float[Array, "batch queries 4"],
    classes: Int[Array, "batch objects"],
    wanted: Float[Array, "batch objects 4"],
    weights: LossWeights,
    objects: Float[Array, ""] | None = None,
) -> dict[str, Array]:
    """`class`, `l1` and `giou` of one layer (section 3.1), with their weights. Boxes are centres
    and sides. All means are over the whole batch, whichever devices it lies on: of the
    cross-entropy by weight, of the boxes over the number of objects.

    objects: objects of an image, as the mean over the step's batch, if this is one of its
    microbatches. The means of all of them then have the mean of the whole batch.
    """
    query = jax.vmap(functools.partial(matching, weights=weights))(logits, boxes, classes, wanted)
    real: Bool[Array, "batch objects"] = classes >= 0
    if objects is None:
        objects = real.sum() / len(real)
    count = len(real) * objects
    empty = logits.shape[-1] - 1
    batch = jnp.arange(len(logits))[:, None]
    place = jnp.where(real, query, logits.shape[1])  # outside, where nothing is set
    target = jnp.full(logits.shape[:2], empty).at[batch, place].set(classes, mode="drop")
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    share = jnp.where(target == empty, weights.empty, 1.0)
    total = count + weights.empty * (logits.shape[0] * logits.shape[1] - count)
    count = jnp.where(count > 0, count, 1)
    found = boxes[batch, query]
    l1 = jnp.abs(found - wanted).sum(axis=-1)
    overlap = giou(edges(found), edges(wanted))
    return {
        "class": (share * nll).sum() / jnp.where(total > 0, total, 1),
        "l1": weights.l1 * jnp.where(real, l1, 0.0).sum() / count,
        "giou": weights.giou * jnp.where(real, 1 - overlap, 0.0).sum() / count,
    }


def _targets(batch: Batch) -> Int[Array, "batch objects"]:
    """The classes of the objects that are to be found. A crowd is none."""
    return jnp.where(batch["crowd"], PADDING, batch["class"])


class Detect(Task):
    """Learns to find objects. A crowd is no target."""

    best = "max ap"
    stated = ("ap50", "ap75")
    evaluation = Detection
    outputs_are_classes = True

    def __init__(self, config: ConfigDict, model: Model, facts: Facts):
        super().__init__(config, model, facts)
        c = config.detection
        self.weights = LossWeights(c.l1, c.giou, c.empty)

    @property
    def rates(self) -> dict[str, float]:
        factor = self.config.detection.backbone_rate
        return {} if factor == 1 else {BACKBONE: factor}

    def open(self, classes: list[str], say: Callable[[str], object]) -> None:
        """Raises UserError if the training data cannot be learned."""
        c = self.config
        if getattr(self.model.config, "norm", "") == "frozen" and not (c.init or c.resume):
            say(
                "warning: the backbone's norms are frozen at their first values: "
                "--config.init=WEIGHTS of a DETR, or of torchvision's or timm's ResNet, gives them "
                "others"
            )
        source, most = c.data.train.source, self.facts.max_objects
        queries = self.model.config.num_queries
        if not most:
            raise UserError(f"{source} {GIVES_LABELS}")
        if most > queries:
            raise UserError(
                f"{source} has up to {most} objects an image, more than the {queries} queries: "
                f"--config.model.num_queries={most}"
            )

    def entries(self, facts: Facts) -> Entries:
        return ObjectRows(facts.max_objects)

    def prepared(self, batch: Batch, key: Array) -> Batch:
        """With `objects` of an image, as the mean over the batch, in every row."""
        real = (_targets(batch) >= 0).sum(dtype=jnp.float32)
        return batch | {"objects": jnp.full(len(batch["class"]), real / len(batch["class"]))}

    def _applied(self, params: Any, batch: Batch, **how: Any) -> dict[str, Array]:
        images = self.model.data_config.normalise(batch["image"])
        return self.model.apply(params, images, content=batch["content"], **how)[1]

    def loss(
        self, params: Any, batch: Batch, key: Array, *, gather: Any = None, held: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        out = self._applied(params, batch, train=True, key=key, gather=gather)
        classes, objects = _targets(batch), jnp.max(batch["objects"])  # the same in every row
        layers = slice(None) if self.config.detection.auxiliary else slice(-1, None)
        parts = jax.vmap(
            lambda logits, boxes: set_loss(
                logits, boxes, classes, centred(batch["boxes"]), self.weights, objects
            )
        )(out["layers_logits"][layers], out["layers_boxes"][layers])
        total = jnp.stack(list(parts.values())).sum()
        return total, {name: of_layers[-1] for name, of_layers in parts.items()}

    def judge(self, gather: Any = None) -> dict[str, Callable[[Any, Batch], dict[str, Array]]]:
        def rows(params: Any, batch: Batch) -> dict[str, Array]:
            out = self._applied(params, batch, gather=gather)
            shares = jax.nn.softmax(out["layers_logits"][-1])[..., :-1]
            low, high = batch["window"][:, None, :2], batch["window"][:, None, 2:]
            start, sides = jnp.tile(low, 2), jnp.tile(high - low, 2)
            return {
                "boxes": start + edges(out["boxes"]) * sides, "scores": shares.max(axis=-1),
                "predicted": shares.argmax(axis=-1), "true_boxes": start + batch["boxes"] * sides,
                "true_class": batch["class"], "crowd": batch["crowd"], "area": batch["area"],
            }  # fmt: skip

        return {"rows": rows}

    def picture(self, image: np.ndarray, row: dict[str, np.ndarray]) -> np.ndarray:
        """With a frame around each object, in a colour of its class; a crowd's is grey."""
        image = np.array(image)
        down, across = row["content"] * image.shape[:2]
        real = row["class"] >= 0
        for box, label, crowd in zip(
            row["boxes"][real], row["class"][real], row["crowd"][real], strict=True
        ):
            x1, y1, x2, y2 = np.round(box * [across, down, across, down]).astype(int).tolist()
            colour = (128,) * 3 if crowd else COLOURS[int(label) % len(COLOURS)]
            cv2.rectangle(image, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), colour, 1)
        return image

    def in_words(self, metrics: dict[str, float]) -> str:
        """`AP 43.10%, AP50 62.40%, AP75 45.00%`."""
        shown = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
        return ", ".join(f"{words} {metrics[name]:.2%}" for name, words in shown.items())
