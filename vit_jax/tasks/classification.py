"""One class of an image, or several: softmax or sigmoid cross-entropy on one-hot targets, or a loss
of the user's own."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from vit_jax.data.source import GIVES_BOXES, NO_LABEL, PADDING, Facts
from vit_jax.errors import UserError
from vit_jax.evaluators import named
from vit_jax.evaluators.classification import make_eval_step
from vit_jax.evaluators.frozen import make_feature_step
from vit_jax.models import Model
from vit_jax.tasks.losses import LOSSES, targets, weighted
from vit_jax.tasks.mixing import mix_images, mix_targets, partners
from vit_jax.tasks.own_loss import OwnLoss, own_loss
from vit_jax.tasks.task import Batch, Entries, Task

FORMATS = {"loss": ".4f", "best_c": "g", "examples": "", "damaged_images": ""}
# Metrics that are written in percent, by the names that people read (`Evaluator.called`).
SHARE = re.compile(r".*accuracy(_\d+)?|ece|map|\d+ shots?|k=\d+")


@dataclasses.dataclass(frozen=True)
class Labels(Entries):
    """`label`: int32 [], or [max_labels] of an example that may have several."""

    max_labels: int
    num_classes: int

    @property
    def filler(self) -> dict[str, np.ndarray]:
        shape = self.max_labels if self.max_labels > 1 else ()
        return {"label": np.full(shape, PADDING, np.int32)}

    def row(self, example: dict[str, Any], name: Callable[[], str]) -> dict[str, Any]:
        """The example's labels, filled up with NO_LABEL. Raises UserError for what is none."""
        if "label" not in example:
            raise UserError(f"{name()} {GIVES_BOXES}")
        label, most, last = example["label"], self.max_labels, self.num_classes - 1
        if most == 1 and isinstance(label, int) and 0 <= label <= last:
            return {"label": np.int32(label)}
        try:
            labels = np.atleast_1d(np.asarray(label, np.float64))  # of which NaN is in no range
        except (TypeError, ValueError):
            labels = np.array([np.nan])
        whole = (labels >= 0) & (labels <= last) & (labels == np.round(labels))
        if not whole.all() or len(labels) > most or (most == 1 and not len(labels)):
            number = f", {most} of them at most" if len(labels) != 1 else ""
            raise UserError(
                f"{name()} has the label {label!r}: labels are whole numbers from 0 to "
                f"{last}{number}"
            )
        if most == 1:
            return {"label": np.int32(labels[0])}
        padding = (0, most - len(labels))
        return {"label": np.pad(labels.astype(np.int32), padding, constant_values=NO_LABEL)}

    def noise(self, rng: np.random.Generator) -> dict[str, Any]:
        """Labels of random classes."""
        shape = self.filler["label"].shape
        return {"label": rng.integers(self.num_classes, size=shape, dtype=np.int32)}


