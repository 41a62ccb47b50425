"""A whole training step (forward, backward, update): ours, plain flax.linen, and timm.

    python benchmarks/train_step.py                                  # Ti/16 and S/16, float32
    python benchmarks/train_step.py --models=vit_base_patch16_224 --dtype=bfloat16 --batch=256

Ours is the step that `vit train` runs, set up from a config and compiled by the package: it takes
uint8 images and normalises them, keeps the old state where a gradient is not finite, and reports
the gradient's norm. The linen side (linen_vit.py) takes float32 images that were normalised
beforehand, and does none of that: the comparison is unfavourable to us. timm's step is PyTorch, on
the same normalised images: eager on a CPU; on a GPU compiled, under autocast where bfloat16 is
asked for, channels last. All three train models of one size with AdamW on softmax cross-entropy,
on one device. Without timm the other two are measured, and that is said.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from typing import Any

# PyTorch shares a GPU's memory: JAX reserves half of it at most.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.48")

import harness
import jax
import jax.numpy as jnp
import numpy as np
from linen_vit import LinenViT, make_linen_step

from vit_jax.config import base
from vit_jax.models.flops import train_flops
from vit_jax.parallel.chips import peak_flops
from vit_jax.training.setup import Run, set_up

OURS = "vit_jax"
MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224")
CLASSES = 1000
QUICK = {"hidden_size": 96, "num_layers": 4, "num_heads": 3, "mlp_dim": 384, "image_size": 96}

Step = Callable[[], Any]  # starts one more training step; returns its loss, not awaited


def main() -> None:
    """Measures every model asked for."""
    options = arguments()
    on_gpu = jax.default_backend() == "gpu"
    steps = options.steps or (10 if on_gpu and not options.quick else 1)
    rounds = options.rounds or (10 if options.quick else 30)
    make_timm = timm_maker(on_gpu) if "timm" in options.against else None
    rows: list[harness.Row] = []
    for name in options.models:
        run = our_run(name, options)
        _, batch = next(run.train_batches(0, 1))
        images = run.model.data_config.normalise(batch["image"])
        sides = {OURS: (our_step(run, batch), jax.block_until_ready)}
        if "linen" in options.against:
            sides["linen"] = (linen_step(run, images, batch["label"]), jax.block_until_ready)
        if make_timm:
            side, *step_and_wait = make_timm(run, np.array(images), np.array(batch["label"]))
            sides[side] = tuple(step_and_wait)
        times = harness.alternate(
            {side: several(*step, steps) for side, step in sides.items()}, rounds
        )
        case = f"{name}{' (quick)' * options.quick}, batch {options.batch}, {options.dtype}"
        of_model = harness.compare(case, times, OURS)
        peak = peak_flops(jax.devices()[0].device_kind)
        for row in of_model:
            row["images_per_second"] = options.batch / row["median_s"]
            if peak:
                flops = train_flops(run.model.config) * row["images_per_second"]
                row["mfu"], row["peak_flops"] = flops / peak, peak
        rows += of_model
    harness.report("train_step", rows, options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), help="names, by commas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, help="steps a measurement (1; on a GPU 10)")
    parser.add_argument("--scan", action="store_true", help="ours scanned over layers")
    parser.add_argument("--attention", default="xla", choices=("xla", "cudnn"), help="ours")
    parser.add_argument("--against", default="linen,timm", help="linen, timm or both, by commas")
    options = parser.parse_args()
    options.models = options.models or (MODELS[:1] if options.quick else MODELS)
    return options


def several(step: Step, wait: Callable[[Any], Any], steps: int) -> harness.Side:
    """Seconds a step, of `steps` in a row awaited at their end."""

    def work() -> None:
        for _ in range(steps):
            loss = step()
        wait(loss)

    side = harness.timed(work)
    return lambda: side() / steps


def our_run(name: str, options: argparse.Namespace) -> Run:
    """A plain run: AdamW at a constant rate on softmax; no clipping, mixup or dropout."""
    c = base()
    c.batch_size, c.total_steps = options.batch, 1_000_000
    c.model.name = name
    c.model.dtype, c.model.scan, c.model.attention = options.dtype, options.scan, options.attention
    if options.quick:
        c.model.update(QUICK)
    size = c.model.image_size or int(name.rpartition("_")[2])
    c.data.train.source = f"synthetic:examples={options.batch},classes={CLASSES},size={size}"
    c.data.train.pipeline, c.data.eval.split = "decode", ""
    c.optimizer.weight_decay = 1e-4
    c.schedule.name = "constant"
    return set_up(c, devices=jax.devices()[:1])


def our_step(run: Run, batch: dict[str, jax.Array]) -> Step:
    """The step as `vit train` compiles it."""
    compiled, state = run.compile_train_step(), run.init_state()

    def step() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics["loss"]

    return step


def linen_step(run: Run, images: jax.Array, labels: jax.Array) -> Step:
    """The linen model's step, compiled ahead of time too."""
    c = run.model.config
    model = LinenViT(
        hidden_size=c.hidden_size, num_layers=c.num_layers, num_heads=c.num_heads,
        mlp_dim=c.mlp_dim, patch_size=c.patch_size, num_classes=c.num_classes,
        dtype=jnp.dtype(c.dtype),
    )  # fmt: skip
    train = make_linen_step(model)
    params, opt_state = train.init(jax.random.key(0), images)
    same_size(sum(leaf.size for leaf in jax.tree.leaves(params)), run)
    compiled = train.step.lower(params, opt_state, images, labels).compile()

    def step() -> jax.Array:
        nonlocal params, opt_state
        params, opt_state, loss = compiled(params, opt_state, images, labels)
        return loss

    return step


