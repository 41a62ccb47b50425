"""The function that is exported: from images to what `vit predict` shows, with the weights inside.

Resizing and cropping stay outside, because the filters of the pipeline round to whole pixels and
take images of any size. The artefact states the pipeline as text instead.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Num

from vit_jax.data.pipeline_text import Pipeline, parse
from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import RESIZED
from vit_jax.models.model import ACTIVATIONS, Model
from vit_jax.pretrained.load import fill, fitted
from vit_jax.pretrained.opened import Weights, listed_params
from vit_jax.tasks.detection import edges

# What an output is called, by the activation that it comes from.
OUTPUTS = {"softmax": "probabilities", "sigmoid": "probabilities", "none": "values"}
# Fields that decide how a model is computed, not what. Layers one by one are the fastest here, and
# the fused attention of one kind of GPU would not run on another machine.
PLAIN = {"scan": False, "remat": "none", "attention": "xla"}


@dataclasses.dataclass(frozen=True)
class Function:
    """A model at one image size, with its weights.

    `params` are NumPy arrays, of the dtype in which they are stored. `raw`: from images that are
    normalised already to logits. `padded`: the images of a detector may have padding, and a second
    input says where it is.
    """

    model: Model
    params: Any
    pipeline: str
    raw: bool = False
    padded: bool = False

    @property
    def size(self) -> str:
        """Height and width, as they stand in the name of the file."""
        height, width = self.model.config.image_size
        return f"{height}x{width}"

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> shape without the batch, and dtype."""
        c = self.model.config
        images = (*c.image_size, c.channels), np.dtype(np.float32 if self.raw else np.uint8)
        content = {"content": ((2,), np.dtype(np.float32))} if self.padded else {}
        return {"images": images} | content

    def __call__(
        self, images: Num[Array, "batch height width channels"], *content: Float[Array, "batch 2"]
    ) -> dict[str, Array]:
        """Of a classifier `probabilities`, `values` (a regression), `features` (without a head), or
        with `raw` `logits`: [batch, outputs]. Of a detector `scores` [batch, queries, classes], or
        `logits`, whose last one is of no object; and `boxes` [batch, queries, 4]: x1, y1, x2, y2 as
        shares of the content."""
        params = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.float32), self.params)
        return predicted(self.model, params, images, content, raw=self.raw)

    def example(self, batch: int, seed: int) -> list[np.ndarray]:
        """Random inputs: noise, whole or with padding at the bottom and at the right."""
        rng = np.random.default_rng(seed)
        (shape, _), *content = self.inputs.values()
        images = rng.integers(0, 256, (batch, *shape), dtype=np.uint8)
        shares = [rng.uniform(0.5, 1, (batch, 2)).astype(np.float32) for _ in content]
        if not self.raw:
            return [images, *shares]
        mean, std = self.model.data_config.per_channel(shape[-1])
        return [((images / 255 - mean) / std).astype(np.float32), *shares]


def predicted(
    model: Model, params: Any, images: Array, content: tuple[Array, ...], *, raw: bool
) -> dict[str, Array]:
    """What `Function` returns, of any parameters."""
    images = images if raw else model.data_config.normalise(images)
    more: dict[str, Any] = {"content": content[0]} if content else {}
    logits, out = model.apply(params, images, **more)
    return OF_TASK[model.family.task](model, logits, out, raw)


def _classes(model: Model, logits: Array, out: dict[str, Array], raw: bool) -> dict[str, Array]:
    if not model.config.num_classes:
        return {"features": logits}
    if raw:
        return {"logits": logits}
    activation = model.output_activation
    return {OUTPUTS[activation]: ACTIVATIONS[activation](logits)}


def _objects(model: Model, logits: Array, out: dict[str, Array], raw: bool) -> dict[str, Array]:
    told = {"logits": logits} if raw else {"scores": jax.nn.softmax(logits)[..., :-1]}
    return told | {"boxes": edges(out["boxes"])}


