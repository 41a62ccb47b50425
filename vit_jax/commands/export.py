"""Writes weights for programs without this package: as StableHLO, or as ONNX.

vit export runs/pets pets --to=stablehlo              a folder, read by JAX alone: docs/export.md
vit export runs/pets pets.onnx --to=onnx              a file, read by onnxruntime
vit export ViT-B_16.npz b16 --to=onnx --sizes=224,384x512
vit export hf://facebook/dinov2-small features --to=stablehlo --dtype=bfloat16 --raw

From uint8 images [batch, height, width, channels] to what `vit predict` shows: probabilities of
classes, or boxes and scores. The normalisation is inside; resizing and cropping are stated as text.
The names of the classes are in the artefact. It is read back and compared with our own model before
it counts as written. Needs pip install 'vit_jax[export]' (StableHLO) or 'vit_jax[onnx]'.
"""

import argparse
import re

from vit_jax.commands.arguments import SOURCE, Options, opened
from vit_jax.commands.output import say
from vit_jax.errors import UserError, printable
from vit_jax.user_code import FLAG, only

OPTIONS: Options = SOURCE | {
    "destination": dict(help="a folder; or a file that ends in .onnx, with --to=onnx"),
    "--to": dict(required=True, metavar="FORMAT", help="stablehlo or onnx"),
    "--sizes": dict(default="", metavar="SIZE,…", help="image sizes, such as 224,384x512 (height x "
                    "width); a file for each, with resized positions (that of the weights)"),
    "--dtype": dict(default="float32", help="of the arithmetic and of stored kernels: float32 "
                    "(default) or bfloat16"),
    "--raw": dict(action="store_true", help="from normalised float32 images to logits"),
    "--overwrite": dict(action="store_true", help="replace an export that is there"),
    FLAG: dict(action="store_true", help="run the operations that the weights' pipeline names by "
               "import path, to see the size of their result; without it such weights are refused"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    from vit_jax.exporting.export import check, export_weights

    sizes = _sizes(options.sizes)
    path = check(options.destination, options.to, sizes, options.dtype, overwrite=options.overwrite)
    with only(None, trust_files=options.trust_code):
        weights = opened(options)
    export_weights(
        weights, path, options.to, sizes, options.dtype, raw=options.raw,
        imports=options.trust_code, say=say,
    )  # fmt: skip
    print(f"{printable(weights.path)} -> {printable(path)} ({options.to})")
    return 0


def _sizes(text: str) -> list[tuple[int, int]]:
    """`224,384x512` as (height, width) pairs."""
    sizes = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", part.strip())
        if not match:
            raise UserError(f"--sizes={text}: {part!r} is no image size, such as 384 or 384x512")
        sizes.append((int(match[1]), int(match[2] or match[1])))
    return sizes
