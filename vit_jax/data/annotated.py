"""Images with boxes in files: COCO's JSON (`coco:FOLDER`) and Pascal VOC's XML (`voc:FOLDER`)."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vit_jax.data.box_formats import Annotation, Survey, numbers_of, objects_of
from vit_jax.data.source import Source
from vit_jax.data.splits import choose
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes
from vit_jax.records import is_number, object_in, reason

MOST_JSON = 2**31  # bytes of COCO's annotations; those of 2017's training split have 448 MB
MOST_XML = 2**24
TRIED = 100  # images by which their folder is found
YEAR = re.compile(r"(instances_)?(?P<split>.+?)(_?(19|20)\d\d)?")


class Annotated(Source):
    """Image files with their objects, by number."""

    def __init__(
        self, title: str, root: Path, annotations: Iterable[Annotation], classes: list[str],
        survey: Survey,
    ):  # fmt: skip
        self.title, self.root, self.classes = title, root, classes
        self._data = [survey.add(one) for one in annotations]
        if not self._data:
            raise UserError(f"{title}: the split has no images")
        for one in self._data:  # annotations may come from anywhere
            if Path(one.name).is_absolute() or ".." in Path(one.name).parts:
                raise UserError(
                    f"{title}: the image {printable(one.name)} lies outside of the folder: names "
                    "are relative to it"
                )
        missing = [one.name for one in self._data if not (root / one.name).is_file()]
        if len(missing) == len(self._data):
            raise UserError(
                f"{title}: none of the annotated images is in {printable(root)}, such as "
                f"{printable(missing[0])}"
            )
        if missing:
            raise UserError(
                f"{title}: {len(missing):,} annotated images are not in {printable(root)}, such as "
                f"{printable(missing[0])}: put them there, or take their annotations out"
            )
        self.notes = survey.finish()
        self.max_objects, self.names_hash = survey.most, survey.digest

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = self._data[index]
        return {"image": read_bytes(self.root / one.name), "objects": objects_of(one)}

    def describe(self, index: int) -> str:
        return printable(str(self.root / self._data[index].name))


def _folder(kind: str, rest: str) -> Path:
    root = Path(rest).expanduser()
    if not rest:
        raise UserError(f"{kind} needs the folder of its images and annotations: {kind}:FOLDER")
    if not root.is_dir():
        raise UserError(f"{kind}:{printable(rest)} is no folder")
    return root


# -- COCO ----------------------------------------------------------------------------------------


def _coco_files(root: Path) -> dict[str, Path]:
    """split -> file of annotations: annotations/instances_train2017.json, train.json, or
    train/_annotations.coco.json."""
    files = [*root.glob("annotations/*.json"), *root.glob("*.json")]
    others = ("captions_", "person_keypoints_", "image_info_")
    named: dict[str, list[Path]] = {}
    for file in sorted(file for file in files if not file.stem.startswith(others)):
        if match := YEAR.fullmatch(file.stem):
            named.setdefault(match["split"], []).append(file)
    found: dict[str, Path] = {}
    for split, same in named.items():  # train2014 and train2017: each by its whole name
        found |= (
            {split: same[0]} if len(same) == 1
            else {file.stem.removeprefix("instances_"): file for file in same}
        )  # fmt: skip
    for file in sorted(root.glob("*/_annotations.coco.json")):
        found.setdefault(file.parent.name, file)
    return found


def coco_splits(rest: str) -> list[str]:
    """The splits that a folder has annotations of."""
    return list(_coco_files(_folder("coco", rest)))


def coco(rest: str, split: str, classes: list[str] | None) -> Annotated:
    """`FOLDER/annotations/instances_train2017.json` and `FOLDER/train2017/*`, and like layouts."""
    root, title = _folder("coco", rest), f"coco:{printable(rest)}"
    files = _coco_files(root)
    if not files:
        raise UserError(f"{title} has no annotations, such as annotations/instances_train2017.json")
    file = files[choose(title, split, files, classes is None)]
    with _as_cocos(file):
        names, images, counted = _coco_images(object_in(read_bytes(file, MOST_JSON)))
    stem = file.stem.removeprefix("instances_")
    if stem == "_annotations.coco":
        stem = file.parent.name
    places = [root / stem, root / "images" / stem, root / split, root / "images" / split,
              root / "images", root]  # fmt: skip
    some = [one.name for one in images[:TRIED]]
    there = (place for place in places if any((place / name).is_file() for name in some))
    where = next(there, places[0])
    return Annotated(title, where, images, names, Survey(title, "xywh", counted=counted))


def coco_numbers(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ids that a file of COCO's annotations gives to the images, by name of file, and to the
    classes, by name. Raises UserError: it gives several to one name."""
    with _as_cocos(file):
        record = object_in(read_bytes(file, MOST_JSON))
        images = [(Path(str(one["file_name"])).name, one["id"]) for one in record["images"]]
        classes = [(str(one["name"]), one["id"]) for one in record["categories"]]
    for what, named in (("images", images), ("categories", classes)):
        name, count = next(iter(Counter(name for name, _ in named).most_common(1)), ("", 0))
        if count > 1:
            raise UserError(f"{printable(file)} has {count} {what} of the name {printable(name)}")
    return dict(images), dict(classes)


