r"""A whole training step (forward, backward, update) or a forward pass: ours, plain flax.linen's,
timm's and Hugging Face's.

    python benchmarks/train_step.py                                  # Ti/16 and S/16, float32
    python benchmarks/train_step.py --models=vit_base_patch16_224 --dtype=bfloat16 --batch=256
    python benchmarks/train_step.py --what=forward --against=timm
    python benchmarks/train_step.py --models=detr_resnet50 --size=480,640 --batch=2 \
        --against=huggingface

This is `vit bench step` (or `forward`) on a plain recipe, one model after the other. Ours is the
step that `vit train` runs: it takes uint8 images and normalises them, keeps the old state if a
gradient is not finite, and reports the gradient's norm. The others (peer_sides.py) take float32
images that were normalised beforehand, and do none of that: the comparison is unfavourable to us.
All of them train models of one size with AdamW, on one device: classifiers on softmax
cross-entropy, detectors on the loss of sets, with seven objects an image. A package that is not
installed is left out, with a line about it.
"""

import argparse
import math
from typing import Any

from vit_jax.benching import report, steps
from vit_jax.training.run import Run

MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224")
QUICK = {"hidden_size": 96, "num_layers": 4, "num_heads": 3, "mlp_dim": 384,
         "patch_size": 16, "image_size": 96}  # fmt: skip


def main() -> None:
    """Measures every model asked for."""
    parser = model_parser(__doc__)
    parser.add_argument("--what", default="step", choices=tuple(steps.OUR_WORK))
    parser.add_argument("--size", type=size_of, help="of the images: 384, or 480,640")
    parser.add_argument("--steps", type=int, help="steps in one measurement (1; on a GPU 10)")
    parser.add_argument("--seconds", type=float, default=math.inf,
                        help="begin no round after so many seconds and three rounds")  # fmt: skip
    parser.add_argument("--scan", action="store_true", help="ours scanned over layers")
    parser.add_argument("--attention", help="ours, if not the usual one: xla, cudnn")
    parser.add_argument("--against", default="linen,timm", help="any of linen,timm,huggingface")
    options = parser.parse_args()
    peers = steps.find_peers(options.against)
    import jax

    rows: list[dict[str, Any]] = []
    for name in options.models or (MODELS[:1] if options.quick else MODELS):
        size = f" at {options.size} px" if options.size else ""
        fields = {"image_size": options.size} if options.size else {}
        run = plain_run(name, options, attention=options.attention, scan=options.scan or None,
                        **fields)  # fmt: skip
        rows += steps.measure(
            run, options.what, say=print, peers=peers, real=False,
            rounds=options.rounds or (10 if options.quick else 30), within=options.seconds,
            count=options.steps or (1 if jax.default_backend() == "cpu" or options.quick else 10),
            label=f"{name}{size}{' (quick)' * options.quick}",
        )  # fmt: skip
    report.finish("train_step", rows, options)


def size_of(text: str) -> int | tuple[int, ...]:
    """`384`, or `480,640` of height and width."""
    sides = tuple(int(side) for side in text.split(","))
    return sides if len(sides) > 1 else sides[0]


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of benchmarks of models."""
    parser = report.parser(description)
    parser.add_argument("--models", type=lambda text: text.split(","), help="names, by commas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser


def plain_run(name: str, options: argparse.Namespace, **fields: Any) -> Run:
    """A plain run of a model, or of a tiny one with --quick; `fields` are fields of the model."""
    fields |= QUICK if options.quick else {}
    return steps.plain_run(name, options.batch, 1000, dtype=options.dtype, **fields)


if __name__ == "__main__":
    main()
