"""What every source of examples has."""

import dataclasses
from typing import Any, Protocol

from vit_jax.errors import UserError

PADDING = -1  # label of a row that fills a batch up
NO_LABEL = -2  # fills the places of an example that has fewer labels than others


class NoSplit(UserError):
    """The source is there, and has no such split."""


class Source(Protocol):
    """Random access to the examples of one split."""

    classes: list[str]
    channels: int
    max_labels: int  # of an example: 1, or more where it may have several (or none)
    notes: tuple[str, ...]  # what the user should hear of

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"image": bytes | uint8 [H, W, C], "label": int | list[int]}`."""

    def describe(self, index: int) -> str:
        """The example's name for a message: a path where there is one."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a split, whether or not its data is here."""

    num_examples: int
    num_classes: int
    channels: int = 3
    max_labels: int = 1


def known_split(what: str, split: str, splits: tuple[str, ...] = ("train", "val")) -> None:
    """Raises NoSplit where a split is none of those there are."""
    if split not in splits:
        raise NoSplit(f"{what} has no split {split!r}: it has {', '.join(splits)}")
