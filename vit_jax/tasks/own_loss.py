"""A loss of the user's own, by its import path: `my_package.my_module:focal(gamma=2)`.

It is a function of logits and targets, both float32 [batch, classes], to the loss of each example,
[batch], written with jax.numpy. Targets are those of the built-in losses: one-hot, or 1 for each of
several labels, smoothed by `loss.label_smoothing` and mixed by mixup and CutMix. The attribute
`activation` of the function says what makes predictions of its logits: `softmax` (the default),
`sigmoid` or `none`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax import calls
from vit_jax.errors import UserError, printable
from vit_jax.models.model import ACTIVATIONS
from vit_jax.user_code import imported

TAKES = (
    "a loss takes logits and targets, both float32 [batch, classes], and returns the loss of each "
    "example, [batch]"
)
ROWS = 8  # examples that a loss is tried on


@dataclasses.dataclass(frozen=True)
class OwnLoss:
    """A function of the user's own with its further arguments. `name` is how the config has it."""

    name: str
    function: Callable
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def activation(self) -> str:
        """What makes predictions of the logits, a key of `ACTIVATIONS`. Raises UserError."""
        activation = getattr(self.function, "activation", "softmax")
        if activation not in ACTIVATIONS:
            raise UserError(
                f"loss {self.name}: its activation is one of {', '.join(ACTIVATIONS)}, not "
                f"{activation!r}"
            )
        return activation

    def __call__(
        self, logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
    ) -> Float[Array, " batch"]:
        return self._returned(logits, targets).astype(jnp.float32)

    def _returned(self, logits: Any, targets: Any) -> Any:
        return self.function(logits, targets, *self.arguments, **self.options)

    def check(self, num_classes: int) -> None:
        """Tries the loss on made-up logits, as the step will call it.

        Raises UserError: it fails, does not return a number for each example, or its values or
        gradients are NaN, infinite or 0 everywhere.
        """
        try:
            self._check_shape(num_classes)
            self._check_values(num_classes)
        except UserError:
            raise
        except Exception as error:  # the user's function may raise anything
            said = printable(str(error).strip().partition("\n")[0])[:300]
            numpy = "; write it with jax.numpy" if "__array__" in said else ""
            raise self._refused(f"raises {type(error).__name__}: {said}{numpy}") from error

    def _refused(self, what: str) -> UserError:
        return UserError(f"loss {self.name} {what}; {TAKES}")

    def _check_shape(self, num_classes: int) -> None:
        shape = (num_classes + ROWS, num_classes)  # more examples than classes, to tell them apart
        shown = jax.ShapeDtypeStruct(shape, jnp.float32)
        found = jax.eval_shape(self._returned, shown, shown)
        dtype = getattr(found, "dtype", None)
        if dtype is None:
            raise self._refused(f"returns a {type(found).__name__}")
        if found.shape != shape[:1] or not jnp.issubdtype(dtype, jnp.floating):
            raise self._refused(
                f"returns {dtype} {list(found.shape)} for logits {list(shape)}, not float32 "
                f"{list(shape[:1])}"
            )

    def _check_values(self, num_classes: int) -> None:
        rng = np.random.default_rng(0)
        one_hot = np.zeros((ROWS, num_classes), np.float32)
        one_hot[np.arange(ROWS), rng.integers(num_classes, size=ROWS)] = 1
        mixed = np.float32(0.7) * one_hot + np.float32(0.3) * np.roll(one_hot, 1, axis=0)
        normal = rng.standard_normal(one_hot.shape, np.float32)

        @jax.jit
        def tried(logits, targets):
            losses, pull = jax.vjp(lambda x: self(x, targets), logits)
            return losses, *pull(jnp.ones_like(losses))

        for targets, of in ((one_hot, "one-hot"), (mixed, "mixed")):
            for logits, where in ((0 * normal, "0, as a new head has them"), (normal, "about 1")):
                losses, gradient = jax.device_get(tried(logits, targets))
                for what, values in (("its loss", losses), ("its gradient", gradient)):
                    if not np.isfinite(values).all():
                        raise UserError(
                            f"loss {self.name} cannot train: {what} is NaN or infinite for logits "
                            f"of {where}, and {of} targets"
                        )
        if not gradient.any():
            raise UserError(
                f"loss {self.name} cannot train: its gradient by the logits is 0 everywhere"
            )


def own_loss(text: str) -> OwnLoss:
    """The loss that a config names by an import path. Raises UserError: there is no such function,
    it does not take the arguments, or the text cannot be read."""
    hint = "name one, as in my_package.my_module:focal or my_package.my_module:focal(gamma=2)"
    found = calls.made(text, {}, "loss", hint, own=functools.partial(_kind, text))
    if len(found) > 1:
        raise UserError(f"loss {text!r} names {len(found)} of them: {hint}")
    return found[0]


def _kind(text: str, path: str) -> Callable[..., OwnLoss]:
    function = imported(path, "a loss")
    if not callable(function) or isinstance(function, type):
        raise UserError(f"loss {path} is no function: {TAKES}")

    @functools.wraps(function)
    def made(*arguments: Any, **options: Any) -> OwnLoss:
        inspect.signature(function).bind(None, None, *arguments, **options)
        return OwnLoss(text, function, arguments, options)

    return made
