"""The fields of the detectors, each the config key `model.FIELD`, beside those of their backbones
(`configs.py`). Nothing here imports JAX.
"""

import dataclasses

from vit_jax.fields import COUNT, NATURAL, RATE, field, one_of
from vit_jax.models.configs import ResNetV1Config, ViTConfig, stride_of

# What a DETR on a ResNet never trains, as pattern for `optimizer.freeze` (arXiv 2005.12872, A.4).
NEVER_TRAINED = "backbone/backbone/(root|stage1|.*norm).*"

LEARNED = 50  # rows and columns that have learned positions in a DETR


def feature_grid(config: ResNetV1Config) -> tuple[int, int]:
    """Rows and columns of the last features of a ResNet."""
    stride = stride_of(config.resnet_layers) // (2 if config.dilated else 1)
    return -(-config.image_size[0] // stride), -(-config.image_size[1] // stride)


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """What a DETR (arXiv 2005.12872) has beside its backbone: a transformer, and queries."""

    num_queries: int = field(100, "objects that a detector finds in an image, at most", COUNT)
    detector_width: int = field(256, "width of the detector's transformer; divisible by 4", COUNT)
    detector_heads: int = field(8, "heads of its attention; they divide its width", COUNT)
    detector_mlp_dim: int = field(2048, "hidden width of its MLPs", COUNT)
    detector_encoder: int = field(6, "layers of its encoder, on the backbone's features", NATURAL)
    detector_decoder: int = field(6, "layers of its decoder, on the queries", COUNT)
    detector_dropout: float = field(0.1, "dropout in its layers", RATE, of_run=True)
    detector_norm: str = field(
        "post", "whether its layers normalise before or after them, as in the paper",
        one_of("pre", "post"),
    )  # fmt: skip
    map_positions: str = field(
        "sine", "positions of features, added in every layer", one_of("sine", "learned")
    )
    queries: str = field(
        "learned",
        "what a query is: a learned vector; a learned point that its box is relative to; or a box "
        "around such a point, which each layer refines by the features in it",
        one_of("learned", "points", "refined"),
    )  # fmt: skip

    def check_detector(self, grid: tuple[int, ...]) -> None:
        """Raises ValueError for sizes that do not fit each other. `grid`: rows and columns of the
        backbone's features."""
        if self.map_positions == "learned" and max(grid) > LEARNED:
            raise ValueError(
                f"map_positions 'learned' has {LEARNED} rows and columns at most, the features "
                f"{grid[0]} and {grid[1]}: take 'sine'"
            )
        if self.detector_width % 4 or self.detector_width % self.detector_heads:
            raise ValueError(
                f"detector_width is divisible by 4 and by detector_heads, {self.detector_heads}, "
                f"not {self.detector_width}"
            )


@dataclasses.dataclass(frozen=True)
class DetrViTConfig(DetectorConfig, ViTConfig):
    """A DETR on the patches of a ViT or of a hybrid."""

    def __post_init__(self):
        super().__post_init__()
        self.check_detector(self.grid)


@dataclasses.dataclass(frozen=True)
class DetrResNetConfig(DetectorConfig, ResNetV1Config):
    """A DETR on the features of a ResNet."""

    def __post_init__(self):
        super().__post_init__()
        self.check_detector(feature_grid(self))


@dataclasses.dataclass(frozen=True)
class YolosConfig(ViTConfig):
    """A YOLOS (arXiv 2106.00666): a ViT with a token for each object that it may find."""

    num_queries: int = field(100, "objects that a detector finds in an image, at most", COUNT)
    mid_positions: bool = field(False, "positions are added behind every block but the last, too")

    def __post_init__(self):
        super().__post_init__()
        for name in ("pre_norm", "resnet_layers", "norm_after_pool"):
            if getattr(self, name) not in (None, False):
                raise ValueError(f"{name} is {getattr(self, name)!r}, which a YOLOS does not have")
        if self.posemb != "learned":
            raise ValueError(f"a YOLOS has posemb 'learned', not {self.posemb!r}")

    @property
    def num_tokens(self) -> int:
        """Length of the encoder's sequence: prefix, patches, and one for each object."""
        return super().num_tokens + self.num_queries
