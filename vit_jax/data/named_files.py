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
        self._folders: dict[str, tuple[set[str], dict[str, list[str]]]] = {}

    def find(self, name: str) -> list[str]:
        """The files that a name may mean, relative to the root: the file itself, or images that
        have one more ending (`0a1b` for `0a1b.jpg`). Spaces around it and backslashes are taken as
        they are, or else as a table's own."""
        for text in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
            folder, base = os.path.split(text)
            files, of_stem = self._listed(folder)
            if base in files:
                return [text]
            if base in of_stem:
                return [os.path.join(folder, file) for file in sorted(of_stem[base])]
            if base and os.path.exists(os.path.join(self.root, text)):  # hidden, or another case
                return [text]
        return []

    def elsewhere(self, name: str) -> str | None:
        """A folder in the root that has a file of this name."""
        inside = folders_in(self.root)[:MOST_FOLDERS]
        return next((each for each in inside if NamedFiles(self.root / each).find(name)), None)

    def _listed(self, folder: str) -> tuple[set[str], dict[str, list[str]]]:
        """The files that lie directly in a folder, and its images by their names without ending."""
        if folder not in self._folders:
            files, of_stem = set[str](), dict[str, list[str]]()
            try:
                with os.scandir(os.path.join(self.root, folder)) as inside:
                    for entry in inside:
                        if named_as_image(entry.name):
                            of_stem.setdefault(entry.name.rpartition(".")[0], []).append(entry.name)
                        elif entry.is_dir():
                            continue
                        files.add(entry.name)
            except (OSError, ValueError):  # it is not there, or no name of a folder
                pass
            self._folders[folder] = files, of_stem
        return self._folders[folder]
