"""The functional face of a module: parameters in, logits out.

A `Model` holds sizes and a graph, never arrays, so it can be closed over by any `jax.*` transform.
"""

import dataclasses
import functools
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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How images were shown to the model: pixels p in 0..255 become (p/255 - mean) / std.

    At evaluation the short side is resized to the model's over `crop` and the middle taken, or,
    with `squash`, the whole image resized whatever its aspect.
    """

    mean: float | tuple[float, ...] = 0.5  # one for all channels, or one each
    std: float | tuple[float, ...] = 0.5
    interpolation: str = "bilinear"  # bilinear | bicubic | area
    crop: float = 0.875  # side of the central crop over the short side
    squash: bool = False
    written: str = ""  # the whole pipeline, where a run's config states it

    def normalise(self, pixels: Array) -> Float[Array, "..."]:
        """uint8 pixels [..., C] to float32 in the model's value range ([-1, 1] by default)."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return pixels.astype(jnp.float32) * (1 / (255 * std)) - mean / std

    def per_channel(self, channels: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, one for each channel."""
        mean, std = (np.broadcast_to(values, channels).tolist() for values in (self.mean, self.std))
        return mean, std

    def pipeline(self, image_size: tuple[int, int]) -> str:
        """The evaluation pipeline in the words of `data.eval.pipeline`."""
        if self.written:
            return self.written
        if self.squash:
            return f"decode|resize({tuple(image_size)}, {self.interpolation!r})"
        short = round(max(image_size) / self.crop)
        return f"decode|resize_small({short}, {self.interpolation!r})|central_crop"


@dataclasses.dataclass(frozen=True)
class Model:
    """A named architecture with its sizes. Made by `create_model`."""

    name: str
    config: Config
    data_config: DataConfig = DataConfig()

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
