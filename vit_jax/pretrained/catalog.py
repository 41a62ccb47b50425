"""Published weights by name: their address, the model they fit, and the accuracy to expect.

A publisher's own names are used if there are any: timm's `ARCHITECTURE.TAG`, the Hub's
`OWNER/REPO`, PyTorch Hub's `dinov2_…`. Google's files are `paper/…`, `augreg/…`, `sam/…`,
`siglip/…`, `mixer/…`, `bit/…` and `big_vision/…`. `catalog.csv` has a row for each name. If no
sha256 is known, `download` keeps that of the first download and compares later ones with it.
"""

import csv
import dataclasses
import fnmatch
from collections.abc import Iterator
from importlib import resources

from vit_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Entry:
    """One set of published weights.

    Attributes:
      name: the argument of `find`.
      address: the argument of `download.fetch`.
      sha256: of the file, if its publisher states it.
      model: the architecture, by timm's name.
      num_classes: outputs of the head; 0 if there is no head.
      image_size: side in pixels of the images that it was trained on last.
      expected: the accuracy to expect, and who measured it; empty if that is not known.
      source: the paper or README that describes it.
    """

    name: str
    address: str
    sha256: str | None
    model: str
    num_classes: int
    image_size: int
    expected: str
    source: str


def _entries() -> Iterator[Entry]:
    text = resources.files("vit_jax.pretrained").joinpath("catalog.csv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines()):
        numbers = {name: int(row[name]) for name in ("num_classes", "image_size")}
        yield Entry(**row | numbers | {"sha256": row["sha256"] or None})  # type: ignore[arg-type]


CATALOG: dict[str, Entry] = {entry.name: entry for entry in _entries()}


def list_pretrained(pattern: str = "*") -> list[str]:
    """The names of published weights that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(CATALOG, pattern))


def find(name: str) -> Entry:
    """The entry with a name. Raises UserError, with the nearest names, if there is none."""
    if name not in CATALOG:
        raise UserError(f"unknown weights {name!r}: {nearest(name, CATALOG)}")
    return CATALOG[name]
