"""The fields of the families that come with the package: each is the config key `model.FIELD`.

A config decides a model's parameters and its arithmetic. Nothing here imports JAX: `config.py`
makes the keys of a run from these fields, and launchers read it.
"""

import dataclasses

from vit_jax.fields import (
    COUNT,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    RATE,
    Fits,
    check_fields,
    field,
    one_of,
)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What every family has: images in, logits out. A run decides all of it, not the weights."""

    image_size: tuple[int, int] = field((224, 224), "pixels of a side, or (height, width)")
    channels: int = field(3, "channels of an image. Empty: those of the data set", COUNT)
    num_classes: int = field(
        1000, "outputs of the head. Empty: the classes of the data set. 0: no head", NATURAL
    )
    head_bias: float = field(
        0.0, "first bias of the head; negative for sigmoid losses with many classes"
    )
    dtype: str = field(
        "float32",
        "number format of the arithmetic; parameters are float32",
        one_of("float32", "bfloat16"),
    )

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class PatchConfig(ImageConfig):
    """What the families have that cut an image into patches and stack equal blocks."""

    hidden_size: int = field(768, "width of a token: D, or C of a Mixer", COUNT)
    num_layers: int = field(12, "L, the number of blocks", COUNT)
    mlp_dim: int = field(3072, "hidden width of a block's MLP", COUNT)
    patch_size: int = field(
        16, "P, the side of a patch in pixels of the image, of hybrids too", COUNT
    )
    gelu: str = field("tanh", "form of the GELU", one_of("tanh", "exact", "quick"))
    layernorm_eps: float = field(1e-6, "added to the variance in a LayerNorm", POSITIVE)
    dropout: float = field(
        0.0, "dropout after the positions and in both branches of every block", RATE, of_run=True
    )
    drop_path: float = field(
        0.0,
        "stochastic depth of the last block; from 0 in the first, it grows linearly",
        RATE,
        of_run=True,
    )
    scan: bool = field(False, "compile one block, and loop over the stacked layers", free=True)
    remat: str = field(
        "none", "what the backward pass computes again", one_of("none", "full", "dots"), free=True
    )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclasses.dataclass(frozen=True)
class ViTConfig(PatchConfig):
    """A ViT (arXiv 2010.11929), or a hybrid. Sizes as in table 1."""

    num_heads: int = field(12, "heads of attention; their number divides hidden_size", COUNT)
    pool: str = field(
        "cls", "what the head reads. cls_gap: class token and mean side by side",
        one_of("cls", "gap", "map", "cls_gap"),
    )  # fmt: skip
    posemb: str = field("learned", "kind of positions", one_of("learned", "sincos2d"))
    posemb_resize: str = field(
        "timm", "how positions are resized, by whoever made the weights",
        one_of("google", "timm_npz", "timm", "dinov2_reg", "huggingface", "dinov2"),
    )  # fmt: skip
    prefix_positions: str = field(
        "class", "tokens before the patches that have a position", one_of("none", "class", "all")
    )
    idle_class_token: bool = field(False, "a class token although `pool` does not read it")
    distilled: bool = field(False, "DeiT's second token and head (arXiv 2012.12877)")
    registers: int = field(0, "number of register tokens (arXiv 2309.16588)", NATURAL)
    resnet_layers: tuple[int, ...] | None = field(
        None, "units of each stage of a ResNet, or of a hybrid's; (): the stem alone"
    )
    groupnorm_eps: float = field(
        1e-6, "added to the variance in a GroupNorm of ResNets and hybrids", POSITIVE
    )
    standardization: str = field(
        "google",
        "how kernels of ResNets and hybrids are standardised",
        one_of("google", "bit", "timm", "none"),
    )
    pre_norm: bool = field(False, "LayerNorm before the encoder, as in CLIP")
    embed_bias: bool = field(True, "the projection of patches has a bias")
    qkv_bias: bool = field(True, "the projection to queries, keys and values has a bias")
    qk_norm: bool = field(False, "a LayerNorm of queries and of keys")
    mlp: str = field("dense", "the MLP of a block", one_of("dense", "swiglu"))
    layer_scale: float = field(0.0, "first value of LayerScale; 0 leaves it out", NOT_NEGATIVE)
    norm_after_pool: bool = field(False, "the last LayerNorm follows the pooling")
    pre_logits: bool = field(
        False, "a hidden layer with tanh in the head, for pre-training", of_run=True
    )
    attention_dropout: float = field(0.0, "dropout of attention weights", RATE, of_run=True)
    attention: str = field(
        "auto",
        "who computes attention; auto: cuDNN where it can, otherwise XLA",
        one_of("auto", "xla", "cudnn"),
        of_run=True,
    )

    def __post_init__(self):
        super().__post_init__()
        # A ResNet's features pad where patches cut, so only tiled images have a known meaning.
        hybrid = self.resnet_layers is not None
        check_patches(self.image_size, self.patch_size, remainder=not hybrid)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        if self.posemb == "sincos2d" and self.hidden_size % 4:
            raise ValueError(
                f"posemb 'sincos2d' needs hidden_size % 4 == 0, not {self.hidden_size}"
            )
        if self.resnet_layers is not None and self.patch_size % stride_of(self.resnet_layers):
            raise ValueError(
                f"patch_size of a hybrid is a multiple of its ResNet's stride, "
                f"{stride_of(self.resnet_layers)}, not {self.patch_size}"
            )
        if self.distilled and self.pool != "cls":
            raise ValueError(f"distilled needs pool 'cls', not {self.pool!r}")
        if self.attention == "cudnn" and self.attention_dropout:
            raise ValueError("attention 'cudnn' has no attention_dropout; use attention 'xla'")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention 'cudnn' needs dtype bfloat16")

    @property
    def class_token(self) -> bool:
        """Whether there is a class token."""
        return self.pool in ("cls", "cls_gap") or self.idle_class_token

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.class_token + self.distilled + self.registers

    @property
    def num_prefix_positions(self) -> int:
        """How many of them, from the first, have a position of their own."""
        with_position = {"none": 0, "class": self.class_token + self.distilled}
        return with_position.get(self.prefix_positions, self.num_prefix)

    @property
    def num_tokens(self) -> int:
        """Length of the encoder's sequence: class token, registers and patches."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def padded_tokens(self) -> int:
        """The same, made even for cuDNN's attention by an empty token, which is masked."""
        return self.num_tokens + (self.attention == "cudnn" and self.num_tokens % 2)

    @property
    def num_features(self) -> int:
        """Width of what the head reads."""
        return self.hidden_size * (2 if self.pool == "cls_gap" else 1)