def timm_maker(on_gpu: bool) -> Callable[[Run, np.ndarray, np.ndarray], tuple] | None:
    """A function to (side's name, its step, how to wait for it); None, said aloud, without timm."""
    missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"timm is not measured: {' and '.join(missing)} not installed")
        return None
    import torch

    if on_gpu and not torch.cuda.is_available():
        print("timm is not measured: this PyTorch sees no GPU")
        return None
    torch.set_num_threads(harness.cores())
    torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 on a GPU

    def make(run: Run, images: np.ndarray, labels: np.ndarray) -> tuple[str, Step, Callable]:
        if not on_gpu:
            return "timm, eager", timm_step(run, images, labels, "cpu"), lambda loss: None
        step = timm_step(run, images, labels, "cuda", compiled=True)
        try:
            step()
        except Exception as error:  # whatever a compiler can raise
            print(f"timm is measured eager: torch.compile failed ({type(error).__name__})")
            return (
                "timm, eager",
                timm_step(run, images, labels, "cuda"),
                lambda loss: torch.cuda.synchronize(),
            )
        return "timm, torch.compile", step, lambda loss: torch.cuda.synchronize()

    return make


def timm_step(
    run: Run, images: np.ndarray, labels: np.ndarray, device: str, compiled: bool = False
) -> Step:
    """timm's VisionTransformer of the same sizes, trained by PyTorch."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    c = run.model.config
    model = VisionTransformer(
        img_size=c.image_size, patch_size=c.patch_size, num_classes=c.num_classes,
        embed_dim=c.hidden_size, depth=c.num_layers, num_heads=c.num_heads,
        mlp_ratio=c.mlp_dim / c.hidden_size, act_layer=f"gelu{'_tanh' * (c.gelu == 'tanh')}",
    )  # fmt: skip
    same_size(sum(p.numel() for p in model.parameters()), run)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    if device == "cuda":
        model = model.to(device, memory_format=torch.channels_last)
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    else:
        pixels = pixels.contiguous()
    forward = torch.compile(model) if compiled else model
    classes = torch.from_numpy(labels).long().to(device)
    adamw = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=1e-4, fused=device == "cuda"
    )
    cross_entropy = torch.nn.CrossEntropyLoss()
    half = c.dtype == "bfloat16"

    def step() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = cross_entropy(forward(pixels), classes)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        adamw.step()
        return loss.detach()

    return step


def same_size(num_params: int, run: Run) -> None:
    """Refuses to compare models of different sizes."""
    if num_params != run.model.num_params:
        raise SystemExit(f"not the same model: {num_params} and {run.model.num_params} parameters")


if __name__ == "__main__":
    main()
