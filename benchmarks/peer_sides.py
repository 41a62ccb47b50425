"""The peers that `vit bench --against=…` and train_step.py measure: the same network, trained with
AdamW on the same loss or run forward, on one device and on normalised float32 images.

linen: plain flax.linen and optax (linen_vit.py), compiled ahead of time. timm and huggingface:
PyTorch. They run eager on a CPU; on a GPU under `torch.compile`, channels last, with fused AdamW,
and in autocast if bfloat16 is asked for. A peer that is not installed, or whose model has another
number of parameters than ours, is left out with the reason.
"""

import dataclasses
import functools
import importlib.util
import os
import re
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
from vit_jax.models.detector_configs import DetrResNetConfig
from vit_jax.paths import path_of
from vit_jax.training.run import Run

Batch = dict[str, np.ndarray]


def linen(what: str, run: Run, batch: Batch) -> Work:
    """flax.linen's side."""
    c = vit_sizes(run)
    model = LinenViT(
        hidden_size=c.hidden_size, num_layers=c.num_layers, num_heads=c.num_heads,
        mlp_dim=c.mlp_dim, patch_size=c.patch_size, num_classes=c.num_classes,
        dtype=jnp.dtype(c.dtype),
    )  # fmt: skip
    shown, classes = jax.device_put((batch["image"], batch["label"]))
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


@dataclasses.dataclass(frozen=True)
class Torch:
    """A model of PyTorch's, and what is asked of it."""

    package: str
    make: Callable[[Run], Any]
    forward: Callable[[Any, Any], Any]  # (model, pixels) -> output
    targets: Callable[[Batch, str], Any]  # (batch, device) -> what the loss wants
    loss: Callable[[Any, Any, Any], Any]  # (model, pixels, targets) -> scalar


def labels(batch: Batch, device: str) -> Any:
    """The classes of the images."""
    import torch

    return torch.from_numpy(np.array(batch["label"])).long().to(device)


def cross_entropy(logits: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """The loss of a classifier, by the function of (model, pixels) that returns its logits."""

    def loss(model: Any, pixels: Any, targets: Any) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(logits(model, pixels), targets)

    return loss


def timm_vit(run: Run) -> Any:
    """timm's VisionTransformer."""
    from timm.models.vision_transformer import VisionTransformer

    c = vit_sizes(run)
    return VisionTransformer(
        img_size=c.image_size, patch_size=c.patch_size, in_chans=c.channels,
        num_classes=c.num_classes, embed_dim=c.hidden_size, depth=c.num_layers,
        num_heads=c.num_heads, mlp_ratio=c.mlp_dim / c.hidden_size,
        act_layer=f"gelu{'_tanh' * (c.gelu == 'tanh')}",
    )  # fmt: skip


def timm_logits(model: Any, pixels: Any) -> Any:
    """Logits of timm's classifier."""
    return model(pixels)


def huggingface_vit(run: Run) -> Any:
    """Transformers' ViTForImageClassification, with PyTorch's fused attention."""
    from transformers import ViTConfig as Config
    from transformers import ViTForImageClassification

    c = vit_sizes(run)
    return ViTForImageClassification(
        Config(
            hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads, intermediate_size=c.mlp_dim,
            hidden_act=f"gelu{'_pytorch_tanh' * (c.gelu == 'tanh')}",
            image_size=c.image_size, patch_size=c.patch_size, num_channels=c.channels,
            num_labels=c.num_classes, attn_implementation="sdpa",
        )
    )  # fmt: skip


def huggingface_logits(model: Any, pixels: Any) -> Any:
    """Logits of Transformers' classifier."""
    return model(pixel_values=pixels).logits


def huggingface_detr(run: Run) -> Any:
    """Transformers' DetrForObjectDetection on timm's ResNet, with auxiliary losses.

    Transformers 5 means to freeze the root and the first stage, as the paper does, but looks for
    "resnet" in the name of timm's wrapper, and freezes nothing. They are frozen here.
    """
    from transformers import DetrConfig, DetrForObjectDetection

    c = run.model.config
    backbone = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}.get(c.resnet_layers)
    if backbone is None or c.queries != "learned" or c.detector_norm != "post":
        raise NotMeasured("Transformers has no such detector")
    model = DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=True, backbone=backbone, use_pretrained_backbone=False,
            dilation=c.dilated, num_queries=c.num_queries, d_model=c.detector_width,
            encoder_layers=c.detector_encoder, decoder_layers=c.detector_decoder,
            encoder_ffn_dim=c.detector_mlp_dim, decoder_ffn_dim=c.detector_mlp_dim,
            encoder_attention_heads=c.detector_heads, decoder_attention_heads=c.detector_heads,
            dropout=0.0, attention_dropout=0.0, num_labels=c.num_classes, auxiliary_loss=True,
        )
    )  # fmt: skip
    for name, parameter in model.model.backbone.named_parameters():
        parameter.requires_grad_(re.search(r"layer[234]", name) is not None)
    return model