@dataclasses.dataclass(frozen=True)
class MixerConfig(PatchConfig):
    """A Mixer (arXiv 2105.01601). Sizes as in table 1; `mlp_dim` is D_C."""

    tokens_mlp_dim: int = field(384, "D_S, hidden width of a Mixer's MLP over tokens", COUNT)

    def __post_init__(self):
        super().__post_init__()
        check_patches(self.image_size, self.patch_size)

    @property
    def num_tokens(self) -> int:
        """S, the number of patches."""
        return self.grid[0] * self.grid[1]


@dataclasses.dataclass(frozen=True)
class UnitsConfig(ImageConfig):
    """What all ResNets have: stages of units."""

    resnet_layers: tuple[int, ...] = field((3, 4, 6, 3), "units of each stage")
    groupnorm_eps: float = field(1e-5, "added to the variance in a GroupNorm", POSITIVE)
    standardization: str = field(
        "bit", "how kernels are standardised", one_of("google", "bit", "timm", "none")
    )
    remat: str = field(
        "none", "what the backward pass computes again", one_of("none", "full"), free=True
    )

    def __post_init__(self):
        super().__post_init__()
        for name, fits, wanted in (
            ("resnet_layers", lambda n: n >= 1, "the units of each stage, such as (3, 4, 6, 3)"),
            ("image_size", lambda n: n == 2, "(height, width), such as (224, 224)"),
        ):
            sizes = getattr(self, name)
            listed = isinstance(sizes, tuple | list) and fits(len(sizes))
            if not listed or not all(type(n) is int and n >= 1 for n in sizes):
                raise ValueError(f"{name} is {wanted}, not {sizes!r}")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(UnitsConfig):
    """A BiT ResNet (arXiv 1912.11370)."""

    width_factor: int = field(1, "factor of a ResNet's channels", COUNT)

    @property
    def hidden_size(self) -> int:
        """Width of what the head reads: 2048 at width factor 1."""
        return features_of(self.resnet_layers, self.width_factor)


@dataclasses.dataclass(frozen=True)
class ResNetV1Config(UnitsConfig):
    """A ResNet v1.5 (arXiv 1512.03385) with group norm."""

    stage_width: int = field(
        64, "width inside the first stage's units, doubled by every other; of the root, too", COUNT
    )
    standardization: str = field(
        "none", "how kernels are standardised", one_of("google", "bit", "timm", "none")
    )

    norm: str = field(
        "group", "what normalises: group norm, or batch norm made a scale and a bias that stay",
        one_of("group", "frozen"),
    )  # fmt: skip
    dilated: bool = field(False, "the last stage keeps its input's positions (DC5 of detectors)")

    @property
    def width_factor(self) -> float:
        """The width over that of a published ResNet."""
        return self.stage_width / STEM

    @property
    def hidden_size(self) -> int:
        """Width of what the head reads: 2048 at a stage_width of 64."""
        return features_of(self.resnet_layers, self.width_factor)


