"""Choices that decide a step's time. Of the config: layers unrolled or scanned, and what is
rematerialised. Of the code: XLA's options for a CPU, one at a time, and the projection of patches
as a matrix product or as a convolution.

    python benchmarks/variants.py [--models=vit_small_patch16_224] [--batch=8] [--dtype=bfloat16]

Ratios are over the first side of each case: the unrolled step without rematerialisation, XLA's
defaults, and the matrix product. These are what `vit train` uses.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from train_step import QUICK, model_parser, plain_run

from vit_jax.benching import report
from vit_jax.benching.steps import OUR_WORK, synthetic_batch
from vit_jax.benching.timing import Row, Side, alternate, compare, in_a_row
from vit_jax.training.run import Run

VARIANTS: dict[str, dict[str, Any]] = {
    "unrolled": {},
    "scanned": {"scan": True},
    "unrolled, remat dots": {"remat": "dots"},
    "unrolled, remat full": {"remat": "full"},
    "scanned, remat full": {"scan": True, "remat": "full"},
}

YNNPACK, FOR = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_"
XLA: dict[str, dict[str, Any]] = {
    "XLA's defaults": {},
    "fast math": {"xla_cpu_enable_fast_math": True},
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
    "scheduled for memory": {"xla_cpu_enable_concurrency_optimized_scheduler": False},
    "products by Eigen, not YNNPACK": {YNNPACK: ""},
    "more than products by YNNPACK": {YNNPACK: f"{FOR}DOT,{FOR}ELTWISE"},
    "oneDNN": {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True},
}


def main() -> None:
    """Measures every model asked for, then the projections."""
    options = model_parser(__doc__).parse_args()
    rounds = options.rounds or (3 if options.quick else 10)
    rows: list[Row] = []

    def measure(case: str, sides: Mapping[str, Side]) -> None:
        if sides:
            rows.extend(compare(case, alternate(sides, rounds), next(iter(sides))))

    for name in options.models or ["vit_small_patch16_224"]:
        case = f"{name}, step, batch {options.batch}"
        measure(case, {variant: step(plain_run(name, options, **fields))
                       for variant, fields in VARIANTS.items()})  # fmt: skip
        measure(f"{case}, XLA", under_xla(name, options))
    measure(f"projection of {options.batch} images", projections(options))
    report.finish("variants", rows, options)


def step(run: Run) -> Side:
    """A side of the run's training step, always on the same noise."""
    batch = synthetic_batch(run)
    work = OUR_WORK["step"](run, lambda: batch)
    return in_a_row(work.start, work.wait, 1)


def under_xla(name: str, options: argparse.Namespace) -> dict[str, Side]:
    """The unrolled step, compiled with each of XLA's options. An unknown option is left out, with a
    line about it."""
    sides = {}
    for option, values in XLA.items() if jax.default_backend() == "cpu" else ():
        run = plain_run(name, options)
        jitted, shapes = run.jitted_step
        try:
            vars(run)["compiled_step"] = jitted.lower(*shapes).compile(compiler_options=values)
        except jax.errors.JaxRuntimeError as error:
            print(f"left out, {option}: {str(error).splitlines()[0]}")
            continue
        sides[option] = step(run)
    return sides


def projections(options: argparse.Namespace) -> dict[str, Side]:
    """Gradients of the projection of 16 x 16 patches to 768, both ways."""
    size = QUICK["image_size"] if options.quick else 224
    dtype = jnp.dtype(options.dtype)
    images = jnp.ones((options.batch, size, size, 3), dtype)
    kernel = jnp.full((16, 16, 3, 768), 0.01, dtype)
    n = size // 16

    def product(kernel: jax.Array, images: jax.Array) -> jax.Array:
        x = images.reshape(-1, n, 16, n, 16, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, n * n, 768) @ kernel.reshape(768, 768)

    def convolution(kernel: jax.Array, images: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images, kernel, (16, 16), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def side(project: Callable) -> Side:
        gradient = jax.jit(jax.value_and_grad(lambda k, x: jnp.square(project(k, x)).sum()))
        return in_a_row(lambda: gradient(kernel, images), jax.block_until_ready, 10)

    return {"matrix product": side(product), "convolution": side(convolution)}


if __name__ == "__main__":
    main()