OF_TASK = {"classification": _classes, "detection": _objects}
PADDING = {"detection": "pad"}  # task -> the operation after which its models take `content`


def functions(
    weights: Weights, sizes: Sequence[tuple[int, int]], dtype: str, raw: bool, imports: bool
) -> tuple[list[Function], list[Any], list[str]]:
    """A function for each image size, the float32 parameters of each, and lines on what the user
    should know. Without `sizes`, at the size of the weights' own preprocessing. `imports`: whether
    the weights' pipeline may name operations by import path.

    Raises UserError: the weights have no such size, or their pipeline is no text that can be
    followed elsewhere.
    """
    own = weights.model.data_config.image_size or weights.model.config.image_size
    wanted, whole, lines = [], [], []
    for size in sizes or [own]:
        fields = {field: v for field, v in (PLAIN | {"dtype": dtype}).items()
                  if hasattr(weights.model.config, field)}  # fmt: skip
        resized = {} if size == weights.model.config.image_size else {"image_size": size}
        model = fitted(weights, fields | resized)
        _check_size(weights, model)
        params, report = fill(weights, model)
        params = jax.device_get(params)
        pipeline, derived = _pipeline(weights, model, imports)
        lines += report.warnings
        if derived:
            lines.append(
                f"the pipeline of the weights, {weights.model.data_config.written!r}, makes images "
                f"of another size; that of {size[0]} x {size[1]} is {pipeline.text!r}"
            )
        padded = any(step.name == PADDING.get(model.family.task) for step in pipeline.steps)
        stored = jax.tree.map(_halved, params) if dtype == "bfloat16" else params
        wanted.append(Function(model, stored, pipeline.text, raw, padded))
        whole.append(params)
    return wanted, whole, list(dict.fromkeys(lines))


def _check_size(weights: Weights, model: Model) -> None:
    """Raises UserError if parameters that cannot be resized depend on the size of the image."""
    fixed = [
        path for path, leaf in listed_params(model).items()
        if model.family.at_init(path) != RESIZED
        and weights.shapes.get(path, leaf.shape) != leaf.shape
    ]  # fmt: skip
    if fixed:
        own, other = ("{} x {}".format(*m.config.image_size) for m in (weights.model, model))
        raise UserError(
            f"{printable(weights.path)}: {model.name} computes images of {own} alone, not of "
            f"{other}: the shape of {fixed[0]} depends on their size"
        )


def _halved(x: np.ndarray) -> np.ndarray:
    """A parameter as it is stored in bfloat16. Vectors keep float32: they are small, and norms
    compute with them in float32."""
    return x.astype(ml_dtypes.bfloat16) if x.ndim > 1 else x


def _pipeline(weights: Weights, model: Model, imports: bool) -> tuple[Pipeline, bool]:
    """The evaluation pipeline for the model's size, and whether it had to be derived, because the
    one that the weights state makes images of another size."""
    size, data = model.config.image_size, model.data_config
    how: dict[str, Any] = {"imports": imports, "channels": model.config.channels}
    try:
        pipeline = parse(data.pipeline(size), size, **how)
        if not data.written or _fits(pipeline, model):
            return pipeline, False
        first = data.written.partition("|")[0]  # decode(low, high)
        data = dataclasses.replace(data, written="")
        rest = DataConfig.pipeline(data, size).partition("|")[2]
        return parse(f"{first}|{rest}", size, **how), True
    except UserError as error:
        raise UserError(f"{printable(weights.path)}: {error}") from error


def _fits(pipeline: Pipeline, model: Model) -> bool:
    """Whether a pipeline makes images of the model's size. One without any resizing takes images
    that have it already."""
    height, width = model.config.image_size
    made = [
        pipeline(np.zeros((*shape, model.config.channels), np.uint8), np.random.default_rng(0))
        for shape in ((height, width), (2 * height, 3 * width))
    ]
    return made[0].shape[:2] == (height, width) and (
        made[1].shape[:2] in ((height, width), (2 * height, 3 * width))
    )
