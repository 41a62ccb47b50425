"""Whether a checkpoint belongs to a run: the same config, less what may differ, and the same data.
Data is what it holds (number, classes, a hash of the examples' names and entries), wherever it
lies: a folder that has moved is the same one.
"""

import json
import re
from pathlib import Path
from typing import Any

from vit_jax.checkpoint import manager
from vit_jax.config import differences, flat
from vit_jax.errors import UserError, printable
from vit_jax.parallel.runtime import everyones
from vit_jax.resolution import with_paths
from vit_jax.training.run import Run


def check_same_data(run: Run) -> None:
    """Raises UserError if processes read different data, as copies on their own disks may be."""
    all_held = [json.loads(line) for line in everyones(json.dumps(run.held))]
    for number, theirs in enumerate(all_held):
        for key, first in all_held[0].items():
            if theirs[key] != first:
                raise UserError(
                    f"process {number} reads other data than process 0: {key} "
                    f"{printable(flat(run.config)[key])} {_change(first, theirs[key])}; give "
                    "every process the same files"
                )


def check_same_run(run: Run, checkpoint: Path) -> list[str]:
    """Checks that the run may continue from a checkpoint. Returns lines about data that has moved.

    Raises UserError: a key that changes the run's numbers differs, or the data does. It names all.
    """
    about = manager.about(checkpoint)
    before, now = about["config"], json.loads(json.dumps(flat(run.config)))
    kept = about.get("sources") or {"data.train.source": {"examples": about["train_examples"]}}
    moved, changed = [], _class_differences(about["classes"], run.classes)
    same = set() if now["data.eval.split"] else {"data.eval.source"}  # not read without evaluation
    for key, here in run.held.items():
        old, new, was = before.get(key), now[key], kept.get(key, {})
        if _without_paths(old) != _without_paths(new):
            continue  # another kind of source: `differences` finds it
        same.add(key)
        if _differs(was, here):
            changed.append(f"{key} {printable(new)} {_change(was, here)}")
        elif old != new:
            known = "" if was.get("names") and here["names"] else (
                "; the checkpoint holds no names of its examples, so their number and classes "
                "alone were compared"
            )  # fmt: skip
            moved.append(f"the data has moved: {printable(old)} -> {printable(new)}{known}")
    different = [line for line in differences(before, now) if line.partition(":")[0] not in same]
    if different:
        raise UserError(
            f"{checkpoint} belongs to another run; what differs:\n  "
            + "\n  ".join(different + changed)
            + "\nUse another --workdir (--config.init takes the parameters alone), or the config "
            "that it was started with"
        )
    if changed:
        in_run = checkpoint.parent.name == "checkpoints"
        raise UserError(
            f"the data has changed since {checkpoint} was saved: {'; '.join(changed)}: put it back "
            "as it was, or start a new run from this one: --workdir=NEW "
            f"--config.init={checkpoint.parents[1] if in_run else checkpoint}"
        )
    return list(dict.fromkeys(moved))


def _differs(was: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether two records describe different data. Only facts that both of them have count."""
    return any(
        was.get(key) is not None and here[key] is not None and was[key] != here[key]
        for key in ("names", "examples")
    )


def _change(was: dict[str, Any], here: dict[str, Any]) -> str:
    """`has 9 images instead of 8 (1 more)`."""
    old, new = was["examples"], here["examples"]
    if old is None:
        return "has other weights"
    if old == new:
        return f"has as many images, {new:,}, but other names or labels"
    more = f"{new - old:,} more" if new > old else f"{old - new:,} fewer"
    return f"has {new:,} images instead of {old:,} ({more})"


def _without_paths(value: Any) -> Any:
    """A source without its paths, or a teacher's call without its quoted weights."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(['\"]).*?\1", "''", with_paths(value, lambda path: ""))


def _class_differences(old: list[str], new: list[str]) -> list[str]:
    gone, come = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    lines = [f"class {name!r} is gone" for name in gone[:5]]
    lines += [f"class {name!r} is new" for name in come[:5]]
    return lines or (["the order of classes"] if old != new else [])
