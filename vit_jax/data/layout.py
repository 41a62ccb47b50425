"""The layout of a folder of images: `SPLIT/CLASS/*` or `CLASS/*`. Other layouts are refused, with
what to write instead."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vit_jax.data.splits import in_order, meaning
from vit_jax.data.walking import folders_in, holds_images
from vit_jax.errors import UserError, printable

# Where ImageNet as Kaggle hands it out (ILSVRC 2012, localisation) has train/ and val/, seen from
# the folder that is named. Its validation images lie in no folders of classes.
_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")


def layout(root: Path) -> tuple[list[str], list[str]]:
    """The splits of a folder (none if it holds classes), and its other folders.

    Splits are folders that are named like one. One that holds images directly is a class, such as a
    `train` among other vehicles; but a stray image beside the folders of classes makes no class of
    a split, unless other folders hold their images directly, too."""
    inside = folders_in(root)
    others = [name for name in inside if not meaning(name)]

    def is_class(folder: Path) -> bool:
        return holds_images(folder) and (
            not folders_in(folder) or any(holds_images(root / other) for other in others)
        )

    splits = [name for name in inside if meaning(name) and not is_class(root / name)]
    return in_order(splits), [name for name in inside if name not in splits]


def refuse_no_classes(root: Path, classes: list[str]) -> None:
    """Raises UserError: all folders of classes are named like splits."""
    if classes and all(map(meaning, classes)):
        raise UserError(
            f"{printable(root)}: {_some(classes)} are splits by their names and would be classes; "
            "images lie in SPLIT/CLASS/*, as in train/cat/1.jpg; labels of a table are read by "
            + _by_table(root, in_order(classes)[0])
        )


def refuse_flat(root: Path, split: str, folders: Iterable[str]) -> None:
    """Raises UserError: the folder of this split holds images, not in folders of classes."""
    for name in folders:
        if split in (name, meaning(name)) and holds_images(root / name):
            refuse_kaggle(root)
            raise UserError(
                f"{printable(root / name)} holds images directly, not in folders of their classes: "
                f"sort them into {name}/CLASS, or give a table of their labels, "
                f"{_by_table(root, name)}"
            )


def refuse_kaggle(root: Path) -> None:
    """Raises UserError: the folder is ImageNet as Kaggle hands it out."""
    if kaggle_images(root):
        raise UserError(
            f"{printable(root)} is ImageNet as Kaggle hands it out: write "
            f"imagenet2012:{printable(root)}"
        )


def kaggle_images(root: Path) -> Path | None:
    """The folder with train/ and val/ of Kaggle's ImageNet, if this folder is it or holds it."""
    if root.absolute().name == "CLS-LOC":
        return root
    return next((root / place for place in _KAGGLE if (root / place).is_dir()), None)


def tables_of_splits(root: Path) -> dict[str, Path]:
    """The tables of a folder by their splits: `train.csv` and `val.csv`; or, as Roboflow writes
    them, the only table in each of `train/`, `valid/` …"""
    beside = [file for file in sorted(root.glob("*.[ct]sv")) if meaning(file.stem)]
    if beside:
        return {file.stem: file for file in beside}
    inside = {name: [*(root / name).glob("*.[ct]sv")] for name in folders_in(root) if meaning(name)}
    return {name: files[0] for name, files in inside.items() if len(files) == 1}


def _by_table(root: Path, split: str) -> str:
    """The source that reads the images of a flat split by a table, which lies in or beside it."""
    table = tables_of_splits(root).get(split)
    if table and table.parent != root:
        return f"csv:{printable(root)}"
    if table or (table := next(iter(sorted(root.glob("*.[ct]sv"))), None)):
        return f"csv:{printable(table)}?root={printable(split)}"
    return f"csv:TABLE?root={printable((root / split).absolute())}"


def refuse_crossed(root: Path, classes: list[str]) -> None:
    """Raises UserError: the folders of classes hold nothing but folders of the same names, as in
    `fold1/cat fold1/dog fold2/cat …` or `cat/train cat/val dog/train …`."""
    inside: dict[str, list[str]] = {}
    for name in classes:
        if holds_images(root / name):
            return
        if folders := folders_in(root / name):
            inside[name] = folders
    shown, several = printable(root), len(inside) > 1
    counts = Counter(name for folders in inside.values() for name in folders)
    if counts and all(map(meaning, counts)):
        first, splits = next(iter(inside)), in_order(counts)
        places = [f"{shown}/{printable(split)}/{printable(first)}" for split in splits[:2]]
        raise UserError(
            f"{shown}: {_some(inside)} {'hold' if several else 'holds'} splits ({_some(splits)}): "
            + (f"make {' and '.join(places)} of them, SPLIT/CLASS" if several
               else f"give folder:{shown}/{printable(first)}")
        )  # fmt: skip
    shared = [name for name, count in counts.items() if count > 1]
    if not several or len(counts) == 1 or 2 * len(shared) < len(counts):
        return
    if not all(holds_images(root / name / folders[0]) for name, folders in inside.items()):
        return
    train, val = list(inside)[:2]
    raise UserError(
        f"{shown}: {_some(inside)} hold the same folders ({_some(sorted(shared))}). If they are "
        f"splits, write --config.data.train.split={printable(train)} "
        f"--config.data.eval.split={printable(val)}; if they are classes, move them to "
        f"{shown}/train"
    )


def _some(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:3]) + (" …" if names[3:] else "")
