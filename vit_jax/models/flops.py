"""Multiply-accumulates of a forward pass, counted from the sizes alone.

Every matrix product of the method is counted (projection, attention, MLP, head); biases,
normalisation and softmax are not. One multiply-accumulate is two FLOPs; a training step costs
about three forward passes.
"""

from vit_jax.models.vit import ViTConfig


def forward_macs(c: ViTConfig) -> int:
    """Multiply-accumulates of one image through the model (batch 1)."""
    n, d = c.num_tokens, c.hidden_size
    patches = c.grid[0] * c.grid[1]
    embed = patches * c.patch_size**2 * c.channels * d
    block = n * d * 4 * d + 2 * n * n * d + 2 * n * d * c.mlp_dim  # qkv+out, q·kᵀ and ·v, MLP
    pool = 0
    if c.pool == "map":
        pool = patches * 2 * d * d + 2 * d * d + 2 * patches * d + 2 * d * c.mlp_dim
    return embed + c.num_layers * block + pool + (d * d if c.pre_logits else 0) + d * c.num_classes


def train_flops(c: ViTConfig) -> int:
    """FLOPs of forward and backward for one image: 6 per multiply-accumulate."""
    return 6 * forward_macs(c)
