"""ImageNet as it is handed out, read in place: tars of tars of images, or folders of them.

A tar's headers are scanned once; an image is then read from where it lies in the tar, so nothing
is extracted and any order costs the same. The index takes about 50 bytes an image.
"""

import lzma
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vit_jax.data.formats import HEAD, format_of, named_as_image
from vit_jax.data.walking import images_below, left_out_as_named, told
from vit_jax.errors import UserError, nearest, printable
from vit_jax.files import MOST_BYTES, NotAFile, read_bytes
from vit_jax.preparing.reading import shown

SYNSET = re.compile(r"\bn\d{8}(?!\d)")
VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
# Lists of synsets that the package holds; a synset's place in its list is its label. 1k:
# ILSVRC2012. 21k: the fall 2011 release, numbered as in Google's weights. 21k-p: the classes with
# 500 images or more, numbered as in the weights of arXiv 2104.10972.
LABEL_MAPS = ("1k", "21k", "21k-p")
DEVKIT = "ILSVRC2012_devkit_t12"
MOST_TEXT = 2**26  # bytes of a list of synsets or a part of the development kit


class Found(NamedTuple):
    """An image: the file that holds it and where, or its folder (and -1); and its whole name."""

    place: Path
    offset: int
    size: int
    name: str


class Archive:
    """Images in tars and folders, by number: a `vit_jax.data.sources.Source`.

    Labels are -1 until `number` is told the classes, and stay so where a synset is none of them.
    """

    channels = 3
    notes: tuple[str, ...] = ()

    def __init__(self, root: Path, places: list[Path], synset_of: Callable = lambda _: None):
        self.root, self.left_out = root, Counter[str]()
        self.classes: list[str] = []
        self.labels = np.zeros(0, np.int32)
        self._places: list[Path] = []
        self._place, self._offset, self._size = array("l"), array("q"), array("q")
        self._names, self._ends = bytearray(), array("q")
        self._synset = array("i")
        seen: dict[str | None, int] = {}
        for place, offset, size, name in _scan(places, self.left_out):
            if not self._places or self._places[-1] != place:
                self._places.append(place)
            self._place.append(len(self._places) - 1)
            self._offset.append(offset)
            self._size.append(size)
            self._names += os.fsencode(name.rpartition("/")[2])
            self._ends.append(len(self._names))
            self._synset.append(seen.setdefault(synset_of(name) or synset_in(name), len(seen)))
        self.synsets: list[str | None] = list(seen)

    def number(self, classes: list[str]) -> tuple[str, ...]:
        """Sets `classes` and `labels`; returns what to say of images and classes without another.

        Raises UserError: no image is of any of the classes.
        """
        numbers: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        of_synset = np.asarray([numbers.get(name, -1) for name in self.synsets], np.int32)
        self.classes = classes
        self.labels = of_synset[np.asarray(self._synset)] if len(self) else self.labels
        counts = np.bincount(self.labels + 1, minlength=len(classes) + 1)
        if not counts[1:].any():
            raise UserError(
                f"{self.root} holds no images of the {len(classes):,} synsets "
                f"({len(self):,} images in all): they are found by the n######## in their names"
            )
        unknown = sorted(set(map(str, self.synsets)) - set(classes))
        notes = []
        if empty := int((counts[1:] == 0).sum()):
            notes.append(f"{empty:,} of the {len(classes):,} classes have no images")
        if counts[0]:
            notes.append(
                f"left out {counts[0]:,} images of {len(unknown):,} synsets that the label map "
                f"does not have ({', '.join(unknown[:3])}{' …' if unknown[3:] else ''})"
            )
        if self.left_out:
            notes.append(told(self.left_out))
        return tuple(f"{self.root}: {note}" for note in notes)

    def file_name(self, index: int) -> str:
        """What the image's file is called, such as `n01440764_10026.JPEG`."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._names[start : self._ends[index]]))

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, offset = self._places[self._place[index]], self._offset[index]
        if offset < 0:
            data = read_bytes(place / self.file_name(index))
        elif self._size[index] > MOST_BYTES:
            raise NotAFile(None, f"it claims {self._size[index]:,} bytes", str(place))
        else:
            handle = os.open(place, os.O_RDONLY)
            try:
                data = os.pread(handle, self._size[index], offset)
            finally:
                os.close(handle)
        return {"image": data, "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return str(self._places[self._place[index]] / self.file_name(index))


def synset_in(name: str) -> str | None:
    """The first n######## of a path: that of its folder or tar, else of the file."""
    match = SYNSET.search(name)
    return match and match[0]


def imagenet2012(root: Path, labels: str) -> dict[str, Archive]:
    """ILSVRC2012's `train` and `validation` as image-net.org hands them out.

    `ILSVRC2012_img_train.tar`, or n########.tar or n########/ in `train/` or in the root itself;
    `ILSVRC2012_img_val.tar` or `val/` with `ILSVRC2012_devkit_t12.tar.gz` (which says what each
    validation image shows), or `val/n########/`.

    Raises UserError: something of this is not there or not whole.
    """
    train = _first(root, "ILSVRC2012_img_train.tar", "train") or root
    val = _first(root, "ILSVRC2012_img_val.tar", "val", "validation")
    if val is None:
        raise UserError(f"{root} has neither ILSVRC2012_img_val.tar nor val/, the validation split")
    truth: list[str] = []

    def synset_of(name: str) -> str | None:
        number = VALIDATION.search(name)
        if number is None or synset_in(name):
            return None
        truth.extend([] if truth else _validation_synsets(root))
        if not 1 <= int(number[1]) <= len(truth):
            raise UserError(f"{name}: {DEVKIT} tells of {len(truth):,} validation images")
        return truth[int(number[1]) - 1]

    validation = Archive(val, [val], synset_of)  # the smaller first: what is missing shows
    splits = {"train": Archive(train, synset_places(train)), "validation": validation}
    return _numbered(splits, labels)


