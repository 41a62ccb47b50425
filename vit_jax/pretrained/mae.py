"""The decoder of a masked autoencoder, beside its encoder: facebookresearch's state dicts, and
Transformers' `ViTMAEForPreTraining`.

The encoder has timm's names, or Transformers' (`timm.py`, `huggingface.py`), and so have the blocks
of the decoder. Weights are read without their decoder, as a ViT, unless it is asked for.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from vit_jax.models.model import Model
from vit_jax.models.registry import name_of
from vit_jax.pretrained.given import Unstated
from vit_jax.pretrained.opened import Weights, listed_params
from vit_jax.pretrained.rows import BATCHED, POSITIONS, Row, row, torch_dense, torch_norm
from vit_jax.pretrained.shown import BLOCK, Shown

PAPERS = {512: 16}  # width: heads (section 4.1)
UNUSED = "the decoder of a masked autoencoder"


def has_decoder(names: Iterable[str], pre: str = "") -> bool:
    """Whether there is one among the names, behind a prefix."""
    return {f"{pre}mask_token", f"{pre}decoder_embed.weight", f"{pre}decoder_pred.weight"} <= {
        *names
    }


def decoder_rows(blocks: Iterable[Row], pre: str = "") -> list[Row]:
    """The decoder's rows. `blocks` are those of an encoder's blocks, but with the names of the
    decoder's tensors; `pre` is the prefix of the others."""
    block = BLOCK.replace("encoder", "decoder")
    return [
        *(
            dataclasses.replace(one, ours=tuple(path.replace(BLOCK, block) for path in one.ours))
            for one in blocks if one.ours[0].startswith(BLOCK)
        ),
        row("mask_token", f"{pre}mask_token", BATCHED),
        row(
            ("decoder_pos_embed/grid", "decoder_pos_embed/prefix"), f"{pre}decoder_pos_embed",
            POSITIONS,
        ),
        *torch_dense("decoder_embed", f"{pre}decoder_embed"),
        *torch_norm("decoder_norm", f"{pre}decoder_norm"),
        *torch_dense("decoder_pred", f"{pre}decoder_pred"),
    ]  # fmt: skip


def decoder_fields(
    shown: Shown, heads: int | None, known: dict[str, Any], norm_pixels: bool
) -> dict[str, Any]:
    """The fields of a masked autoencoder that its encoder does not have, and those that it fixes.
    `heads` and `norm_pixels` are those that the file states; the user's word goes before.

    Raises Unstated if nobody says the number of heads, and the width is not the paper's.
    """
    block = BLOCK.replace("encoder", "decoder")
    said = known.get("run", {}) | known
    width = shown["mask_token"][-1]
    heads = said.get("decoder_heads") or heads or PAPERS.get(width)
    if heads is None:
        raise Unstated(
            f"{shown.tensors.path} does not say how many heads its decoder has, and {width} is no "
            "width of a published one", "decoder_heads",
        )  # fmt: skip
    return {
        "decoder_width": width, "decoder_heads": heads,
        "decoder_layers": shown.layers(f"{block}/norm1/scale"),
        "decoder_mlp_dim": shown[f"{block}/mlp/fc1/kernel"][-1],
        "norm_pixels": said.get("norm_pixels", norm_pixels),
        "num_classes": 0, "pool": "cls", "posemb": "sincos2d", "idle_class_token": False,
    }  # fmt: skip


def encoder_of(model: Model) -> Model:
    """A masked autoencoder without its decoder: a ViT without a head."""
    config = model.config.encoder
    return dataclasses.replace(model, name=name_of(config), config=config)


def as_encoder(weights: Weights) -> Weights:
    """A masked autoencoder's weights without its decoder: a ViT without a head. All others stay as
    they are."""
    if weights.model.family.encoder is None:
        return weights
    model = encoder_of(weights.model)
    kept = {path: weights.shapes[path] for path in listed_params(model)}
    left = {path: UNUSED for path in weights.shapes if path not in kept}
    return dataclasses.replace(weights, model=model, shapes=kept, unused=weights.unused | left)
