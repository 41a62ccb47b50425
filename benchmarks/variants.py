"""What a config chooses of a step's time: layers unrolled or scanned, what is rematerialised; and,
as code alone, XLA's options for a CPU, one at a time, and the patches' projection as a matrix
product or as a convolution.

    python benchmarks/variants.py [--models=vit_small_patch16_224] [--batch=8] [--dtype=bfloat16]

Ratios are over the first side of each case: the unrolled step without rematerialisation, XLA's
defaults, and the matrix product, which are what `vit train` takes.
"""

import argparse
from typing import Any

import harness
import jax
import jax.numpy as jnp
from train_step import QUICK, plain_run

from vit_jax.benching.steps import OUR_WORK, synthetic_batch
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
    parser = harness.parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.set_defaults(scan=False, attention=None, size=None)
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 10)
    rows: list[harness.Row] = []
    for name in options.models or ["vit_small_patch16_224"]:
        works = {}
        for variant, fields in VARIANTS.items():
            run = plain_run(name, options, **fields)
            work = OUR_WORK["step"](run, batches(run))
            works[variant] = harness.in_a_row(work.start, work.wait, 1)
        times = harness.alternate(works, rounds)
        rows += harness.compare(f"{name}, step, batch {options.batch}", times, "unrolled")
        rows += of_xla(name, options, rounds)
    rows += projections(options, rounds)
    harness.report("variants", rows, options)


def of_xla(name: str, options: argparse.Namespace, rounds: int) -> list[harness.Row]:
    """The unrolled step, compiled with each of XLA's options; one that it does not know is left
    out, aloud."""
    works = {}
    for option, values in XLA.items() if jax.default_backend() == "cpu" else ():
        run = plain_run(name, options)
        jitted, shapes = run.jitted_step
        try:
            vars(run)["compiled_step"] = jitted.lower(*shapes).compile(compiler_options=values)
        except jax.errors.JaxRuntimeError as error:
            print(f"left out, {option}: {str(error).splitlines()[0]}")
            continue
        work = OUR_WORK["step"](run, batches(run))
        works[option] = harness.in_a_row(work.start, work.wait, 1)
    if not works:
        return []
    times = harness.alternate(works, rounds)
    return harness.compare(f"{name}, step, batch {options.batch}, XLA", times, "XLA's defaults")


def batches(run: Run) -> Any:
    """What takes the next batch: always the same noise."""
    batch = synthetic_batch(run)
    return lambda: batch


def projections(options: argparse.Namespace, rounds: int) -> list[harness.Row]:
    """Gradients of 16 x 16 patches' projection to 768, both ways."""
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

    sides = {}
    for function in (product, convolution):
        loss = jax.jit(jax.value_and_grad(lambda k, x, f=function: jnp.square(f(k, x)).sum()))
        work = lambda loss=loss: loss(kernel, images)  # noqa: E731
        sides[f"matrix {function.__name__}" if function is product else "convolution"] = (
            harness.in_a_row(work, jax.block_until_ready, 10)
        )
    case = f"projection of {options.batch} images"
    return harness.compare(case, harness.alternate(sides, rounds), "matrix product")


if __name__ == "__main__":
    main()
