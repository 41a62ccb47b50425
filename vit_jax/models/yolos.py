"""YOLOS (arXiv 2106.00666): a ViT finds objects by tokens of its own, each of which predicts a
class and a box. They stand behind the patches, and have positions as these do."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models import vit
from vit_jax.models.data_config import IMAGENET
from vit_jax.models.detector_configs import YolosConfig
from vit_jax.models.family import (
    BACKBONE,
    BEFORE,
    CLASSES,
    OWN,
    RESIZED,
    Family,
    Names,
    Param,
    below,
)  # fmt: skip
from vit_jax.models.position import LearnedPositions
from vit_jax.models.vit import ViT
from vit_jax.models.vit_names import sized

LAYERS = 3  # of both heads
SIZES = {"tiny": (800, 1328), "small": (512, 864), "base": (800, 1344)}  # (height, width)


class TokensViT(ViT):
    """The ViT with tokens for objects, whose `pre_logits` is of no use."""

    def __init__(self, c: YolosConfig, rngs: Any):
        super().__init__(c, rngs)
        normal, width = nnx.initializers.normal(0.02), c.hidden_size
        shape = (c.num_queries, width)
        self.queries, self.query_positions = (
            nnx.Param(normal(rngs.params(), shape, jnp.float32)) for _ in range(2)
        )
        if c.mid_positions:
            for layer in range(1, c.num_layers):
                setattr(self, f"mid{layer:02d}", MidPositions(c, rngs))

    def _add_tokens(self, patches):
        tokens = super()._add_tokens(patches)
        own = (self.queries[...] + self.query_positions[...]).astype(tokens.dtype)
        own = jnp.broadcast_to(own, (tokens.shape[0], *own.shape))
        return jnp.concatenate([tokens, own], axis=1)

    def _added(self, empty: int) -> Float[Array, "layers tokens width"] | None:
        c: Any = self.config
        if not c.mid_positions:
            return None
        first = jnp.zeros((c.num_tokens, c.hidden_size))
        rest = [getattr(self, f"mid{layer:02d}")() for layer in range(1, c.num_layers)]
        return jnp.pad(jnp.stack([first, *rest]), ((0, 0), (0, empty), (0, 0)))


class MidPositions(LearnedPositions):
    """Positions of all tokens, added behind a block."""

    def __init__(self, c: YolosConfig, rngs: Any):
        super().__init__(*c.grid, c.hidden_size, c.num_prefix, rngs)
        normal = nnx.initializers.normal(0.02)
        self.queries = nnx.Param(normal(rngs.params(), (c.num_queries, c.hidden_size), jnp.float32))

    def __call__(self) -> Float[Array, "tokens width"]:
        grid = self.grid[...]
        patches = grid.reshape(-1, grid.shape[-1])
        prefix = [self.prefix[...]] if hasattr(self, "prefix") else []
        return jnp.concatenate([*prefix, patches, self.queries[...]])


class Yolos(nnx.Module):
    """The ViT, and a head of three layers each for classes and boxes.

    Logits are [batch, queries, classes + 1]; the last one is of no object.
    """

    def __init__(self, c: YolosConfig, rngs: Any):
        self.config = c
        self.backbone = TokensViT(dataclasses.replace(c, num_classes=0), rngs)
        width, how = c.hidden_size, {"dtype": jnp.dtype(c.dtype), "rngs": rngs}
        for name, outputs in (("class", c.num_classes + 1), ("box", 4)):
            for n in range(1, LAYERS):
                setattr(self, f"{name}{n}", nnx.Linear(width, width, **how))
            last = "head" if name == "class" else f"{name}{LAYERS}"
            setattr(self, last, nnx.Linear(width, outputs, dtype=jnp.float32, rngs=rngs))

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
        content: Float[Array, "batch 2"] | None = None,
    ) -> tuple[Float[Array, "batch queries outputs"], dict[str, Array]]:
        """As `Detr.__call__`. Padding is seen, as in the paper's code: `content` has no effect."""
        c = self.config
        _, out = self.backbone(
            images, key, return_weights=return_weights, gather=below(BACKBONE, gather)
        )
        out["pre_logits"] = x = out["encoded"][:, -c.num_queries :]
        outputs = []
        for first, last in (("class", "head"), ("box", f"box{LAYERS}")):
            y = x
            for n in range(1, LAYERS):
                y = nnx.relu(getattr(self, f"{first}{n}")(y))
            outputs.append(getattr(self, last)(y.astype(jnp.float32)))
        logits, out["boxes"] = outputs[0], nnx.sigmoid(outputs[1])
        out |= {"layers_logits": logits[None], "layers_boxes": out["boxes"][None]}
        return logits, out


def forward_macs(c: YolosConfig) -> int:
    """Multiply-accumulates of one image through the ViT, its further tokens and the heads."""
    d, q = c.hidden_size, c.num_queries
    heads = q * (2 * (LAYERS - 1) * d * d + d * (c.num_classes + 1 + 4))
    return vit.forward_macs(dataclasses.replace(c, num_classes=0)) + heads


def _published(of: dict[str, str]) -> dict[str, Any]:
    fields = sized({"size": of["size"], "patch": "16", "side": "224"})
    return fields | {
        "image_size": SIZES[of["size"]], "num_classes": 91, "layernorm_eps": 1e-12,
        "gelu": "exact", "mid_positions": of["size"] != "tiny",
    }  # fmt: skip


_MID = r"backbone/mid\d+"
ROWS = (
    Param("backbone/(queries|query_positions)", depth=BEFORE, at_init=OWN),
    Param(rf"{_MID}/(prefix|queries)", depth=BEFORE, at_init=OWN),
    Param(rf"{_MID}/grid", (None, None, "fsdp"), depth=BEFORE, at_init=RESIZED),
    Param("(class|box)[12]/kernel", ("fsdp", None), True, ((0,), (1,)), at_init=OWN),
    Param("(class|box)[12]/bias", at_init=OWN),
    Param("box3/kernel", (), True, at_init=OWN), Param("box3/bias", at_init=OWN),
    Param("head/kernel", ("fsdp", None), True, at_init=CLASSES),
    Param("head/bias", at_init=CLASSES),
)  # fmt: skip

FAMILY = Family(
    "yolos", YolosConfig, Yolos, forward_macs,
    params=(
        *(dataclasses.replace(row, path=f"backbone/({row.path})") for row in vit.FAMILY.params),
        *ROWS,
    ),
    names=(
        Names(
            r"yolos_(?P<size>tiny|small|base)", _published,
            tuple(f"yolos_{size}" for size in SIZES), IMAGENET,
        ),
        *(Names(f"yolos_({one.pattern})", one.fields, data=one.data) for one in vit.FAMILY.names),
    ),
    parts=("mid_positions",), backbone=vit.FAMILY, task="detection",
)  # fmt: skip
