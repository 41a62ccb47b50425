"""Shows what weights hold: layout, model, sizes, classes, and what of them would load.

vit inspect ViT-B_16.npz
vit inspect hf://google/vit-base-patch16-224 --tensors
vit inspect runs/digits --json
"""

import argparse
import dataclasses
import json
import math
from typing import Any

from vit_jax.commands.arguments import SOURCE, Options, opened
from vit_jax.errors import printable
from vit_jax.pretrained.report import MANY

OPTIONS: Options = SOURCE | {
    "--tensors": dict(action="store_true", help="every parameter with its shape"),
    "--json": dict(action="store_true", help="as JSON"),
}


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    weights = opened(options)
    model, shapes = weights.model, weights.shapes
    told: dict[str, Any] = {
        "path": str(weights.path),
        "layout": weights.layout,
        "model": model.name,
        # Of the tensors: a model of many layers takes long to make.
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "tensors": len(shapes),
        "classes": weights.classes or model.config.num_classes,
        "activation": model.output_activation,
        "config": dataclasses.asdict(model.config),
        "data_config": dataclasses.asdict(model.data_config),
        "pipeline": model.data_config.pipeline(
            model.data_config.image_size or model.config.image_size
        ),
        "unused": weights.unused,
        "guessed": weights.guessed,
        "notes": [*weights.notes, *weights.guesses()],
    }
    if options.tensors:
        told["shapes"] = {path: list(shape) for path, shape in shapes.items()}
    if options.json:
        print(json.dumps(told))
        return 0
    print(f"{weights.path}: {weights.layout} layout, {model.name}")
    print(f"{told['parameters']:,} parameters in {len(shapes)} tensors, all of which would load")
    print("\n".join(_unused(weights.unused)), end="\n" * bool(weights.unused))
    print("model      " + _fields(model.config))
    print(f"images     {_fields(model.data_config)}; {printable(told['pipeline'])}")
    meaning = "" if model.output_activation == "softmax" else f"; {model.output_activation}"
    print("classes    " + _classes(weights.classes, model.config.num_classes) + meaning)
    for line in told["notes"]:
        print(f"warning: {line}")
    if options.tensors:
        width = max(map(len, shapes))
        print("\n".join(f"{path:{width}}  {list(shape)}" for path, shape in shapes.items()))
    return 0


def _unused(why_of: dict[str, str]) -> list[str]:
    """A line for each name that is not read, or for all of one reason if they are many."""
    names: dict[str, list[str]] = {}
    for name, why in why_of.items():
        names.setdefault(why, []).append(printable(name))
    lines = []
    for why, of_it in names.items():
        if len(of_it) > MANY:  # for example, the state of an optimiser
            lines.append(f"  unused: {len(of_it)} tensors, such as {of_it[0]} ({why})")
        else:
            lines += [f"  unused: {name} ({why})" for name in of_it]
    return lines


def _fields(config) -> str:
    """The fields that say something of the weights: neither off, nor empty, nor of a run."""
    off: tuple[str, ...] = ("scan", "remat", "attention", "dtype")
    if getattr(config, "resnet_layers", None) is None:
        off += ("groupnorm_eps", "standardization")
    shown = {k: v for k, v in vars(config).items() if v not in (None, False, "", 0.0)}
    shown = {k: v for k, v in shown.items() if k not in off}
    return ", ".join(f"{k}={printable(v)}" for k, v in shown.items())


def _classes(names: list[str] | None, count: int) -> str:
    if not count:
        return "none: the weights have no head"
    if not names:
        return f"{count:,}, without names"
    return f"{count:,}: {', '.join(map(printable, names[:8]))}" + (", …" if count > 8 else "")
