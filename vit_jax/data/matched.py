"""Classes of a data set, found among the outputs of weights that were trained on another one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.archives import LABEL_MAPS, SYNSET, label_map
from vit_jax.data.source import Source
from vit_jax.errors import UserError, nearest, printable


class Matched(Source):
    """A source whose labels are numbers of outputs.

    Args:
      source: the data set.
      outputs: the output of each of its classes.
      names: of all outputs.
    """

    def __init__(self, source: Source, outputs: Sequence[int], names: list[str]):
        self.source, self.outputs, self.classes = source, np.array(outputs), names
        self.title, self._data = getattr(source, "title", ""), range(len(source))
        self.channels, self.max_labels = source.channels, source.max_labels
        self.max_objects, self.notes, self.names_hash = source.max_objects, source.notes, None

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        if (objects := example.get("objects")) is not None:
            return example | {
                "objects": dataclasses.replace(objects, classes=self.outputs[objects.classes])
            }
        label = example["label"]
        if isinstance(label, list):
            return example | {"label": self.outputs[np.array(label, int)].tolist()}
        return example | {"label": int(self.outputs[label])}

    def describe(self, index: int) -> str:
        return self.source.describe(index)


def match(classes: Sequence[str], outputs: Sequence[str]) -> tuple[list[int], str]:
    """The output of each class of a data set, and by what it was found.

    By `name`: letters' case and underscores do not matter, and an output may have several names,
    as `tabby, tabby cat`. By `synset`: the classes are synsets of ImageNet, and there are as many
    outputs as one of its lists has. By `number`: the classes are numbers of outputs. By `order`:
    there are as many classes as outputs, which have no names.

    Args:
      classes: of the data set.
      outputs: names of the weights' outputs; their numbers where they have no names.

    Raises UserError: none of these finds all classes.
    """
    unnamed = list(outputs) == [str(number) for number in range(len(outputs))]
    if not unnamed and (found := _by_name(classes, outputs)):
        return found, "name"
    if all(map(SYNSET.fullmatch, classes)):
        for synsets in map(label_map, LABEL_MAPS):
            if len(synsets) == len(outputs) and set(classes) <= set(synsets):
                return [synsets.index(name) for name in classes], "synset"
    if all(name.isascii() and name.isdecimal() for name in classes):
        numbers = [int(name) for name in classes]
        if max(numbers) < len(outputs):
            return numbers, "number"
    if unnamed and len(classes) == len(outputs):
        return list(range(len(outputs))), "order"
    known = {_plain(part) for name in outputs for part in name.split(",")}
    lost = [name for name in classes if _plain(name) not in known]
    example = lost[0] if lost else classes[0]
    hint = "they have no names" if unnamed else nearest(_plain(example), sorted(known))
    raise UserError(
        f"{len(lost) or len(classes)} of {len(classes)} classes of the data are none of the "
        f"weights' {len(outputs):,} outputs, such as {printable(example)}; {hint}"
    )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _by_name(classes: Sequence[str], outputs: Sequence[str]) -> list[int] | None:
    whole = {_plain(name): number for number, name in enumerate(outputs)}
    parts = {
        _plain(part): number for number, name in enumerate(outputs) for part in name.split(",")
    }
    known = parts | whole
    found = [known.get(_plain(name)) for name in classes]
    numbers = [number for number in found if number is not None]
    return numbers if len(numbers) == len(set(numbers)) == len(classes) else None
