"""`init`: the parameters of another run under another head, resolution or depth of the stack.

Every tensor is loaded, resized, re-initialised or unused, and the table says which; what the
table below does not allow is an error.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax

from vit_jax.checkpoint.manager import about, read, stored_shapes
from vit_jax.checkpoint.tree import flatten, in_layout_of, unflatten
from vit_jax.errors import UserError
from vit_jax.models.position import resize_grid

# What may happen to a parameter that the checkpoint lacks or has in another shape.
MAY_RESIZE = r"pos_embed/grid"
MAY_REINITIALISE = r"(head|pre_logits)/.*"
MAY_IGNORE = r"(head|pre_logits)/.*"


@dataclasses.dataclass(frozen=True)
class Report:
    """path -> what became of it: `loaded`, `resized (…)`, `re-initialised`, `unused`."""

    fates: dict[str, str]

    def lines(self) -> list[str]:
        """A count of each fate, then the tensors that were not simply loaded."""
        counts: dict[str, int] = {}
        for fate in self.fates.values():
            counts[fate.split(" ")[0]] = counts.get(fate.split(" ")[0], 0) + 1
        head = ", ".join(f"{count} {fate}" for fate, count in counts.items())
        return [head] + [f"  {fate}: {p}" for p, fate in self.fates.items() if fate != "loaded"]


def warm_start(
    checkpoint: Path, params: Any, shardings: Any, classes: list[str]
) -> tuple[Any, Report]:
    """`params` (freshly initialised) with everything that the checkpoint has for them. The head
    counts only where the checkpoint's classes are these, in this order.

    Raises UserError listing what is missing, superfluous or of another shape.
    """
    stored = {
        path.removeprefix("params/"): leaf
        for path, leaf in stored_shapes(checkpoint).items()
        if path.startswith("params/")
    }
    fresh, where = flatten(params), flatten(shardings)
    like_ours = in_layout_of(stored, fresh)
    fates, wrong = {}, []
    other_classes = about(checkpoint)["classes"] != classes
    for path, leaf in fresh.items():
        theirs = like_ours.get(path)
        if other_classes and path.startswith("head/"):
            fates[path] = "re-initialised (other classes)"
        elif theirs is not None and tuple(theirs.shape) == leaf.shape:
            fates[path] = "loaded"
        elif theirs is not None and re.fullmatch(MAY_RESIZE, path):
            fates[path] = f"resized {list(theirs.shape[:2])} -> {list(leaf.shape[:2])}"
        elif re.fullmatch(MAY_REINITIALISE, path):
            fates[path] = "re-initialised"
        else:
            has = f"has it as {list(theirs.shape)}" if theirs is not None else "lacks it"
            wrong.append(f"  {path} {list(leaf.shape)}: the checkpoint {has}")
    for path, leaf in like_ours.items():
        if path not in fresh and re.fullmatch(MAY_IGNORE, path):
            fates[path] = "unused"
        elif path not in fresh:
            wrong.append(f"  {path} {list(leaf.shape)}: only in the checkpoint")
    if wrong:
        raise UserError(
            f"init {checkpoint} does not fit the model: {len(wrong)} tensors have no explanation\n"
            + "\n".join(sorted(wrong)[:40])
        )
    sharding = next(iter(where.values()))
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    wanted = {
        f"params/{path}": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
        for path, leaf in stored.items()
    }
    loaded = {p.removeprefix("params/"): leaf for p, leaf in read(checkpoint, wanted).items()}

    def fill(fresh, loaded):
        loaded, flat = in_layout_of(loaded, fresh), dict(fresh)
        for path, fate in fates.items():
            if fate == "loaded":
                flat[path] = loaded[path].astype(fresh[path].dtype)
            elif fate.startswith("resized"):
                flat[path] = resize_grid(loaded[path], fresh[path].shape[:2])
        return flat

    filled = jax.jit(fill, out_shardings=where)(fresh, loaded)
    return unflatten(filled, params), Report(fates)
