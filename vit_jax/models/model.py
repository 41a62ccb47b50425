"""The functional face of a module: parameters in, logits out.

A `Model` holds sizes and a graph, never arrays, so it can be closed over by any `jax.*` transform.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.mixer import Mixer, MixerConfig
from vit_jax.models.resnet import ResNet, ResNetConfig
from vit_jax.models.vit import ViT, ViTConfig

Params = dict[str, Any]  # nested plain dict of arrays, the leaves float32
Config = ViTConfig | MixerConfig | ResNetConfig

# A family: the config that holds its sizes, and the module that is built from it.
FAMILIES: dict[type, Callable[..., nnx.Module]] = {
    ViTConfig: ViT,
    MixerConfig: Mixer,
    ResNetConfig: ResNet,
}


# What makes of logits what is told of an image: a distribution over the classes, a probability of
# each class by itself, or (of a regression) the values as they are.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "none": lambda logits: logits,
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How images were shown to the model: pixels p in 0..255 become (p/255 - mean) / std.

    At evaluation the image is resized to the model's size over `crop`, its aspect kept or, with
    `squash`, whatever that is, and the middle taken.
    """

    mean: float | tuple[float, ...] = 0.5  # one for all channels, or one each
    std: float | tuple[float, ...] = 0.5
    interpolation: str = "bilinear"  # one of `FILTERS` in data/ops.py
    crop: float = 0.875  # side of the central crop over that of the resized image, rounded down
    squash: bool = False
    floor: bool = False  # where the crop begins: `central_crop` in data/ops.py
    image_size: tuple[int, int] | None = None  # shown, where that is not the model's
    written: str = ""  # the whole pipeline, where a run's config states it

    def __post_init__(self):  # JSON has no tuples
        for field, value in vars(self).items():
            object.__setattr__(self, field, tuple(value) if isinstance(value, list) else value)

    def normalise(self, pixels: Array) -> Float[Array, "..."]:
        """uint8 pixels [..., C] to float32 in the model's value range ([-1, 1] by default)."""
        mean, std = (np.asarray(v, np.float32) for v in self.per_channel(pixels.shape[-1]))
        return pixels.astype(jnp.float32) * (1 / (255 * std)) - mean / std

    def per_channel(self, channels: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, one for each channel; over other channels than those that
        they were taken over, their means."""
        mean, std = (np.atleast_1d(np.asarray(v, float)) for v in (self.mean, self.std))
        wanted = [v if len(v) == channels else v.mean().repeat(channels) for v in (mean, std)]
        return wanted[0].tolist(), wanted[1].tolist()

    def pipeline(self, image_size: tuple[int, int]) -> str:
        """The evaluation pipeline in the words of `data.eval.pipeline`."""
        if self.written:
            return self.written
        height, width = self.resized(image_size)
        size = height if height == width and not self.squash else (height, width)
        resize = f"resize{'' if self.squash else '_small'}({size}, {self.interpolation!r})"
        crop = "|central_crop" + "(floor=True)" * self.floor
        return f"decode|{resize}" + crop * (not self.squash or (height, width) != tuple(image_size))

    def resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) before the crop; that of images that are no squares covers it (timm's rule)."""
        return math.floor(image_size[0] / self.crop), math.floor(image_size[1] / self.crop)


def crop_of(side: int, resized: int) -> float:
    """The `DataConfig.crop` that takes `side` out of a side of `resized`: the usual one, or the
    shortest decimal."""
    decimals = [side * 10**digits // resized / 10**digits for digits in range(1, 17)]
    crops = (crop for crop in (DataConfig.crop, *decimals) if crop)
    return next(crop for crop in crops if math.floor(side / crop) == resized)


@dataclasses.dataclass(frozen=True)
class Model:
    """A named architecture with its sizes, how images were shown to it, and what its logits mean
    (one of `ACTIVATIONS`; the loss decides). Made by `create_model`."""

    name: str
    config: Config
    data_config: DataConfig = DataConfig()
    activation: str = "softmax"

    @property
    def output_activation(self) -> str:
        """`activation`; of a single output the sigmoid, as its softmax is 1 for any image."""
        single = self.config.num_classes == 1 and self.activation == "softmax"
        return "sigmoid" if single else self.activation

    def _module(self, key: Key[Array, ""]) -> nnx.Module:
        return FAMILIES[type(self.config)](self.config, nnx.Rngs(params=key))

    @functools.cached_property
    def _graph(self) -> tuple[Any, Params]:
        # The key is made inside, so that building a model touches no device.
        abstract = nnx.eval_shape(lambda: self._module(jax.random.key(0)))
        graph, params = nnx.split(abstract, nnx.Param)
        return graph, nnx.to_pure_dict(params)

    @functools.cached_property
    def _compiled_init(self):
        return jax.jit(self.init_fn)

    @property
    def abstract_params(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s; nothing is allocated."""
        return self._graph[1]

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params))

    def init_fn(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters; a pure function, to be compiled with the shardings wanted."""
        return nnx.to_pure_dict(nnx.state(self._module(key), nnx.Param))

    def init(self, seed: int = 0) -> Params:
        """Fresh parameters on the default device: a plain dict of float32 arrays."""
        return self._compiled_init(jax.random.key(seed))

    def apply(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        attention_weights: bool = False,
        gather=None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """Logits (float32) and every intermediate by name.

        Args:
          params: plain dict, as `init` gives it.
          images: float32 in the model's value range (`data_config.normalise`).
          train: dropout and stochastic depth are on; needs `key`.
          key: of this step, as `jax.random.key(...)`.
          attention_weights: also return `attention00`, … (batch, heads, tokens, tokens).
          gather: maps one block's parameters to those it computes with (parallel/sharding.py).

        Returns:
          logits (batch, classes) and a dict with `patches` (batch, N, D), `block00` …,
          `encoded` (batch, tokens, D) and `pre_logits` (batch, D).

        Raises:
          ValueError: the images' shape is not the model's, they are integers, or train without a
            key.
        """
        expected = (*self.config.image_size, self.config.channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"{self.name} takes images [batch, {expected[0]}, {expected[1]}, {expected[2]}], "
                f"got {list(images.shape)}"
            )
        if jnp.issubdtype(images.dtype, jnp.integer):
            raise ValueError(
                f"images are {images.dtype}, the model takes float32 in its value range: "
                "model.data_config.normalise(images)"
            )
        if train and key is None:
            raise ValueError("train=True needs a key: jax.random.key(seed)")
        module = nnx.merge(self._graph[0], params)
        return module(
            images, key if train else None, return_weights=attention_weights, gather=gather
        )
