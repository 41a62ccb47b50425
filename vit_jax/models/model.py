"""The functional face of a module: parameters in, logits out.

A `Model` holds sizes and a graph, never arrays, so it can be closed over by any `jax.*` transform.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models import mixer, resnet, vit
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config, Family
from vit_jax.models.layers import ParamKeys

Params = dict[str, Any]  # nested plain dict of arrays, the leaves float32

# The families, by the class of their config. One of the user's own joins when it is first named.
FAMILIES: dict[type, Family] = {
    family.config: family for family in (vit.FAMILY, mixer.FAMILY, resnet.FAMILY)
}

# What makes of logits what is told of an image: a distribution over the classes, a probability of
# each class by itself, or (of a regression) the values as they are.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "none": lambda logits: logits,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A named architecture with its sizes, how images were shown to it, and what its logits mean
    (one of `ACTIVATIONS`; the loss decides). Made by `create_model`."""

    name: str
    config: Config
    data_config: DataConfig = dataclasses.field(default_factory=DataConfig)
    activation: str = "softmax"

    @property
    def output_activation(self) -> str:
        """`activation`; of a single output the sigmoid, as its softmax is 1 for any image."""
        single = self.config.num_classes == 1 and self.activation == "softmax"
        return "sigmoid" if single else self.activation

    @property
    def family(self) -> Family:
        return FAMILIES[type(self.config)]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image through the model. Every convolution and matrix product
        counts; biases, normalisation and softmax do not. One is two FLOPs, and a training step
        costs about three forward passes."""
        return self.family.macs(self.config)

    def _module(self, key: Key[Array, ""]) -> nnx.Module:
        return self.family.module(self.config, ParamKeys(key))

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
