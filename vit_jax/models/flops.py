"""Multiply-accumulates of a forward pass, counted from the sizes alone.

Every convolution and matrix product of the method is counted (projection, attention, MLP, head);
biases, normalisation and softmax are not. One multiply-accumulate is two FLOPs; a training step
costs about three forward passes.
"""

from collections.abc import Callable

from vit_jax.models import mixer, resnet
from vit_jax.models.mixer import MixerConfig
from vit_jax.models.model import Config
from vit_jax.models.resnet import ResNetConfig
from vit_jax.models.vit import ViTConfig


def vit_macs(c: ViTConfig) -> int:
    """Multiply-accumulates of one image through a ViT or a hybrid."""
    n, d = c.num_tokens, c.hidden_size
    patches = c.grid[0] * c.grid[1]
    embed = patches * c.patch_size**2 * c.channels * d
    if c.resnet_layers is not None:
        embed = resnet.hybrid_macs(c.resnet_layers, c.image_size, c.channels, c.patch_size, d)
    mlp = (3 if c.mlp == "swiglu" else 2) * d * c.mlp_dim
    block = n * d * 4 * d + 2 * n * n * d + n * mlp  # qkv+out, q·kᵀ and ·v, MLP
    pool = 0
    if c.pool == "map":
        pool = patches * 2 * d * d + 2 * d * d + 2 * patches * d + 2 * d * c.mlp_dim
    pre_logits = c.num_features * d if c.pre_logits else 0
    head = (d if c.pre_logits else c.num_features) * c.num_classes * (1 + c.distilled)
    return embed + c.num_layers * block + pool + pre_logits + head


_MACS: dict[type, Callable[..., int]] = {
    ViTConfig: vit_macs, MixerConfig: mixer.forward_macs, ResNetConfig: resnet.forward_macs,
}  # fmt: skip


def forward_macs(c: Config) -> int:
    """Multiply-accumulates of one image through the model (batch 1)."""
    return _MACS[type(c)](c)


def train_flops(c: Config) -> int:
    """FLOPs of forward and backward for one image: 6 per multiply-accumulate."""
    return 6 * forward_macs(c)
