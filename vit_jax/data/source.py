"""What every source of examples has."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

PADDING = -1  # label of an empty row, which fills up a batch
NO_LABEL = -2  # fills up the labels of an example that has fewer than others
MAX_LABELS = 64  # per example if several are possible and a library does not state how many
# What is wrong where a set with boxes is used for labels, or the other way round, and what works.
GIVES_BOXES = (
    "gives boxes and no labels: --config.task=detection; a set of tfds: or hf: that has labels as "
    "well gives them by ?label=NAME"
)
GIVES_LABELS = (
    "gives labels and no boxes, which detection needs: coco:FOLDER, voc:FOLDER, digit_scenes, or a "
    "set of tfds: or hf: whose objects have boxes (?objects=NAME)"
)


class Source:
    """Random access to the examples of one split.

    `names_hash` is a text that is the same for the same examples in the same order, wherever they
    lie, or None if the source does not know its examples' names. A run continues only with the same
    text.
    """

    title: str  # for messages
    classes: list[str]
    channels: int = 3
    max_labels: int = 1  # per example; more than 1 if an example may have several labels, or none
    max_objects: int = 0  # per example, with boxes (data/objects.py); 0 if the source has no boxes
    notes: tuple[str, ...] = ()  # lines for the user
    few: tuple[str, ...] = ()  # those of them that say that few examples are held out
    names_hash: str | None = None
    _data: Any  # has one entry for each example

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"image": bytes | uint8 [H, W, C], "label": int | list[int]}`, or `objects` in the place
        of `label` if the source has boxes."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """The example's name for a message: a path if there is one."""
        return f"{self.title} example {index}"


@dataclasses.dataclass(frozen=True)
class Facts:
    """The sizes of a split, whether or not its data is on this machine."""

    num_examples: int
    num_classes: int
    channels: int = 3
    max_labels: int = 1
    max_objects: int = 0

    @classmethod
    def of(cls, source: Source) -> "Facts":
        """The facts of an open source."""
        return cls(
            len(source), len(source.classes), source.channels, source.max_labels,
            source.max_objects,
        )  # fmt: skip


class Subset(Source):
    """Some examples of a source, by number."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self._data = source, indices
        self.classes, self.channels = source.classes, source.channels
        self.max_labels, self.max_objects = source.max_labels, source.max_objects
        self.notes = source.notes

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self._data[index])]

    def describe(self, index: int) -> str:
        return self.source.describe(int(self._data[index]))

    @classmethod
    def of_each_class(cls, source: Source, count: int) -> "Subset":
        """`count` examples of each class, or all if there are fewer, in a random order that is
        always the same. Reads examples until there are enough."""
        missing = np.full(len(source.classes), count)
        chosen = []
        for index in np.random.default_rng(0).permutation(len(source)):
            label = int(source[int(index)]["label"])
            if missing[label] > 0:
                missing[label] -= 1
                chosen.append(index)
                if not missing.any():
                    break
        return cls(source, np.array(chosen))


def class_order(names: Iterable[str]) -> list[str]:
    """The classes by name; in the order of numbers if all are numbers.

    >>> class_order({"10", "9"})
    ['9', '10']
    """
    found = set(names)
    numbers = all(name.isdecimal() for name in found)
    return sorted(found, key=(lambda name: (int(name), name)) if numbers else None)
