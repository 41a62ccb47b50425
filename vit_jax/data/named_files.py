"""Finds the files that a table names. Each folder is listed once, because asking a disk for a
million files one by one takes minutes."""

import os
from pathlib import Path

from vit_jax.data.formats import named_as_image
from vit_jax.data.walking import folders_in

MOST_FOLDERS = 50  # are looked through for images that are not where they should be


class NamedFiles:
    """The files below a folder, by the names that tables have for them."""

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, frozenset[str]] = {}  # of each folder
        self._of_stem: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> list[str]:
        """The files that a name may mean, relative to the root: the file itself, or images that
        have one more ending (`0a1b` for `0a1b.jpg`). If there is none, spaces around the name are
        left out, and backslashes are those of Windows."""
        folder, base = os.path.split(name)
        if base in self._listed(folder):
            return [name]
        for text in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
            folder, base = os.path.split(text)
            if base in self._listed(folder):
                return [text]
            if images := self._images(folder).get(base):
                return [os.path.join(folder, image) for image in sorted(images)]
            if base and os.path.exists(os.path.join(self.root, text)):  # hidden, or another case
                return [text]
        return []

    def elsewhere(self, name: str) -> str | None:
        """A folder in the root that has a file of this name."""
        inside = folders_in(self.root)[:MOST_FOLDERS]
        return next((each for each in inside if NamedFiles(self.root / each).find(name)), None)

    def _listed(self, folder: str) -> frozenset[str]:
        """The names of the files that lie directly in a folder."""
        if folder not in self._files:
            try:
                with os.scandir(os.path.join(self.root, folder)) as inside:
                    names = frozenset(entry.name for entry in inside if not entry.is_dir())
            except (OSError, ValueError):  # it is not there, or no name of a folder
                names = frozenset()
            self._files[folder] = names
        return self._files[folder]

    def _images(self, folder: str) -> dict[str, list[str]]:
        """The images that lie directly in a folder, by their names without ending."""
        if folder not in self._of_stem:
            of_stem = self._of_stem.setdefault(folder, {})
            for name in filter(named_as_image, self._listed(folder)):
                of_stem.setdefault(name.rpartition(".")[0], []).append(name)
        return self._of_stem[folder]
