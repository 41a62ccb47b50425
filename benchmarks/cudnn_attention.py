"""cuDNN's attention computes what XLA's does: both in bfloat16 against XLA's in full float32.

    python benchmarks/cudnn_attention.py

Encoders of four layers with the tokens and heads of B/16 at 224 and at 384 px (197 and 577 tokens,
heads of 64) and of H/14 (257, heads of 80). `error` is the norm of the difference from float32 over
the norm, for the logits and for the gradient of all parameters. cuDNN's error may be 1.5 of XLA's
at most: if it is more, the exit code is 1. Without an NVIDIA GPU only XLA's error is measured.
"""

import sys

import jax
import jax.numpy as jnp
import optax

import vit_jax
from vit_jax.benching import report

SIZES = {  # name: width, heads, patch, image
    "B/16, 224 px": (768, 12, 16, 224),
    "B/16, 384 px": (768, 12, 16, 384),
    "H/14, 224 px": (1280, 16, 14, 224),
}
QUICK = {"197 tokens, width 128": (128, 2, 4, 56)}
ALLOWED = 1.5
BATCH = 4


def main() -> int:
    """Compares the two and returns the exit code."""
    options = report.parser(__doc__).parse_args()
    sides = {"xla": ("xla", "bfloat16")}
    if jax.default_backend() == "gpu":
        sides["cudnn"] = ("cudnn", "bfloat16")
    else:
        print(f"cuDNN's attention was not had: no NVIDIA GPU, but {jax.devices()[0].device_kind}")
    rows, wrong = [], []
    for case, sizes in (QUICK if options.quick else SIZES).items():
        with jax.default_matmul_precision("highest"):
            reference = outcome(sizes, "xla", "float32")
        errors = {}
        for side, (attention, dtype) in sides.items():
            actual = outcome(sizes, attention, dtype)
            errors[side] = [distance(a, b) for a, b in zip(actual, reference, strict=True)]
            for what, error in zip(("logits", "gradient"), errors[side], strict=True):
                rows.append({"case": f"{case}, {what}", "side": side, "error": error})
        if "cudnn" in errors:
            pairs = zip(errors["cudnn"], errors["xla"], strict=True)
            wrong += [case] * any(not cudnn <= ALLOWED * xla for cudnn, xla in pairs)
    report.finish("cudnn_attention", rows, options)
    if wrong:
        print(f"cuDNN's attention is not XLA's: {', '.join(wrong)}")
    return int(bool(wrong))


def outcome(sizes: tuple[int, int, int, int], attention: str, dtype: str) -> tuple:
    """The logits of fixed parameters and images, and the gradient of their mean square."""
    width, heads, patch, image = sizes
    model = vit_jax.create_model(
        "vit_base_patch16_224", hidden_size=width, num_heads=heads, mlp_dim=2 * width, num_layers=4,
        patch_size=patch, image_size=image, num_classes=16, attention=attention, dtype=dtype,
    )  # fmt: skip
    images = jax.random.normal(jax.random.key(1), (BATCH, image, image, 3))
    params = model.init(seed=0)
    params["head"]["kernel"] = jax.random.normal(jax.random.key(2), (width, 16)) / width**0.5

    def loss(params):
        logits, _ = model.apply(params, images)
        return jnp.square(logits).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, gradient


def distance(tree, reference) -> float:
    """Norm of the difference over the norm; all leaves are one vector."""
    difference = optax.tree.sub(tree, reference)
    return float(optax.tree.norm(difference) / optax.tree.norm(reference))


if __name__ == "__main__":
    sys.exit(main())
