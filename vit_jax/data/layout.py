"""The layout of a folder of images: `SPLIT/CLASS/*` or `CLASS/*`. Other layouts are refused."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vit_jax.data.splits import in_order, meaning
from vit_jax.data.walking import folders_in, holds_images
from vit_jax.errors import UserError, printable


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
            "images lie in SPLIT/CLASS/*, as in train/cat/1.jpg"
        )


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
