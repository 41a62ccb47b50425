"""The peers that `vit bench --against=…` and train_step.py measure: the same network, trained with
AdamW on softmax cross-entropy or run forward, on one device and on normalised float32 images.

linen: plain flax.linen and optax (linen_vit.py), compiled ahead of time. timm and huggingface:
PyTorch. They run eager on a CPU; on a GPU under `torch.compile`, channels last, with fused AdamW,
and in autocast if bfloat16 is asked for. A peer that is not installed, or whose model has another
number of parameters than ours, is left out with the reason.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

# PyTorch shares a GPU's memory: JAX reserves half of it at most.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.48")

import jax
import jax.numpy as jnp
import numpy as np
from linen_vit import LinenViT, make_linen_step

from vit_jax.benching.machine import cores
from vit_jax.benching.steps import NotMeasured, Work
from vit_jax.models.configs import ViTConfig
from vit_jax.training.run import Run


def linen(what: str, run: Run, images: np.ndarray, labels: np.ndarray) -> Work:
    """flax.linen's side."""
    c = sizes(run)
    model = LinenViT(
        hidden_size=c.hidden_size, num_layers=c.num_layers, num_heads=c.num_heads,
        mlp_dim=c.mlp_dim, patch_size=c.patch_size, num_classes=c.num_classes,
        dtype=jnp.dtype(c.dtype),
    )  # fmt: skip
    shown, classes = jax.device_put((images, labels))
    train = make_linen_step(model)
    same_size(jax.eval_shape(train.init, jax.random.key(0), shown)[0], run)
    if what == "forward":
        weights = jax.jit(model.init)(jax.random.key(0), shown)
        forward = jax.jit(model.apply).lower(weights, shown).compile()
        return Work("linen", lambda: forward(weights, shown))
    params, opt_state = train.init(jax.random.key(0), shown)
    compiled = train.step.lower(params, opt_state, shown, classes).compile()

    def step() -> jax.Array:
        nonlocal params, opt_state
        params, opt_state, loss = compiled(params, opt_state, shown, classes)
        return loss

    return Work("linen", step)


def timm(what: str, run: Run, images: np.ndarray, labels: np.ndarray) -> Work:
    """timm's VisionTransformer."""

    def make() -> Any:
        from timm.models.vision_transformer import VisionTransformer

        c = sizes(run)
        return VisionTransformer(
            img_size=c.image_size, patch_size=c.patch_size, in_chans=c.channels,
            num_classes=c.num_classes, embed_dim=c.hidden_size, depth=c.num_layers,
            num_heads=c.num_heads, mlp_ratio=c.mlp_dim / c.hidden_size,
            act_layer=f"gelu{'_tanh' * (c.gelu == 'tanh')}",
        )  # fmt: skip

    return of_torch("timm", make, lambda model, pixels: model(pixels), what, run, images, labels)


def huggingface(what: str, run: Run, images: np.ndarray, labels: np.ndarray) -> Work:
    """Transformers' ViTForImageClassification, with PyTorch's fused attention."""

    def make() -> Any:
        from transformers import ViTConfig as Config
        from transformers import ViTForImageClassification

        c = sizes(run)
        return ViTForImageClassification(
            Config(
                hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
                num_attention_heads=c.num_heads, intermediate_size=c.mlp_dim,
                hidden_act=f"gelu{'_pytorch_tanh' * (c.gelu == 'tanh')}",
                image_size=c.image_size, patch_size=c.patch_size, num_channels=c.channels,
                num_labels=c.num_classes, attn_implementation="sdpa",
            )
        )  # fmt: skip

    def forward(model: Any, pixels: Any) -> Any:
        return model(pixel_values=pixels).logits

    return of_torch("huggingface", make, forward, what, run, images, labels, "transformers")


PEERS = {"linen": linen, "timm": timm, "huggingface": huggingface}


def of_torch(
    name: str, make: Callable[[], Any], forward: Callable[[Any, Any], Any], what: str, run: Run,
    images: np.ndarray, labels: np.ndarray, package: str = "",
) -> Work:  # fmt: skip
    """The work of a PyTorch model. It runs eager, with a line, if it cannot be compiled."""
    for needed in ("torch", package or name):
        if importlib.util.find_spec(needed) is None:
            raise NotMeasured(f"{needed} is not installed")
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise NotMeasured("this PyTorch sees no GPU")
    device = "cuda" if on_gpu else "cpu"
    torch.set_num_threads(cores())
    torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 on a GPU
    try:
        model = make()
    except NotMeasured:
        raise
    except Exception as error:  # from packages that do not fit together
        reason = str(error).partition("\n")[0]
        raise NotMeasured(f"{type(error).__name__}: {reason}") from error
    same_size({name: np.empty(p.shape, np.bool_) for name, p in model.named_parameters()}, run)
    pixels, classes = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels)).long()
    pixels, classes = pixels.permute(0, 3, 1, 2).to(device), classes.to(device)
    if on_gpu:
        model = model.to(device, memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        torch.cuda.reset_peak_memory_stats()
    pixels = pixels if on_gpu else pixels.contiguous()

    def wait(_: Any) -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def high_water() -> dict[str, int]:
        return {"peak_device_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}

    def work(called: Any) -> Callable[[], Any]:
        half = torch.autocast(device, torch.bfloat16, enabled=run.config.model.dtype == "bfloat16")
        return torch_work(model, lambda: forward(called, pixels), classes, half, what)

    if on_gpu:
        compiled = work(torch.compile(model))
        try:
            wait(compiled())
            return Work(f"{name}, torch.compile", compiled, wait, high_water=high_water)
        except Exception as error:  # whatever a compiler can raise
            if isinstance(error, torch.OutOfMemoryError):
                raise
            print(f"{name} is measured eager: torch.compile failed ({type(error).__name__})")
    return Work(f"{name}, eager", work(model), wait, high_water=high_water)


def torch_work(
    model: Any, forward: Callable[[], Any], classes: Any, half: Any, what: str
) -> Callable[[], Any]:
    """One more training step, or forward pass, of a model of PyTorch's."""
    import torch

    if what == "forward":
        model.eval()

        @torch.inference_mode()
        def once() -> Any:
            with half:
                return forward()

        return once
    model.train()
    on_gpu = classes.device.type == "cuda"
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=on_gpu)
    cross_entropy = torch.nn.CrossEntropyLoss()

    def step() -> Any:
        with half:
            loss = cross_entropy(forward(), classes)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        adamw.step()
        return loss.detach()

    return step


def sizes(run: Run) -> ViTConfig:
    """The sizes of our model. Raises NotMeasured if it is not a ViT."""
    if not isinstance(run.model.config, ViTConfig):
        raise NotMeasured(f"{run.model.name} is no ViT")
    return run.model.config


def same_size(params: Any, run: Run) -> None:
    """Refuses to compare models of different sizes."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if size != run.model.num_params:
        raise NotMeasured(
            f"it is not the same model: {size:,} parameters, ours {run.model.num_params:,}"
        )