@contextlib.contextmanager
def _as_cocos(file: Path) -> Iterator[None]:
    """Raises UserError where a file is read as COCO's and is not."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{printable(file)} holds no annotations of COCO: {what}") from error


def _coco_images(record: dict[str, Any]) -> tuple[list[str], list[Annotation], Counter[str]]:
    """Names of the classes in the order of their ids, the images in the file's order, and what was
    found on the way."""
    categories = sorted(record["categories"], key=lambda one: one["id"])
    names = [str(one["name"]) for one in categories]
    number = {one["id"]: label for label, one in enumerate(categories)}
    counted: Counter[str] = Counter()
    of_image: dict[Any, list[dict]] = {one["id"]: [] for one in record["images"]}
    for one in record["annotations"]:
        if one["image_id"] not in of_image:
            counted["annotations are of images that the file does not list"] += 1
        elif one["category_id"] not in number:
            raise ValueError(f"an annotation has the category {one['category_id']}, which it lacks")
        else:
            of_image[one["image_id"]].append(one)
    images = []
    for image in record["images"]:
        own = of_image[image["id"]]
        size = int(image["height"]), int(image["width"])
        if min(size) < 1:
            raise ValueError(f"the image {image['file_name']} has the size {size}")
        areas: list[Any] = [one.get("area") for one in own]
        images.append(Annotation(
            str(image["file_name"]), size, numbers_of([one["bbox"] for one in own]),
            np.array([number[one["category_id"]] for one in own], np.int64),
            np.array([bool(one.get("iscrowd", 0)) for one in own], bool),
            np.array([float(n) if is_number(n) else np.nan for n in areas], np.float64),
        ))  # fmt: skip
    return names, images, counted


# -- Pascal VOC ------------------------------------------------------------------------------------


def _voc_root(rest: str) -> Path:
    """The folder that has Annotations: the one named, or the only one below it."""
    root = _folder("voc", rest)
    if (root / "Annotations").is_dir():
        return root
    inside = [path.parent for path in root.glob("*/Annotations")]
    inside += [path.parent for path in root.glob("VOCdevkit/*/Annotations")]
    if len(inside) > 1:
        several = ", ".join(printable(path) for path in sorted(inside))
        raise UserError(f"voc:{printable(rest)} has several sets: name one of {several}")
    if not inside:
        raise UserError(f"voc:{printable(rest)} has no folder Annotations of XML files")
    return inside[0]


def voc_splits(rest: str) -> list[str]:
    """The splits that a folder lists in ImageSets/Main."""
    return [path.stem for path in sorted((_voc_root(rest) / "ImageSets/Main").glob("*.txt"))]


def voc(rest: str, split: str, classes: list[str] | None) -> Annotated:
    """`FOLDER/Annotations/*.xml`, `FOLDER/JPEGImages/*` and `FOLDER/ImageSets/Main/SPLIT.txt`.
    Classes are the sorted names of all objects of all splits. `difficult` objects are crowds: no
    targets, and not counted in evaluation. Pixels are counted from 1."""
    root, title = _voc_root(rest), f"voc:{printable(rest)}"
    splits = voc_splits(rest)
    chosen = choose(title, split, splits, classes is None)
    listed = read_bytes(root / "ImageSets/Main" / f"{chosen}.txt").decode(errors="replace")
    lines = [line.strip() for line in listed.splitlines() if line.strip()]
    read = {path.stem: _voc_image(path) for path in sorted((root / "Annotations").glob("*.xml"))}
    # Lists of one class have a number behind each name.
    wanted = [line if line in read else re.sub(r"\s+-?[01]$", "", line) for line in lines]
    if lost := [name for name in wanted if name not in read]:
        raise UserError(
            f"{title}: {len(lost):,} images of the split {chosen} have no annotations, such as "
            f"{printable(lost[0])}"
        )
    names = sorted({name for one in read.values() for name in one[2]})
    if classes is not None and set(names) <= set(classes):
        names = list(classes)
    number = {name: label for label, name in enumerate(names)}
    images = []
    for stem in wanted:
        name, size, objects, boxes, difficult = read[stem]
        start = np.array(boxes, np.float64).reshape(-1, 4) - [1, 1, 0, 0]
        images.append(Annotation(
            name if (root / "JPEGImages" / name).is_file() else f"{stem}.jpg", size, start,
            np.array([number[one] for one in objects], np.int64), np.array(difficult, bool),
            np.full(len(boxes), np.nan),
        ))  # fmt: skip
    return Annotated(title, root / "JPEGImages", images, names, Survey(title, "xyxy"))


def _voc_image(path: Path) -> tuple[str, tuple[int, int], list[str], list[list[float]], list[bool]]:
    """File name, (height, width), and of each object its class, its edges, whether it is
    difficult. Raises UserError where the XML is none of VOC's."""
    try:
        text = read_bytes(path, MOST_XML)
        # Its entities could grow without bounds. Without the zeros, UTF-16 and UTF-32 are ASCII.
        if b"<!DOCTYPE" in text.replace(b"\0", b""):
            raise ValueError("it declares a document type")
        tree = ElementTree.fromstring(text)
        size = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
        if min(size) < 1:
            raise ValueError(f"its size is {size}")
        found = tree.findall("object")
        boxes = [
            [_number(_text(one, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for one in found
        ]
        names = [_text(one, "name") for one in found]
        difficult = [(one.findtext("difficult") or "0").strip() == "1" for one in found]
        return tree.findtext("filename") or "", size, names, boxes, difficult
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise UserError(f"{printable(path)} is no annotation of VOC: {reason(error)}") from error


def _text(node: ElementTree.Element, path: str) -> str:
    text = (node.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"it has no {path}")
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
