"""The fields of a masked autoencoder, each the config key `model.FIELD`, beside those of its
encoder (`configs.py`). Nothing here imports JAX.
"""

import dataclasses
from typing import Any

from vit_jax.fields import COUNT, RATE, Fits, field, one_of
from vit_jax.models.configs import ViTConfig, check_patches

NONE = Fits(int, lambda n: n == 0, "0: a masked autoencoder has no head, and task=masked trains it")


@dataclasses.dataclass(frozen=True)
class MaeConfig(ViTConfig):
    """A masked autoencoder (arXiv 2111.06377): a ViT that sees some of the patches, and a decoder
    that predicts the pixels of the others."""

    num_classes: int = field(0, "there is no head", NONE)
    pool: str = field("cls", "what stands for the image: the class token", one_of("cls"))
    posemb: str = field("sincos2d", "positions are fixed", one_of("sincos2d"))
    decoder_width: int = field(512, "width of the decoder's tokens; divisible by 4", COUNT)
    decoder_layers: int = field(8, "blocks of the decoder", COUNT)
    decoder_heads: int = field(16, "heads of its attention; they divide its width", COUNT)
    decoder_mlp_dim: int = field(2048, "hidden width of its MLPs", COUNT)
    mask_ratio: float = field(
        0.75, "share of the patches that the encoder does not see", RATE, of_run=True
    )
    norm_pixels: bool = field(
        True, "the pixels to predict are those of a patch less their mean, over their deviation"
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("pre_norm", "resnet_layers", "norm_after_pool", "registers", "distilled"):
            if getattr(self, name):
                raise ValueError(f"a masked autoencoder has no {name}, not {getattr(self, name)}")
        if self.prefix_positions != "class":
            raise ValueError(f"prefix_positions is 'class', not {self.prefix_positions!r}")
        check_patches(self.image_size, self.patch_size)
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width is divisible by 4 and by decoder_heads, {self.decoder_heads}, not "
                f"{self.decoder_width}"
            )
        if self.num_visible < 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio:g} leaves none of {self.num_patches} patches visible"
            )

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees, rounded down as in the authors' code."""
        return int(self.num_patches * (1 - self.mask_ratio))

    @property
    def num_tokens(self) -> int:
        """Length of the encoder's sequence: the class token and the visible patches."""
        return self.num_prefix + self.num_visible

    @property
    def encoder(self) -> ViTConfig:
        """The encoder as a ViT of all patches. Its positions are a table, which fine-tuning
        trains."""
        return self._vit(posemb="learned")

    @property
    def decoder(self) -> ViTConfig:
        """The decoder's blocks, as those of a ViT of all patches."""
        return self._vit(
            hidden_size=self.decoder_width, num_layers=self.decoder_layers,
            num_heads=self.decoder_heads, mlp_dim=self.decoder_mlp_dim, drop_path=0.0,
        )  # fmt: skip

    def _vit(self, **others: Any) -> ViTConfig:
        fields = {row.name: getattr(self, row.name) for row in dataclasses.fields(ViTConfig)}
        return ViTConfig(**(fields | others))