@dataclasses.dataclass(frozen=True)
class NonLocalConfig(ResNetV1Config):
    """A ResNet with non-local blocks (arXiv 1711.07971)."""

    affinity: str = field(
        "embedded", "how well two positions fit: f of the paper's equations 2 to 5",
        one_of("gaussian", "embedded", "dot", "concatenation"),
    )  # fmt: skip
    nonlocal_blocks: int = field(
        5, "number of non-local blocks", Fits(int, lambda n: n in (0, 1, 5, 10), "0, 1, 5 or 10")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dilated:
            raise ValueError("a ResNet with non-local blocks is not dilated here")
        if self.nonlocal_blocks and len(self.resnet_layers) < 4:
            raise ValueError(
                f"non-local blocks need resnet_layers of four stages, not {self.resnet_layers}"
            )


@dataclasses.dataclass(frozen=True)
class SasaConfig(ResNetV1Config):
    """A ResNet of stand-alone self-attention (arXiv 1906.05909)."""

    window: int = field(7, "k, the side of the neighbourhood of local attention; odd", COUNT)
    num_heads: int = field(8, "heads of attention; they divide the units' widths", COUNT)
    stem: str = field("attention", "the first layer", one_of("conv", "attention"))

    def __post_init__(self):
        super().__post_init__()
        if self.dilated:
            raise ValueError("a ResNet of stand-alone attention is not dilated here")
        if not self.window % 2:
            raise ValueError(f"window is odd, not {self.window}")
        if self.stage_width % (2 * self.num_heads):
            raise ValueError(f"num_heads divides {self.stage_width / 2:g}, not {self.num_heads}")
        if self.stem == "attention":
            check_patches(self.image_size, 4)


@dataclasses.dataclass(frozen=True)
class AxialResNetConfig(UnitsConfig):
    """A ResNet with axial attention (arXiv 2003.07853)."""

    stage_width: int = field(
        64, "width of the attention in the first stage, a multiple of 32; doubled by every other",
        COUNT,
    )  # fmt: skip
    expansion: int = field(2, "width of a unit's output over that of its attention", COUNT)
    num_heads: int = field(8, "heads of attention", COUNT)
    spans: tuple[int, ...] = field(
        (56, 56, 28, 14), "for each stage, how many positions attention sees in each direction"
    )
    standardization: str = field(
        "none", "how kernels are standardised", one_of("google", "bit", "timm", "none")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.stage_width % 32 or self.stage_width % (2 * self.num_heads):
            raise ValueError(
                f"stage_width is a multiple of 32 and of twice num_heads, {self.num_heads}, not "
                f"{self.stage_width}"
            )
        if self.stage_width * self.expansion % 4:
            raise ValueError(
                f"stage_width times expansion is a multiple of 4, not "
                f"{self.stage_width} x {self.expansion}"
            )
        if len(self.spans) < len(self.resnet_layers):
            raise ValueError(f"spans has a number for each stage, not {self.spans}")

    @property
    def hidden_size(self) -> int:
        """Width of what the head reads."""
        return self.stage_width * self.expansion * 2 ** (len(self.resnet_layers) - 1)


@dataclasses.dataclass(frozen=True)
class AxialViTConfig(ViTConfig):
    """An Axial-ViT (arXiv 2010.11929, appendix D.6): `num_layers` pairs of blocks."""

    pool: str = field("gap", "what the head reads: the mean of the patches", one_of("gap"))
    attention: str = field("xla", "who computes attention", one_of("xla"), of_run=True)

    def __post_init__(self):
        super().__post_init__()
        for name in ("registers", "distilled", "idle_class_token", "resnet_layers"):
            if getattr(self, name):
                raise ValueError(f"an Axial-ViT has no {name}, not {getattr(self, name)}")
        check_patches(self.image_size, self.patch_size)


STEM = 64  # channels of a ResNet's root at width factor 1, and inside the first stage's units


def features_of(layers: tuple[int, ...], width_factor: float) -> int:
    """Channels of a backbone's features: 256 after the first stage, doubled by every other."""
    return round(STEM * width_factor) * (4 * 2 ** (len(layers) - 1) if layers else 1)


def stride_of(layers: tuple[int, ...]) -> int:
    """Pixels of the image for one of the features: 4 for the root, 2 for each stage but the first.

    With padding of either kind the features' sides are the image's over this, rounded up.
    """
    return 4 * 2 ** max(len(layers) - 1, 0)


def check_patches(image_size: tuple[int, int], patch_size: int, *, remainder: bool = False) -> None:
    """Images that patches tile, or with `remainder` images of at least one patch each way.

    Raises ValueError with the sizes that would work.
    """
    if any(side < patch_size or (side % patch_size and not remainder) for side in image_size):
        down = tuple(max(1, side // patch_size) * patch_size for side in image_size)
        up = tuple(max(1, -(-side // patch_size)) * patch_size for side in image_size)
        raise ValueError(
            f"image_size {tuple(image_size)} is not divisible by patch_size {patch_size}; "
            f"{' or '.join(map(str, sorted({down, up})))} would work"
        )