def huggingface_boxes(model: Any, pixels: Any) -> Any:
    """Boxes of Transformers' detector."""
    return model(pixel_values=pixels).pred_boxes


def objects(batch: Batch, device: str) -> Any:
    """The objects of the images, as Transformers takes them."""
    import torch

    found = []
    for boxes, classes in zip(batch["boxes"], batch["class"], strict=True):
        low, high = boxes[classes >= 0, :2], boxes[classes >= 0, 2:]
        centred = np.concatenate([(low + high) / 2, high - low], axis=1)
        found.append({
            "class_labels": torch.from_numpy(classes[classes >= 0]).long().to(device),
            "boxes": torch.from_numpy(centred).to(device),
        })  # fmt: skip
    return found


def set_loss(model: Any, pixels: Any, targets: Any) -> Any:
    """The loss of Transformers' detector, with its own matching."""
    return model(pixel_values=pixels, labels=targets).loss


TIMM = Torch("timm", timm_vit, timm_logits, labels, cross_entropy(timm_logits))
CLASSIFIER = Torch(
    "transformers", huggingface_vit, huggingface_logits, labels, cross_entropy(huggingface_logits)
)
DETECTOR = Torch("transformers", huggingface_detr, huggingface_boxes, objects, set_loss)


def timm(what: str, run: Run, batch: Batch) -> Work:
    """timm's side."""
    return of_torch("timm", TIMM, what, run, batch)


def huggingface(what: str, run: Run, batch: Batch) -> Work:
    """Transformers' side."""
    detects = isinstance(run.model.config, DetrResNetConfig)
    return of_torch("huggingface", DETECTOR if detects else CLASSIFIER, what, run, batch)


PEERS = {"linen": linen, "timm": timm, "huggingface": huggingface}


def of_torch(name: str, of: Torch, what: str, run: Run, batch: Batch) -> Work:
    """The work of a PyTorch model. It runs eager, with a line, if it cannot be compiled."""
    for needed in ("torch", of.package):
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
        model = of.make(run)
    except NotMeasured:
        raise
    except Exception as error:  # from packages that do not fit together
        reason = str(error).partition("\n")[0]
        raise NotMeasured(f"{type(error).__name__}: {reason}") from error
    same_size({name: np.empty(p.shape, np.bool_) for name, p in model.named_parameters()}, run)
    pixels = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2).to(device)
    targets = of.targets(batch, device)
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
        forward, loss = (functools.partial(f, called, pixels) for f in (of.forward, of.loss))
        return torch_work(model, forward, functools.partial(loss, targets), half, what)

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
    model: Any, forward: Callable[[], Any], loss: Callable[[], Any], half: Any, what: str
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
    trained = list(model.parameters())
    adamw = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4, fused=trained[0].is_cuda)

    def step() -> Any:
        with half:
            found = loss()
        adamw.zero_grad(set_to_none=True)
        found.backward()
        adamw.step()
        return found.detach()

    return step


def vit_sizes(run: Run) -> ViTConfig:
    """The sizes of our model. Raises NotMeasured if it is not a ViT."""
    if not isinstance(run.model.config, ViTConfig):
        raise NotMeasured(f"{run.model.name} is no ViT")
    return run.model.config


def same_size(params: Any, run: Run) -> None:
    """Refuses to compare models of different sizes. Numbers of frozen norms, which are no
    parameters elsewhere, are not counted."""
    frozen = getattr(run.model.config, "norm", "") == "frozen"
    leaves, _ = jax.tree_util.tree_flatten_with_path(run.model.abstract_params)
    sizes = {path_of(keys): leaf.size for keys, leaf in leaves}
    not_counted = re.compile(r"backbone/.*norm.*" if frozen else "")
    ours = sum(size for path, size in sizes.items() if not not_counted.fullmatch(path))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if size != ours:
        raise NotMeasured(f"it is not the same model: {size:,} parameters, ours {ours:,}")
