"""The seam between the house and a task: what step, loop, pipeline, planner and evaluation ask."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from vit_jax.data.source import Facts
from vit_jax.errors import UserError
from vit_jax.evaluators.named import Evaluator, Means
from vit_jax.models import Model

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Entries:
    """What a batch holds of an example beside its image. This is the base: nothing.

    It travels to the processes that read, so it holds numbers, not arrays on a device.
    """

    # Entries of a source's example that say where something is in its image: an operation that
    # moves pixels must change them too (`vit_jax.data.declared.Declared`).
    placed: ClassVar[tuple[str, ...]] = ()

    @property
    def filler(self) -> dict[str, np.ndarray]:
        """Entry -> what stands in a row that counts for nothing. Its shapes and dtypes are those of
        every row."""
        return {}

    def row(self, example: dict[str, Any], name: Callable[[], str]) -> dict[str, Any]:
        """The entries of an example, as its source gives it; `name` says which one it is.

        Raises UserError where the example is none of the task's.
        """
        return {}

    def noise(self, rng: np.random.Generator) -> dict[str, Any]:
        """Entries as an example could have them, for measurements without data."""
        return self.filler


class Task:
    """A task of one run. A task of your own is a subclass with at least `loss` and `judge`.

    config: the resolved config. model: the one that is trained. facts: of the training data.
    """

    best: ClassVar[str] = "min loss"  # how evaluations of `data.eval` are ranked, by default
    stated: ClassVar[tuple[str, ...]] = ()  # metrics that a result states beside the best one
    evaluation: ClassVar[type[Evaluator]] = Means  # that of `data.eval`
    evaluators: ClassVar[dict[str, type[Evaluator]]] = {}  # others, by name
    outputs_are_classes: ClassVar[bool] = False  # whether the data's classes name the outputs
    held: Any = None  # arrays that the loss reads and that do not train
    notes: tuple[str, ...] = ()  # lines for the user

    def __init__(self, config: ConfigDict, model: Model, facts: Facts):
        self.config, self.model, self.facts = config, model, facts

    @property
    def rates(self) -> dict[str, float]:
        """The factor of the learning rate of a part of the model, by the first name of its
        parameters' paths, where it is not 1."""
        return {}

    @staticmethod
    def outputs(config: ConfigDict, facts: Facts) -> int:
        """Width of the model's head. Raises UserError where the config asks for what cannot be."""
        return config.model.num_classes or facts.num_classes

    @staticmethod
    def activation(config: ConfigDict) -> str:
        """What makes predictions of the logits, a key of `vit_jax.models.model.ACTIVATIONS`. Raises
        UserError where the config names a loss that the task does not read."""
        if ":" in config.loss.name:
            raise UserError(
                f"loss.name={config.loss.name} is of task=classification; task={config.task} has a "
                "loss of its own"
            )
        return config.loss.name

    def open(self, classes: list[str], say: Callable[[str], object]) -> None:
        """Reads what the task needs before training (`held`). `say` takes lines for the user."""

    def entries(self, facts: Facts) -> Entries:
        """What batches of a source hold beside images, by what is known of the source."""
        return Entries()

    def prepared(self, batch: Batch, key: Array) -> Batch:
        """The whole batch of a step on the device, before it is split into microbatches: mixed,
        masked. `batch` holds `image` uint8 [B, H, W, C] and the task's entries."""
        return batch

    def loss(
        self, params: Any, batch: Batch, key: Array, *, gather: Any = None, held: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        """(mean loss of the batch, its named parts, which are logged as `loss/NAME`).

        `gather` is for `Model.apply`; `held` is the task's own, on the devices.
        """
        raise NotImplementedError

    def judge(self, gather: Any = None) -> dict[str, Callable[[Any, Batch], dict[str, Array]]]:
        """Functions of (params, batch) to be compiled, by the names that evaluators read: what
        evaluation says of each row, entry -> array [B, …]. `rows` is read where nothing else is."""
        raise NotImplementedError

    def picture(self, image: np.ndarray, row: dict[str, np.ndarray]) -> np.ndarray:
        """An augmented image, uint8 [H, W, 3], with what its row says of places in it."""
        return image

    def in_words(self, metrics: dict[str, float]) -> str:
        """The metrics of an evaluation in a line, less the number of examples."""
        return ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()
            if name not in ("examples", "damaged_images")
        )  # fmt: skip
