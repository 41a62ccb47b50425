"""Published weights by name: where they are, which model they fit, what they should reach.

Names are those of the publisher where it has names: timm's `ARCHITECTURE.TAG`, the Hub's
`OWNER/REPO`, PyTorch Hub's `dinov2_…`. Google's files are `paper/…`, `augreg/…`, `sam/…`,
`siglip/…`, `mixer/…`, `bit/…` and `big_vision/…`. They stand in `catalog.csv`, a row each. Where no
sha256 is known, `download` pins that of the first download.
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
      name: as `find` takes it.
      address: as `download.fetch` takes it.
      sha256: of the file, where its publisher tells it.
      model: the architecture, in timm's naming.
      num_classes: outputs of its head; 0 without one.
      image_size: pixels a side of the images that it was trained on last.
      expected: what it should reach, and who measured that; empty where that is not known.
      source: the paper or README that it comes from.
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
    """Names that match the shell pattern, sorted."""
    return sorted(fnmatch.filter(CATALOG, pattern))


def find(name: str) -> Entry:
    """The entry of that name.

    Raises UserError: there is none; the nearest names are shown.
    """
    if name not in CATALOG:
        raise UserError(f"unknown weights {name!r}: {nearest(name, CATALOG)}")
    return CATALOG[name]
