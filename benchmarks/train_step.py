"""A whole training step (forward, backward, update) or a forward pass: ours, plain flax.linen, timm
and Hugging Face's.

    python benchmarks/train_step.py                                  # Ti/16 and S/16, float32
    python benchmarks/train_step.py --models=vit_base_patch16_224 --dtype=bfloat16 --batch=256
    python benchmarks/train_step.py --what=forward --against=timm

It is `vit bench step` (or `forward`) on a plain recipe, a model after the other. Ours is the step
that `vit train` runs: it takes uint8 images and normalises them, keeps the old state where a
gradient is not finite, and reports the gradient's norm. The others (peer_sides.py) take float32
images that were normalised beforehand, and do none of that: the comparison is unfavourable to us.
All of them train models of one size with AdamW on softmax cross-entropy, on one device. What is
not installed is left out, and that is said.
"""

import argparse
import math
from typing import Any

import harness

from vit_jax.benching import steps
from vit_jax.config import base
from vit_jax.training.run import Run

MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224")
CLASSES = 1000
QUICK = {"hidden_size": 96, "num_layers": 4, "num_heads": 3, "mlp_dim": 384,
         "patch_size": 16, "image_size": 96}  # fmt: skip


def main() -> None:
    """Measures every model asked for."""
    options = arguments()
    peers = steps.find_peers(filter(None, options.against.split(",")))
    import jax

    count = options.steps or (1 if jax.default_backend() == "cpu" or options.quick else 10)
    rounds = options.rounds or (10 if options.quick else 30)
    rows: list[harness.Row] = []
    for name in options.models:
        run = plain_run(name, options)
        size = f" at {options.size} px" if options.size else ""
        rows += steps.measure(
            run, options.what, peers=peers, real=False, rounds=rounds, count=count, say=print,
            label=f"{name}{size}{' (quick)' * options.quick}", within=options.seconds or math.inf,
        )  # fmt: skip
    harness.report("train_step", rows, options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), help="names, by commas")
    parser.add_argument("--what", default="step", choices=tuple(steps.OUR_WORK))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="of the images, where not the model's usual one")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, help="steps a measurement (1; on a GPU 10)")
    parser.add_argument(
        "--seconds", type=float, help="begin no round after so many, and three rounds"
    )
    parser.add_argument("--scan", action="store_true", help="ours scanned over layers")
    parser.add_argument("--attention", help="ours, where not the usual one: xla, cudnn")
    parser.add_argument(
        "--against", default="linen,timm", help="linen, timm, huggingface, by commas"
    )
    options = parser.parse_args()
    options.models = options.models or (MODELS[:1] if options.quick else MODELS)
    return options


def plain_run(name: str, options: argparse.Namespace, **fields: Any) -> Run:
    """A plain run: AdamW at a constant rate on softmax; no clipping, mixup or dropout. `fields` are
    others of the model."""
    import jax

    from vit_jax.training.resolve import known
    from vit_jax.training.run import run_of

    c = base()
    c.batch_size, c.total_steps = options.batch, 1_000_000
    c.model.name = name
    c.model.dtype, c.model.attention = options.dtype, options.attention
    c.model.scan = options.scan or None
    if options.size:
        c.model.image_size = options.size
    if options.quick:
        c.model.update(QUICK)
    c.model.update(fields)
    size = c.model.image_size or int(name.rpartition("_")[2])
    c.data.train.source = f"synthetic:examples={options.batch},classes={CLASSES},size={size}"
    c.data.train.pipeline, c.data.eval.split = "decode", ""
    c.optimizer.weight_decay = 1e-4
    c.schedule.name = "constant"
    return run_of(c, devices=jax.devices()[:1], data=known)


if __name__ == "__main__":
    main()
