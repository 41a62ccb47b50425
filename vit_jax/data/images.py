"""The images that a user names, for all that shows images to a model.

| a name | means |
|---|---|
| `cat.jpg`, `photos/` | a file; every image in a folder, at any depth |
| `'photos/*.jpg'`, `'photos/**/*.jpg'` | what matches, as if the shell had expanded it |
| `@list.txt` | the names in a file, one on each line, by these rules |
| `https://…`, `http://…`, `gs://…`, `file://…` | what is there, up to `MOST_BYTES` |
| `stack.tif[2]` | one image of a file that holds several, counted from 0 |

A file that holds several images (`stacks.py`) stands for all of them, `stack.tif[0]` and so on.
A name that exists is taken as it is, whatever characters it has. From Python, an image may also be
an array or an image of Pillow.
"""

import dataclasses
import functools
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from vit_jax.data.formats import NAMES
from vit_jax.data.levels import DamagedImage
from vit_jax.data.stacks import images_in
from vit_jax.data.walking import images_below, left_out_text
from vit_jax.errors import UserError, printable
from vit_jax.files import MOST_BYTES, read_bytes

T = TypeVar("T")
Stored = bytes | np.ndarray  # of an encoded file, or values [height, width, channels]

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.S)
_PAGE = re.compile(r"(.+)\[(\d{1,6})\]", re.S)
_WILD = re.compile(r"[*?[]")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image by the name that messages and tables have for it. `read` gives what is stored; it
    raises OSError and DamagedImage. `page` is its number among those of its file; None: the file is
    not opened yet, or holds no other."""

    name: str
    read: Callable[[], Stored]
    page: int | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def file(self) -> str:
        """The last part of the name."""
        return Path(self.name).name

    @property
    def stem(self) -> str:
        """That part without its ending."""
        return Path(self.name).stem

    @property
    def number(self) -> int | None:
        """The number that the file is named by, as in COCO's sets; None if there is none."""
        return int(self.stem) if self.stem.isdecimal() and self.page is None else None


def images_named(given: Any) -> tuple[list[Image], list[str]]:
    """The images, in the order of their names, and a line on what each folder leaves out.

    Args:
      given: names, arrays uint8 [height, width, channels] and images of Pillow, or one name.

    Raises UserError: a name that is nothing, a pattern that nothing matches, a list that cannot be
    read, or no image at all.
    """
    given = [given] if isinstance(given, str | os.PathLike) else list(given)
    found, notes = list[Image](), list[str]()
    for one in given:
        if isinstance(one, str | os.PathLike):
            found += _by_name(os.fspath(one), notes)
        else:
            found.append(_of_values(one))
    if given and not found:
        why = "; ".join(notes) or f"{NAMES} are read"
        raise UserError(f"no images in {', '.join(printable(one) for one in given)}: {why}")
    return found, notes


def readable(
    images: Sequence[Image],
    prepared: Callable[[Stored], T],
    damaged: Callable[[str, Exception], None],
) -> Iterator[tuple[Image, T]]:
    """Each image, with all those of a file that holds several, and what `prepared` makes of it.
    `damaged` is called with the name of one that cannot be read, and the reason.

    Raises UserError: an image that the model cannot be shown; or the only one cannot be read.
    """
    for image in images:
        try:
            parts = _parts(image)
        except (DamagedImage, OSError) as error:
            (refuse if len(images) == 1 else damaged)(image.name, error)
            continue
        for part in parts:
            try:
                found = prepared(part.read())
            except (DamagedImage, OSError) as error:
                (refuse if len(images) == len(parts) == 1 else damaged)(part.name, error)
            except UserError as error:
                raise UserError(f"{printable(part.name)}: {error}") from error
            else:
                yield part, found


def refuse(name: str, error: Exception) -> NoReturn:
    """Raises the UserError for an image that cannot be read."""
    # What an OSError says of itself begins with a number and ends with the name.
    reason = getattr(error, "strerror", None) or str(error)
    is_list = name.endswith(".txt") and os.path.isfile(name)
    hint = f"; if it is a list of names, write @{name}" if is_list else ""
    raise UserError(f"{printable(name)} cannot be read: {printable(reason)}{hint}") from error


