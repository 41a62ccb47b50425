"""Writes weights in another layout, so that the layout's own package reads them.

vit convert ViT-B_16.npz b16 --to=timm               a folder, timm.create_model("local-dir:b16")
vit convert ViT-B_16.npz b16.safetensors --to=timm   the tensors alone
vit convert runs/pets pets --to=huggingface          a folder for Transformers
vit convert runs/coco coco --to=huggingface-detr     a detector; huggingface-yolos for a YOLOS
vit convert model.safetensors vit.npz --to=google
vit convert runs/pets pets.toy --to=toy --layout=my_layouts:TOY     a layout of your own
"""

import argparse
import sys

from vit_jax.commands.arguments import SOURCE, Options, opened

OPTIONS: Options = SOURCE | {
    "destination": dict(help="a file or folder that is not there yet"),
    "--to": dict(required=True, metavar="LAYOUT", help="google, big_vision, timm, dinov2, "
                 "huggingface, huggingface-detr, huggingface-yolos, detr, orbax, or the name of "
                 "your own layout"),
    "--num-classes": dict(type=int, choices=[0], help="0 leaves the head out"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    from vit_jax.pretrained.load import fill, fitted
    from vit_jax.pretrained.save import check_destination, save_pretrained

    weights = opened(options, lambda: check_destination(options.destination, options.to))
    wanted = {} if options.num_classes is None else {"num_classes": options.num_classes}
    model = fitted(weights, wanted)
    params, report = fill(weights, model)
    same = weights.layout == options.to
    notes = save_pretrained(
        model, params, options.destination, options.to,
        classes=weights.classes if model.config.num_classes else None,
        dialect=weights.dialect if same else None, extras=weights.extras if same else None,
    )  # fmt: skip
    for line in [*report.lines(), *(f"note: {note}" for note in notes)]:
        print(line, file=sys.stderr)
    print(f"{weights.path} ({weights.layout}) -> {options.destination} ({options.to})")
    return 0