def imagenet21k(root: Path, labels: str) -> dict[str, Archive]:
    """ImageNet-21k's images as one split `train`: n########.tar or n########/, or a tar of those.

    Raises UserError: none of this is there, or a tar is not whole.
    """
    return _numbered({"train": Archive(root, synset_places(root))}, labels)


def _numbered(splits: dict[str, Archive], labels: str) -> dict[str, Archive]:
    classes = label_map(labels, splits["train"].synsets)
    for archive in splits.values():
        archive.notes = archive.number(classes)
    return splits


def label_map(name: str, synsets: Iterable[str | None] = ()) -> list[str]:
    """The classes of `1k`, `21k`, `21k-p`, of a file with one a line, or `found`: all of `synsets`.

    Raises UserError: no such map, or a file that is none.
    """
    if name in LABEL_MAPS:
        packed = resources.files("vit_jax.preparing").joinpath("synsets.txt.xz").read_bytes()
        lines = lzma.decompress(packed).decode().splitlines()
        steps = dict(zip(lines[::2], lines[1::2], strict=True))[name].split()
        return [f"n{number:08d}" for number in np.cumsum([int(step) for step in steps])]
    if name == "found":
        return sorted(synset for synset in synsets if synset)
    if not Path(name).is_file():
        options = nearest(name, [*LABEL_MAPS, "found"])
        raise UserError(f"--labels={name} is no file and no label map: {options}")
    try:
        lines = read_bytes(name, MOST_TEXT).decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"--labels={name} cannot be read: {error.strerror}") from error
    found = [line.split()[0] for line in lines if line.strip()]
    for synset, count in Counter(found or [""]).items():
        if count > 1 or not SYNSET.fullmatch(synset):
            what = "twice there" if count > 1 else "no synset such as n01440764"
            raise UserError(f"--labels={name}: {synset!r} is {what}; it has one a line")
    return found


def synset_places(root: Path) -> list[Path]:
    """What holds the images: the root where it is a tar, its n########.tar and n########/, or its
    other tars. Raises UserError: there is none."""
    if not root.is_dir():
        return [root]
    inside = sorted(root.iterdir())
    places = [path for path in inside if SYNSET.fullmatch(path.name.removesuffix(".tar"))]
    places = places or [path for path in inside if path.suffix == ".tar"]
    if not places:
        packed = [p.name for p in inside if p.suffix in (".gz", ".tgz") and DEVKIT not in p.name]
        raise UserError(
            f"{root} holds no n########.tar, no n########/ and no tar of those"
            + (f"; {packed[0]} is compressed: gunzip it" if packed else "")
        )
    return places


def _scan(places: list[Path], left_out: Counter[str]) -> Iterator[Found]:
    """The images of all places; other files are counted by ending."""
    for place in shown(places, len(places), "reading names"):
        yield from (_folder_images if place.is_dir() else _tar_images)(place, left_out)


def _folder_images(place: Path, left_out: Counter[str]) -> Iterator[Found]:
    images, others = images_below(place)
    left_out.update(others)
    for name in images:
        yield Found((place / name).parent, -1, -1, f"{place.name}/{name}")


def _tar_images(place: Path, left_out: Counter[str]) -> Iterator[Found]:
    if place.exists() and not place.is_file():
        raise UserError(f"{printable(place)} is a device or a pipe, not a tar")
    try:
        with open(place, "rb") as file:
            yield from _members(place, file, place.stem, left_out)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{printable(place)} is no whole, uncompressed tar ({printable(error)}): gunzip it, or "
            "fetch it again"
        ) from error


def _members(place: Path, file: IO[bytes], outer: str, left_out: Counter[str]) -> Iterator[Found]:
    """The images of the tar that begins where the file stands, and of the tars in it."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
            name = f"{outer}/{member.name}"
            if not member.isfile() or name.rpartition("/")[2].startswith("."):
                continue
            file.seek(member.offset_data)
            if name.endswith(".tar"):
                yield from _members(place, file, name, left_out)
            elif named_as_image(name) or format_of(file.read(min(HEAD, member.size))):
                yield Found(place, member.offset_data, member.size, name)
            else:
                left_out[left_out_as_named(name)] += 1
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # a tar ends in zeros
            raise tarfile.ReadError("its end is missing")


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _validation_synsets(root: Path) -> list[str]:
    """The synset of each validation image, in the order of their numbers, from the development
    kit: its truth gives ILSVRC2012_IDs, whose synsets stand in a MATLAB file."""
    from scipy.io import loadmat

    try:
        truth = _devkit(root, "ILSVRC2012_validation_ground_truth.txt").read().split()
        synsets = loadmat(_devkit(root, "meta.mat"), squeeze_me=True)["synsets"]
        synset_of = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
        return [synset_of[int(number)] for number in truth]
    except FileNotFoundError as error:
        raise UserError(
            f"{root} has no {DEVKIT}.tar.gz, which says what the validation images show "
            "(or give val/n########/)"
        ) from error
    except (tarfile.TarError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{root / DEVKIT}.tar.gz cannot be read ({error})") from error


def _devkit(root: Path, name: str) -> IO[bytes]:
    inside, packed = f"{DEVKIT}/data/{name}", root / f"{DEVKIT}.tar.gz"
    if (root / inside).exists():
        return BytesIO(read_bytes(root / inside, MOST_TEXT))
    if packed.exists() and not packed.is_file():
        raise NotAFile(None, "it is a device or a pipe, not a file", str(packed))
    with tarfile.open(packed) as tar:
        file = tar.extractfile(inside)
        return BytesIO(file.read(MOST_TEXT) if file else b"")