def _parts(image: Image) -> list[Image]:
    """The images of a file, or the one that is wanted."""
    data = image.read()
    if not isinstance(data, bytes):
        return [image]
    inside = images_in(data)
    if image.page is not None and image.page >= len(inside):
        images = "1 image" if len(inside) == 1 else f"{len(inside)} images, from 0 on"
        raise DamagedImage(f"the file holds {images}")
    if image.page is not None:
        return [dataclasses.replace(image, read=inside[image.page])]
    if len(inside) == 1:
        return [dataclasses.replace(image, read=inside[0])]
    return [Image(f"{image.name}[{page}]", read, page) for page, read in enumerate(inside)]


def _of_values(image: Any) -> Image:
    """An array, or an image of Pillow."""
    from vit_jax.data.decode import as_given

    stored = as_given(image)
    return Image("an image", lambda: stored)


def _by_name(name: str, notes: list[str]) -> list[Image]:
    """The images that a name stands for. What folders leave out becomes a line of `notes`."""
    name = os.path.expanduser(name)
    if name.startswith("@") and not os.path.lexists(name):
        return _of_list(Path(os.path.expanduser(name[1:])), notes)
    return _plain(name, notes)


def _plain(name: str, notes: list[str]) -> list[Image]:
    """The images of a name that is no list."""
    if address := _ADDRESS.fullmatch(name):
        return _at(name, address[1].lower(), address[2], notes)
    if "\0" in name or not name:
        raise UserError(f"{printable(name) or 'an empty name'}: no such file or folder")
    if os.path.isdir(name):
        return _below(name, notes)
    if os.path.isfile(name):
        return [Image(name, functools.partial(read_bytes, name))]
    if os.path.exists(name):
        raise UserError(f"{printable(name)} is a device or a pipe, not a file")
    if (page := _PAGE.fullmatch(name)) and os.path.isfile(page[1]):
        return [Image(name, functools.partial(read_bytes, page[1]), int(page[2]))]
    if _WILD.search(name) and not os.path.lexists(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{printable(name)}: no file or folder matches")
        return [image for match in matches for image in _plain(match, notes)]
    raise UserError(f"{printable(name)}: no such file or folder")


def _below(folder: str, notes: list[str]) -> list[Image]:
    images, left_out = images_below(folder)
    inside = [os.path.join(folder, name) for name in images]
    regular = [file for file in inside if os.path.isfile(file)]
    left_out["pipe, device or broken link"] += len(inside) - len(regular)
    if left_out := +left_out:
        notes.append(f"{printable(folder)}: {left_out_text(left_out)}")
    return [Image(file, functools.partial(read_bytes, file)) for file in regular]


def _at(name: str, scheme: str, rest: str, notes: list[str]) -> list[Image]:
    """What is at an address."""
    if scheme == "file":
        from urllib.parse import unquote

        return _plain(unquote(rest), notes)
    from vit_jax.addresses import OPENERS

    if scheme not in OPENERS:
        known = ", ".join(f"{one}://" for one in (*OPENERS, "file"))
        raise UserError(f"{printable(name)}: images are read from {known} and plain paths")
    page = _PAGE.fullmatch(rest)
    url = f"{scheme}://{page[1] if page else rest}"
    return [Image(name, functools.partial(_fetched, url), int(page[2]) if page else None)]


def _fetched(url: str) -> bytes:
    """The bytes at an address. Raises DamagedImage with the reason, without the address."""
    from vit_jax.addresses import content

    try:
        if not url.isprintable():
            raise UserError("write unprintable characters as %XX")
        return content(url, MOST_BYTES)
    except UserError as error:
        raise DamagedImage(str(error).removeprefix(f"{url}: ")) from error


def _of_list(file: Path, notes: list[str]) -> list[Image]:
    """The images that the lines of a file name. Lists do not name other lists."""
    try:
        lines = read_bytes(file).removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the list {printable(file)} cannot be read: {reason}") from error
    found = list[Image]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found += _plain(os.path.expanduser(os.fsdecode(line)), notes)
            except UserError as error:
                raise UserError(f"{printable(file)}, line {number}: {error}") from error
    if not found:
        raise UserError(f"the list {printable(file)} names no images")
    return found
