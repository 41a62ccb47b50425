"""The functional face of a module: parameters in, logits out.

A `Model` holds sizes and a graph, never arrays, so any `jax.*` transform can close over it. Some
layers have gradients of their own, so forward-mode differentiation is not among them.
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

from vit_jax.models import (
    axial_resnet,
    axial_vit,
    bit,
    detr,
    mae,
    mixer,
    nonlocal_blocks,
    resnet_v1,
    sasa,
    vit,
    yolos,
)
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config, Family
from vit_jax.models.kernels import Gpu, gpu_of, refusal
from vit_jax.models.layers import ParamKeys

Params = dict[str, Any]  # nested plain dict of float32 arrays

# The families, by the class of their config. A user's family is added when it is first named.
FAMILIES: dict[type, Family] = {
    family.config: family
    for family in (
        vit.FAMILY,
        mixer.FAMILY,
        bit.FAMILY,
        resnet_v1.FAMILY,
        nonlocal_blocks.FAMILY,
        sasa.FAMILY,
        axial_resnet.FAMILY,
        axial_vit.FAMILY,
        detr.VIT,
        detr.RESNET,
        yolos.FAMILY,
        mae.FAMILY,
    )
}

# Functions from logits to predictions: a distribution over the classes, an independent probability
# of each class, or the values as they are (regression).
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "none": lambda logits: logits,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A named architecture with its sizes, the value range of its images, and the meaning of its
    logits (a key of `ACTIVATIONS`, which follows from the loss). Made by `create_model`."""

    name: str
    config: Config
    data_config: DataConfig = dataclasses.field(default_factory=DataConfig)
    activation: str = "softmax"

    @property
    def output_activation(self) -> str:
        """`activation`, but sigmoid for a single output, because its softmax is always 1."""
        single = self.config.num_classes == 1 and self.activation == "softmax"
        return "sigmoid" if single else self.activation

    @property
    def family(self) -> Family:
        return FAMILIES[type(self.config)]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image through the model: convolutions and matrix products,
        without biases, normalisation and softmax. Each is two FLOPs. A training step takes about
        three times as many as a forward pass."""
        return self.family.macs(self.config)

    def on(self, gpu: Gpu | None) -> "Model":
        """The model as it is compiled for such GPUs, or for what is none: its attention is no
        longer `auto`."""
        if getattr(self.config, "attention", "") != "auto":
            return self
        attention = "xla" if refusal(self.config, gpu) else "cudnn"
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, attention=attention)
        )

    @functools.cached_property
    def _here(self) -> "Model":
        return self.on(gpu_of(jax.devices()[0]))

    def _module(self, key: Key[Array, ""]) -> nnx.Module:
        return self.family.module(self.config, ParamKeys(key))

    @functools.cached_property
    def _graph(self) -> tuple[Any, Params]:
        # The key is created inside `eval_shape`, so that building a model uses no device.
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
        """Random parameters: a pure function. Compile it with the shardings to use."""
        return nnx.to_pure_dict(nnx.state(self._module(key), nnx.Param))

    def init(self, seed: int = 0) -> Params:
        """Random parameters on the default device: a plain dict of float32 arrays."""
        return self._compiled_init(jax.random.key(seed))

    def prepare(self, images: Any) -> Float[np.ndarray, "batch height width channels"]:
        """Images as `apply` takes them: resized, cropped and normalised as for evaluation.

        Args:
          images: names as `vit predict` takes them (`data/images.py`): a path, a folder, a pattern,
            `@list.txt`, an address, a page; or arrays uint8 [height, width, channels], or images
            of Pillow.

        Raises:
          UserError: a name is nothing, what is no image, or an image that cannot be read.
        """
        from vit_jax.data.images import images_named, readable, refuse
        from vit_jax.data.pipeline_text import parse

        c = self.config
        pipeline = parse(self.data_config.pipeline(c.image_size), c.image_size, channels=c.channels)
        prepared = readable(
            images_named(images)[0],
            lambda stored: pipeline(pipeline.open(stored, c.channels), None), refuse,
        )  # fmt: skip
        pixels = np.stack([one for _, one in prepared])
        return np.asarray(self.data_config.normalise(jnp.asarray(pixels)))

    def apply(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        attention_weights: bool = False,
        gather=None,
        **more: Array,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """Logits (float32) and every intermediate by name.

        Args:
          params: plain dict, as `init` gives it.
          images: float32 in the model's value range (`data_config.normalise`).
          train: whether dropout and stochastic depth are on; needs `key`.
          key: the random key of this step, `jax.random.key(...)`.
          attention_weights: also return `attention00`, … (batch, heads, tokens, tokens).
          gather: maps one block's sharded parameters to those that it computes with
            (parallel/sharding.py).
          more: what one family takes besides, such as `content` of a detector.

        Returns:
          logits (batch, classes) and a dict with `patches` (batch, N, D), `block00` …,
          `encoded` (batch, tokens, D) and `pre_logits` (batch, D).

        Raises:
          ValueError: the images have another shape (but for `Family.any_size`) or are integers, or
            `train` without `key`.
        """
        c, given = self.config, images.shape[1:]
        size = given[:2] if self.family.any_size else c.image_size
        if images.ndim != 4 or given != (*size, c.channels) or not all(given):
            sides = ("height", "width") if self.family.any_size else c.image_size
            raise ValueError(
                f"{self.name} takes images [batch, {sides[0]}, {sides[1]}, {c.channels}], "
                f"got {list(images.shape)}"
            )
        if size != c.image_size:
            dataclasses.replace(c, image_size=size)  # raises ValueError where it cannot have it
        if jnp.issubdtype(images.dtype, jnp.integer):
            raise ValueError(
                f"images are {images.dtype}, the model takes float32 in its value range: "
                "model.data_config.normalise(images)"
            )
        if train and key is None:
            raise ValueError("train=True needs a key: jax.random.key(seed)")
        module = nnx.merge(self._here._graph[0], params)
        return module(
            images, key if train else None, return_weights=attention_weights, gather=gather, **more
        )
