"""What every source of examples has."""

import dataclasses
from typing import Any, Protocol

import numpy as np

PADDING = -1  # label of a row that fills a batch up
NO_LABEL = -2  # fills the places of an example that has fewer labels than others


class Source(Protocol):
    """Random access to the examples of one split.

    A source that knows its examples' names has a `names_hash` too: a text that is the same for the
    same examples in the same order, wherever they lie. A run continues with the same text alone.
    """

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

    @classmethod
    def of(cls, source: Source) -> "Facts":
        """Those of a source that is here."""
        return cls(len(source), len(source.classes), source.channels, source.max_labels)


class Subset:
    """Some examples of a source, by number."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.classes, self.channels = source.classes, source.channels
        self.max_labels, self.notes = source.max_labels, source.notes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))

    @classmethod
    def of_each_class(cls, source: Source, count: int) -> "Subset":
        """`count` examples of each class, or as many as it has, in a random order that is always
        the same. Reads until there are enough."""
        left = np.full(len(source.classes), count)
        chosen = []
        for index in np.random.default_rng(0).permutation(len(source)):
            label = int(source[int(index)]["label"])
            if left[label] > 0:
                left[label] -= 1
                chosen.append(index)
                if not left.any():
                    break
        return cls(source, np.array(chosen))
