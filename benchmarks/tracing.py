"""Seconds to trace the making of a model's parameters, which every command does first.

    python benchmarks/tracing.py

Ours draws each parameter's key from `ParamKeys`, which counts in Python. The other side draws the
same keys from `nnx.Rngs`, which counts in an array.
"""

from unittest import mock

import jax
from flax import nnx

from vit_jax.benching import report
from vit_jax.benching.timing import alternate, compare, timed
from vit_jax.models import Model, create_model, layers, vit

OURS = "vit_jax, ParamKeys"
MODELS = (
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "resnetv2_50x1_bit",
    "resnetv2_152x2_bit",
)


def main() -> None:
    """Measures both sides on each model."""
    options = report.parser(__doc__).parse_args()
    rows = []
    for name in MODELS[:1] if options.quick else MODELS:
        model = create_model(name)
        sides = {
            OURS: timed(lambda model=model: traced(model, layers.ParamKeys)),
            "nnx.Rngs": timed(lambda model=model: traced(model, lambda key: nnx.Rngs(params=key))),
        }
        times = alternate(sides, options.rounds or (3 if options.quick else 5), warmup=1)
        rows += compare(name, times, OURS)
    report.finish("tracing", rows, options)


def traced(model: Model, keys) -> None:
    """Traces the module once, its keys and those of its blocks made by `keys`."""
    with mock.patch.object(vit, "ParamKeys", keys):
        jax.eval_shape(
            lambda: nnx.state(model.family.module(model.config, keys(jax.random.key(0))), nnx.Param)
        )


if __name__ == "__main__":
    main()
