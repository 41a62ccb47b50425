"""ImageNet as its authors hand it out, read in place: tars of images, tars of tars, or folders.

The headers of a tar are read once. After that an image is read where it lies in the tar, so nothing
is extracted and any order costs the same. The index takes about 60 bytes per image.
"""

import csv
import functools
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
from typing import IO, Any

import numpy as np

from vit_jax.data.files import Names
from vit_jax.data.formats import HEAD, format_of, named_as_image
from vit_jax.data.layout import kaggle_images
from vit_jax.data.source import Source
from vit_jax.data.splits import NoSplit, choose, name_hashes
from vit_jax.data.walking import images_below, left_out_as_named, left_out_text, with_progress
from vit_jax.errors import UserError, nearest, printable
from vit_jax.files import MOST_BYTES, NotAFile, read_bytes

SYNSET = re.compile(r"\bn\d{8}(?!\d)")
VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
# Lists of synsets that come with the package. The position of a synset in its list is its label.
# 1k: ILSVRC2012. 21k: the release of fall 2011, numbered as in Google's weights. 21k-p: the classes
# with at least 500 images, numbered as in the weights of arXiv 2104.10972.
LABEL_MAPS = ("1k", "21k", "21k-p")
# Each release: its splits, and its own label map.
RELEASES = {
    "imagenet2012": (("train", "validation"), "1k"),
    "imagenet21k": (("train", "val"), "21k"),
}
DEVKIT = "ILSVRC2012_devkit_t12"
KAGGLE = "LOC_val_solution.csv"  # what Kaggle gives instead of the development kit
HELD_OUT = 102_400  # images of ImageNet-21k in `val`; one in a hundred if that is fewer
MOST_TEXT = 2**26  # bytes of a list of synsets, or of a file of the development kit


# Where an image lies: a tar, offset and size; or a folder, -1 and -1. And its whole name.
Image = tuple[Path, int, int, str]


class Index:
    """The images of several tars and folders, by number. `table` [images, 4] holds the numbers of
    an image's place and synset, and its offset and size. Other files are counted by their endings.
    """

    def __init__(self, root: Path, places: list[Path], synset_of: Callable[[str], str | None]):
        self.root, self.left_out, self.names = root, Counter[str](), Names()
        inside, synsets = dict[Path, int](), dict[str | None, int]()
        table = array("q")
        for place in with_progress(places, len(places), "reading names"):
            images = _folder_images if place.is_dir() else _tar_images
            for where, offset, size, name in images(place, self.left_out):
                synset = synsets.setdefault(synset_of(name), len(synsets))
                table.extend((inside.setdefault(where, len(inside)), synset, offset, size))
                self.names.extend([name.rpartition("/")[2]])
        self.places, self.synsets = list(inside), list(synsets)
        self.table = np.asarray(table).reshape(-1, 4)

    def path(self, number: int) -> Path:
        """The image's own path, or its tar's path followed by its name."""
        return self.places[self.table[number, 0]] / self.names[number]

    def read(self, number: int) -> bytes:
        """The encoded image. Raises OSError."""
        place, _, offset, size = self.table[number].tolist()
        if offset < 0:
            return read_bytes(self.path(number))
        if size > MOST_BYTES:
            raise NotAFile(None, f"it claims {size:,} bytes", str(self.places[place]))
        handle = os.open(self.places[place], os.O_RDONLY)
        try:
            return os.pread(handle, size, offset)
        finally:
            os.close(handle)


