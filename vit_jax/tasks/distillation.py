"""A classifier that learns from a second model too: `soft('WEIGHTS', temperature=2)` or
`hard('WEIGHTS')` of the config key `distill`."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vit_jax import calls
from vit_jax.data.source import Facts
from vit_jax.errors import UserError
from vit_jax.models import Model
from vit_jax.pretrained.given import Unstated
from vit_jax.pretrained.load import fetch_weights, load_pretrained
from vit_jax.pretrained.weights import open_weights
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.losses import softmax_cross_entropy, targets
from vit_jax.tasks.task import Batch


@dataclasses.dataclass(frozen=True)
class Hard:
    """Cross-entropy to the teacher's class (arXiv 2012.12877, eq. 3), which is `weight` of the
    loss. `teacher` names weights, as `init` does."""

    teacher: str
    weight: float = 0.5

    kind: ClassVar[str] = "hard"

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str) or not self.teacher:
            raise ValueError("teacher names weights, a text in quotes")
        if not isinstance(self.weight, int | float) or not 0 <= self.weight <= 1:
            raise ValueError(f"weight lies in 0 … 1, not {self.weight!r}")

    def loss(
        self, logits: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]
    ) -> Float[Array, " batch"]:
        """What a teacher's logits ask of the model's."""
        return softmax_cross_entropy(
            logits, targets(jnp.argmax(teacher, -1), logits.shape[-1], 0.0)
        )


@dataclasses.dataclass(frozen=True)
class Soft(Hard):
    """temperature^2 KL(softmax(teacher / temperature) || softmax(logits / temperature))
    (arXiv 1503.02531, section 2)."""

    temperature: float = 1.0

    kind: ClassVar[str] = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.temperature, int | float) or self.temperature <= 0:
            raise ValueError(f"temperature is a number above 0, not {self.temperature!r}")

    def loss(
        self, logits: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]
    ) -> Float[Array, " batch"]:
        wanted = jax.nn.log_softmax(teacher / self.temperature)
        ours = jax.nn.log_softmax(logits / self.temperature)
        return self.temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - ours), axis=-1)


KINDS = {one.kind: one for one in (Hard, Soft)}


def parse(text: str | None) -> Hard | None:
    """What a config's `distill` asks for. Raises UserError where it cannot be."""
    hint = "write it as soft('WEIGHTS', temperature=2) or hard('WEIGHTS', weight=0.5)"
    found = calls.made(text, KINDS, "distill", hint) if text else [None]
    if len(found) > 1:
        raise UserError(f"distill {text!r} names {len(found)} teachers: {hint}")
    return found[0]


class Distillation(Classification):
    """Learns from the labels and from a teacher, which is `held`."""

    def __init__(self, config: ConfigDict, model: Model, facts: Facts):
        super().__init__(config, model, facts)
        asked = parse(config.distill)
        assert asked is not None
        self.asked = asked
        self.teacher: Model | None = None

    def open(self, classes: list[str], say: Callable[[str], object]) -> None:
        """Reads the teacher, with its own preprocessing, at this model's resolution. `say` takes
        the lines on what its file does not state.

        Raises UserError: there are no such weights, or they are of other classes or channels.
        """
        path, ours = fetch_weights(self.asked.teacher), self.model.config
        try:
            teacher, params, report = load_pretrained(path, image_size=ours.image_size, say=None)
        except Unstated as error:
            raise UserError(
                f"distill: {error}, of a teacher to vit convert, which writes a file that states it"
            ) from error
        for line in report.warnings:
            say(f"teacher: {line}")
        if teacher.config.num_classes != ours.num_classes:
            raise UserError(
                f"distill: {path} has {teacher.config.num_classes} classes, the model "
                f"{ours.num_classes}: a teacher knows the same ones (fine-tune it on "
                f"{self.config.data.train.source} first)"
            )
        if teacher.config.channels != ours.channels:
            raise UserError(
                f"distill: {path} takes images of {teacher.config.channels} channels, the model "
                f"those of {ours.channels}"
            )
        if (theirs := open_weights(path).classes) and theirs != classes:
            raise UserError(
                f"distill: {path} knows other classes ({', '.join(theirs[:3])} …) than the "
                f"training data ({', '.join(classes[:3])} …), or has them in another order"
            )
        self.teacher, self.held = teacher, params

    def loss(
        self, params: Any, batch: Batch, key: Array, *, gather: Any = None, held: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        assert self.teacher is not None
        wanted, images = self.wanted(batch), self.shown(self.model, batch)
        logits, out = self.model.apply(params, images, train=True, key=key, gather=gather)
        # DeiT's second token learns from the teacher, the class token from the labels.
        student, logits = out.get("logits_dist", logits), out.get("logits_cls", logits)
        taught, _ = self.teacher.apply(held, self.shown(self.teacher, batch))
        part = self.asked.weight * self.asked.loss(student, taught)
        return ((1 - self.asked.weight) * self.loss_of(logits, wanted) + part).mean(), {}