class Classification(Task):
    """Learns the labels, mixed where `mixup` or `cutmix` say so."""

    best = "max accuracy"
    evaluation = named.Classification
    evaluators: ClassVar = named.KINDS
    outputs_are_classes = True

    def __init__(self, config: ConfigDict, model: Model, facts: Facts):
        super().__init__(config, model, facts)
        if facts.max_objects:
            raise UserError(f"{config.data.train.source} {GIVES_BOXES}")
        loss = loss_named(config.loss.name)
        self.loss_of = weighted(loss, config.loss.class_weights)
        self.mixes = bool(config.mixup or config.cutmix)
        if facts.max_labels > 1 and self.activation(config) == "softmax":
            own = ", or give its function the activation 'sigmoid'" * isinstance(loss, OwnLoss)
            raise UserError(
                f"{config.data.train.source} has up to {facts.max_labels} labels an example, "
                f"loss={config.loss.name} takes one: --config.loss=sigmoid{own}"
            )
        if isinstance(loss, OwnLoss):
            loss.check(config.model.num_classes)
            self.notes = (
                f"loss {loss.name}: your own, of logits and targets "
                f"[batch, {config.model.num_classes:,}]; predictions by {loss.activation}",
            )
        _check_class_weights(config)

    @staticmethod
    def activation(config: ConfigDict) -> str:
        loss = loss_named(config.loss.name)
        return loss.activation if isinstance(loss, OwnLoss) else config.loss.name

    @staticmethod
    def outputs(config: ConfigDict, facts: Facts) -> int:
        asked = config.model.num_classes
        if asked is not None and asked < facts.num_classes:
            raise UserError(
                f"model.num_classes is {asked}, but {config.data.train.source} has "
                f"{facts.num_classes} classes: leave the key out, or raise it"
            )
        return facts.num_classes if asked is None else asked

    def open(self, classes: list[str], say: Callable[[str], object]) -> None:
        if self.facts.num_classes == self.facts.max_labels == 1:
            say(
                f"warning: all training examples are of one class, {', '.join(classes)!r}, so "
                "there is nothing to learn and every answer counts as right"
            )

    def entries(self, facts: Facts) -> Entries:
        return Labels(facts.max_labels, facts.num_classes)

    def prepared(self, batch: Batch, key: Array) -> Batch:
        c = self.config
        return partners(batch, c.mixup, c.cutmix, c.mix_each, key) if self.mixes else batch

    def shown(self, model: Model, batch: Batch) -> Array:
        """Images as a model wants to be shown them, mixed where the batch says so."""
        images = model.data_config.normalise(batch["image"])
        if not self.mixes:
            return images
        return mix_images(images, model.data_config.normalise(batch["image2"]), batch)

    def wanted(self, batch: Batch) -> Array:
        """The targets [B, classes], mixed as the images are."""
        c = self.config
        classes, smoothing = c.model.num_classes, c.loss.label_smoothing
        wanted = targets(batch["label"], classes, smoothing)
        if not self.mixes:
            return wanted
        return mix_targets(wanted, targets(batch["label2"], classes, smoothing), batch)

    def loss(
        self, params: Any, batch: Batch, key: Array, *, gather: Any = None, held: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        wanted = self.wanted(batch)
        images = self.shown(self.model, batch)
        logits, _ = self.model.apply(params, images, train=True, key=key, gather=gather)
        return self.loss_of(logits, wanted).mean(), {}

    def judge(self, gather: Any = None) -> dict[str, Callable[[Any, Batch], dict[str, Array]]]:
        return {
            "rows": make_eval_step(self.model, gather=gather),
            "scores": make_eval_step(self.model, scores=True, gather=gather),
            "features": make_feature_step(self.model, gather=gather),
        }

    def in_words(self, metrics: dict[str, float]) -> str:
        """`accuracy 99.10%, top-5 100.00%, loss 0.0412`; no top-5 where every answer would be."""
        everything = self.config.model.num_classes <= 5
        return ", ".join(
            f"{key.replace('top5_accuracy', 'top-5').replace('_', ' ')} {value:{how}}"
            for key, value in metrics.items()
            if (how := FORMATS.get(key, ".2%" if SHARE.fullmatch(key) else ".4g"))
            and not (everything and key == "top5_accuracy")
        )


def loss_named(name: str) -> Callable:
    """The loss of a config's `loss.name`. Raises UserError where there is none."""
    return LOSSES[name] if name in LOSSES else own_loss(name)


def _check_class_weights(config: ConfigDict) -> None:
    weights = config.loss.class_weights
    if weights is None:
        return
    numbers = isinstance(weights, list | tuple) and all(
        isinstance(one, int | float) and 0 <= one < math.inf for one in weights
    )
    if not numbers or len(weights) != config.model.num_classes or not sum(weights):
        raise UserError(
            f"loss.class_weights is a number, 0 or more, for each of the "
            f"{config.model.num_classes} classes (not all 0), not {weights!r}"
        )