class Archive(Source):
    """`imagenet2012:FOLDER` or `imagenet21k:FOLDER`: one split of what image-net.org hands out.

    Args:
      labels: a label map (see `label_map`); images of other synsets are left out.
      val: images of ImageNet-21k to hold out as `val`, chosen by a hash of their names.
    """

    def __init__(
        self, kind: str, rest: str, split: str, classes: list[str] | None, *,
        labels: str | None = None, val: int | None = None,
    ):  # fmt: skip
        root, (splits, own_labels) = Path(rest).expanduser(), RELEASES[kind]
        if not rest or not root.is_dir():
            raise UserError(
                f"{kind}:{printable(rest)}: there is no folder {printable(root)}; it should hold "
                "the tars of ImageNet"
            )
        split = choose(f"{kind}:{printable(rest)}", split, splits, not classes)
        places = [root, *_inside(root), *_inside(kaggle_images(root) or root)]
        changed = tuple((path.name, path.stat().st_mtime_ns) for path in places)
        indexes = _indexes(kind, root, changed)
        index = self._index = indexes.get(split, indexes["train"])
        self.classes = classes or label_map(labels or own_labels, indexes["train"].synsets)
        numbers = dict[str | None, int](zip(self.classes, range(len(self.classes)), strict=True))
        of_synset = np.array([numbers.get(name, -1) for name in index.synsets], np.int32)
        self._labels = of_synset[index.table[:, 1]]
        self.notes = self._check()
        self._data = np.flatnonzero(self._labels >= 0)
        if "val" in splits:
            self._data = self._without_held_out(split == "val", val)
        self.names_hash = f"{index.names.hash(self._labels)} {split} {len(self)}"

    def _check(self) -> tuple[str, ...]:
        """Notes on empty classes and on what is left out. Raises UserError if nothing is left."""
        index, counts = self._index, np.bincount(self._labels + 1, minlength=len(self.classes) + 1)
        if not counts[1:].any():
            raise UserError(
                f"{index.root} holds no images of the {len(self.classes):,} synsets "
                f"({len(index.names):,} images in all): they are found by the n######## in their "
                "names"
            )
        unknown = sorted(set(map(str, index.synsets)) - set(self.classes))
        notes = []
        if empty := int((counts[1:] == 0).sum()):
            notes.append(f"{empty:,} of the {len(self.classes):,} classes have no images")
        if counts[0]:
            notes.append(
                f"left out {counts[0]:,} images of {len(unknown):,} synsets that the label map "
                f"does not have ({', '.join(unknown[:3])}{' …' if unknown[3:] else ''})"
            )
        if index.left_out:
            notes.append(left_out_text(index.left_out))
        return tuple(f"{index.root}: {note}" for note in notes)

    def _without_held_out(self, val: bool, count: int | None) -> np.ndarray:
        """The images of `val`, or all others. The choice depends on the file names alone."""
        total = len(self._data)
        count = min(HELD_OUT, max(1, total // 100)) if count is None else count
        if count < 0:
            raise UserError(f"--val={count} must be 0 or more")
        if count >= total:
            raise UserError(f"--val={count} leaves nothing of {total:,} images to train on")
        if val and not count:
            raise NoSplit(f"{self._index.root}: no images are held out as 'val' (--val=0)")
        chosen = np.argsort(name_hashes(map(self.name, range(total)), total, "val"))[:count]
        return self._data[chosen] if val else np.delete(self._data, chosen)

    def name(self, index: int) -> str:
        """The name of the image's file, such as `n01440764_10026.JPEG`."""
        return self._index.names[self._data[index]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self._data[index])
        return {"image": self._index.read(number), "label": int(self._labels[number])}

    def describe(self, index: int) -> str:
        return printable(self._index.path(self._data[index]))


@functools.lru_cache(maxsize=1)
def _indexes(kind: str, root: Path, changed: object) -> dict[str, Index]:
    """The indexes of the splits of a folder. All splits of a folder share one scan, until something
    in the folder has changed.

    ImageNet-21k has no split of its own: n########.tar or n########/, or a tar of those. ILSVRC2012
    has `ILSVRC2012_img_train.tar`, or n########.tar or n########/ in `train/` or in the root;
    `ILSVRC2012_img_val.tar` or `val/` with `ILSVRC2012_devkit_t12.tar.gz` (which states the class
    of each validation image), or `val/n########/`. Kaggle has `train/n########/` and `val/` in
    `ILSVRC/Data/CLS-LOC`, and the classes of `val/` in `LOC_val_solution.csv`.

    Raises UserError: a part is missing or damaged.
    """
    if kind == "imagenet21k":
        return {"train": Index(root, synset_places(root), synset_in)}
    images = kaggle_images(root) or root
    train = _first(images, "ILSVRC2012_img_train.tar", "train") or root
    val = _first(images, "ILSVRC2012_img_val.tar", "val", "validation")
    if val is None:
        raise UserError(
            f"{images} has neither ILSVRC2012_img_val.tar nor val/, the validation split"
        )
    truth: dict[int, str] = {}

    def synset_of(name: str) -> str | None:
        number = VALIDATION.search(name)
        if number is None or synset_in(name):
            return synset_in(name)
        truth.update({} if truth else _validation_synsets(root))
        if int(number[1]) not in truth:
            raise UserError(
                f"{printable(name)}: its class is not stated: {DEVKIT} or {KAGGLE} tells of "
                f"{len(truth):,} validation images"
            )
        return truth[int(number[1])]

    # The smaller one first, so that a missing part is noticed early.
    validation = Index(val, [val], synset_of)
    return {"train": Index(train, synset_places(train), synset_in), "validation": validation}


def synset_in(name: str) -> str | None:
    """The first n######## of a path: that of the folder or tar if it has one, else of the file."""
    match = SYNSET.search(name)
    return match and match[0]


def label_map(name: str, synsets: Iterable[str | None] = ()) -> list[str]:
    """The classes of `1k`, `21k`, `21k-p`, of a file with one synset per line, or `found`: all of
    `synsets`.

    Raises UserError: there is no such map, or the file is not a list of synsets.
    """
    if name in LABEL_MAPS:
        packed = resources.files("vit_jax.data").joinpath("synsets.txt.xz").read_bytes()
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
    listed = [line.split()[0] for line in lines if line.strip()]
    for synset, count in Counter(listed or [""]).items():
        if count > 1 or not SYNSET.fullmatch(synset):
            problem = "twice there" if count > 1 else "no synset such as n01440764"
            raise UserError(f"--labels={name}: {synset!r} is {problem}; write one synset per line")
    return listed


def synset_places(root: Path) -> list[Path]:
    """The tars and folders that hold the images: the root if it is a tar; else its n########.tar
    and n########/; else its other tars. Raises UserError: there are none."""
    if not root.is_dir():
        return [root]
    inside = _inside(root)
    places = [path for path in inside if SYNSET.fullmatch(path.name.removesuffix(".tar"))]
    places = places or [path for path in inside if path.suffix == ".tar"]
    if not places:
        packed = [p.name for p in inside if p.suffix in (".gz", ".tgz") and DEVKIT not in p.name]
        raise UserError(
            f"{root} holds no n########.tar, no n########/ and no tar of those"
            + (f"; {packed[0]} is compressed: gunzip it" if packed else "")
        )
    return places


def _inside(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.exists())


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _folder_images(place: Path, left_out: Counter[str]) -> Iterator[Image]:
    images, others = images_below(place)
    left_out.update(others)
    for name in images:
        yield (place / name).parent, -1, -1, f"{place.name}/{name}"


def _tar_images(place: Path, left_out: Counter[str]) -> Iterator[Image]:
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


def _members(place: Path, file: IO[bytes], outer: str, left_out: Counter[str]) -> Iterator[Image]:
    """The images of the tar that begins at the file's position, and of the tars inside it."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            name = f"{outer}/{member.name}"
            if not member.isfile() or name.rpartition("/")[2].startswith("."):
                continue
            file.seek(member.offset_data)
            if name.endswith(".tar"):
                yield from _members(place, file, name, left_out)
            elif named_as_image(name) or format_of(file.read(min(HEAD, member.size))):
                yield place, member.offset_data, member.size, name
            else:
                left_out[left_out_as_named(name)] += 1
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # a whole tar ends in zeros
            raise tarfile.ReadError("its end is missing")


def _validation_synsets(root: Path) -> dict[int, str]:
    """The synset of each validation image by its number. The development kit lists an
    ILSVRC2012_ID for each image; a MATLAB file gives the synset of each ID. Kaggle's table, which
    may lie above the images, names the synset before each box."""
    from scipy.io import loadmat

    try:
        truth = _devkit(root, "ILSVRC2012_validation_ground_truth.txt").read().split()
        synsets = loadmat(_devkit(root, "meta.mat"), squeeze_me=True)["synsets"]
        synset_of = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
        return {place: synset_of[int(number)] for place, number in enumerate(truth, 1)}
    except FileNotFoundError as error:
        above = root.absolute().parents[:3] if kaggle_images(root) else ()
        tables = [folder / KAGGLE for folder in (root, *above) if (folder / KAGGLE).is_file()]
        if tables:
            return _kaggle_synsets(tables[0])
        raise UserError(
            f"{root} has no {DEVKIT}.tar.gz and no {KAGGLE}: either says what the validation "
            "images show (or give val/n########/)"
        ) from error
    except (tarfile.TarError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{root / DEVKIT}.tar.gz cannot be read ({error})") from error


def _kaggle_synsets(file: Path) -> dict[int, str]:
    """The synset of each validation image by its number: lines such as
    `ILSVRC2012_val_00048981,n03995372 85 1 499 272`.

    Raises UserError: a line is another one.
    """
    synsets: dict[int, str] = {}
    try:
        lines = read_bytes(file, MOST_TEXT).decode().splitlines()
        for number, cells in enumerate(csv.reader(lines), 1):
            image = VALIDATION.search(cells[0]) if len(cells) == 2 else None
            synset = synset_in(cells[1]) if image else None
            if not cells or (number == 1 and image is None):  # the names of the columns
                continue
            if image is None or synset is None:
                raise UserError(
                    f"{printable(file)}, line {number} is not ILSVRC2012_val_########,n######## …"
                )
            synsets[int(image[1])] = synset
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{printable(file)} cannot be read ({error})") from error
    return synsets


def _devkit(root: Path, name: str) -> IO[bytes]:
    """A file of the development kit, which may be unpacked."""
    inside, packed = f"{DEVKIT}/data/{name}", root / f"{DEVKIT}.tar.gz"
    if (root / inside).exists():
        return BytesIO(read_bytes(root / inside, MOST_TEXT))
    if packed.exists() and not packed.is_file():
        raise NotAFile(None, "it is a device or a pipe, not a file", str(packed))
    with tarfile.open(packed) as tar:
        file = tar.extractfile(inside)
        return BytesIO(file.read(MOST_TEXT) if file else b"")
