"""From a config to everything that a run is made of, once: after `resolve`, nothing is parsed again
and nothing changes.

A model's name brings its sizes. Weights bring the rest of what decides the arithmetic (`gelu`,
epsilons, `data.mean` …), where no key says otherwise. All of it ends up in the config, so that a
run can continue when the weights are gone.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax import resolution
from vit_jax.checkpoint.tree import flatten
from vit_jax.config import changed
from vit_jax.data import pipeline_text
from vit_jax.data.declared import DECLARED, OPS
from vit_jax.data.pipeline import check_depth
from vit_jax.data.source import Facts, Source
from vit_jax.data.sources import facts, open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.named import parse
from vit_jax.evaluators.opened import Opened, check_evaluators, open_evaluators
from vit_jax.models import Model, create_model
from vit_jax.models.data_config import DataConfig
from vit_jax.models.kernels import Gpu, gpu_of, refusal
from vit_jax.models.registry import find_family
from vit_jax.paths import is_stacked
from vit_jax.pretrained.opened import Weights
from vit_jax.tasks import TASKS, Task, find_task
from vit_jax.training.groups import frozen_mask, layer_scales
from vit_jax.training.optimizer import NORM_OF_PARAMETER, check_updates


@dataclasses.dataclass(frozen=True)
class Data:
    """What is known of a run's data, and its sources where they are here."""

    facts: Facts  # of the training data
    classes: list[str]
    here: bool = True  # whether sources can be opened
    train: Source | None = None
    evaluation: Source | None = None


def opened(c: ConfigDict) -> Data:
    """The data of a run that trains."""
    train = open_source(c.data.train.source, c.data.train.split)
    return Data(
        Facts.of(train), train.classes, train=train, evaluation=_evaluation(c, train.classes)
    )


def known(c: ConfigDict) -> Data:
    """What is known of the data without reading it: enough for shapes, plans and descriptions."""
    return Data(facts(c.data.train.source, c.data.train.split), [], here=False)


def of_trained(classes: list[str]) -> Callable[[ConfigDict], Data]:
    """The data of a run that measures a trained model, which knows these classes."""

    def data(c: ConfigDict) -> Data:
        source, named = _evaluation(c, classes), find_task(c).outputs_are_classes
        if source and named and not classes and len(source.classes) != c.model.num_classes:
            raise UserError(
                f"{c.data.eval.source or c.data.train.source} has {len(source.classes)} classes, "
                f"the weights {c.model.num_classes} without names: they cannot be told apart"
            )
        return Data(Facts(1, len(classes), c.model.channels), classes, evaluation=source)

    return data


def _evaluation(c: ConfigDict, classes: list[str]) -> Source | None:
    """The source of `data.eval`; None where nothing is to be evaluated."""
    if not c.data.eval.split:
        return None
    return open_source(
        c.data.eval.source or c.data.train.source, c.data.eval.split, classes or None
    )


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config with every number final, and what its texts mean. It is never changed."""

    config: FrozenConfigDict
    said: tuple[str, ...]  # what the user should hear of
    model: Model
    task: Task
    pipelines: tuple[
        pipeline_text.Pipeline, pipeline_text.Pipeline
    ]  # of training and of evaluation
    evaluators: tuple[Opened, ...]  # that of `data.eval` first
    data: Data
    weights: Weights | None = None  # those of `init`

    def changed(self, keys: Mapping[str, Any]) -> "Resolved":
        """The same with other values of some keys, none of which decides the state's shapes."""
        return dataclasses.replace(self, config=changed(self.config, keys))


def resolve(
    config: ConfigDict,
    named: Iterable[str] = (),
    devices: Sequence[jax.Device] | int | None = None,
    *,
    data: Callable[[ConfigDict], Data] = opened,
    weights: Weights | None = None,
    gpu: Gpu | None = None,
) -> Resolved:
    """Resolves a config against its data and the machine.

    Args:
      config: a tree made from `vit_jax.config.base()`.
      named: keys given explicitly, for the check of unread ones.
      devices: those to use, all by default; or how many there are to be, for shapes alone.
      data: what there is of the data: `opened`, `known` or `of_trained(classes)`.
      gpu: the kind of the devices, if only their number is given.
      weights: those that the run starts from: what the config leaves open of the model's
        arithmetic, and how images are shown, is theirs.

    Raises UserError for anything in the config that cannot work.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"a config is a ConfigDict, as recipe.load gives it, not {config!r}")
    named, found = list(named), data(config)
    # Whether a step is compiled for the devices. Otherwise the run is only described.
    compiled = found.here or not (devices is None or isinstance(devices, int))
    if devices is None:
        devices = jax.devices()
    count = devices if isinstance(devices, int) else len(devices)
    task_class = find_task(config)
    c, said = resolution.resolve(config, found.facts, count, task_class.outputs, named)
    c.best = c.best or task_class.best
    said += _give_way(c, named)
    sources = [source for source in (found.train, found.evaluation) if source]
    said += dict.fromkeys(note for source in sources for note in source.notes)
    _shown_by_pipelines(c, named)
    if weights is not None:
        said += _inherit(c, weights)
    # Weights are measured at their own size, which patches need not tile.
    measures = found.here and found.train is None
    model = _make_model(
        c, task_class.activation(c), remainder=measures and "model.image_size" not in named
    )
    gpu = gpu if isinstance(devices, int) else gpu_of(devices[0])
    said += _attention(model, gpu) if compiled or gpu else []
    model = model.on(gpu)
    frozen = FrozenConfigDict(c)
    if frozen.task in TASKS and frozen.task != model.family.task:
        raise UserError(
            f"{model.name} is for task={model.family.task}, not for task={frozen.task}: name "
            "another model, or the task"
        )
    task = task_class(frozen, model, found.facts)
    said += task.notes
    _check_optimizer(frozen, model)
    asked, metrics = parse(frozen.evaluators, task.evaluators)
    pipelines = _pipelines(frozen, model, task.entries(found.facts).placed, trains=not measures)
    for source, parsed in zip((found.train, found.evaluation), pipelines, strict=True):
        note = check_depth(source, parsed, model.config.channels) if source else ""
        if note and not any(line.endswith(note) for line in said):
            said.append(f"warning: {parsed.text}: {note}")
    evaluators = []
    if found.here:
        shape = (*model.config.image_size, model.config.channels)
        evaluators = open_evaluators(
            frozen, asked, metrics, task.evaluation, found.classes or None, found.evaluation,
            found.facts.num_examples, pipelines[1], shape,
        )  # fmt: skip
        check_evaluators(evaluators[found.evaluation is not None :], shape, task.entries)
    if found.train is not None:
        task.open(found.classes, said.append)
    return Resolved(frozen, tuple(said), model, task, pipelines, tuple(evaluators), found, weights)


def _check_optimizer(config: ConfigDict, model: Model) -> None:
    """Raises UserError where the optimiser cannot work on such parameters."""
    check_updates(config.optimizer, model.family, model.abstract_params)
    stacked = any(map(is_stacked, flatten(model.abstract_params)))
    if config.optimizer.name in NORM_OF_PARAMETER and stacked:
        raise UserError(
            f"optimiser {config.optimizer.name} scales by norms of whole parameters, and "
            "model.scan makes one parameter of all layers': --config.model.scan=False"
        )
    frozen_mask(model.abstract_params, config.optimizer.freeze)
    if config.optimizer.layer_decay is not None:
        layer_scales(model.family, model.abstract_params, config.optimizer.layer_decay)


def _pipelines(
    config: ConfigDict, model: Model, placed: tuple[str, ...], *, trains: bool
) -> tuple[pipeline_text.Pipeline, pipeline_text.Pipeline]:
    """Those of training and of evaluation, which fit each other. Raises UserError."""
    size, channels = model.config.image_size, model.config.channels
    texts = [config.data[part].pipeline for part in ("train", "eval")]
    train, evaluation = (
        pipeline_text.parse(text, size, imports=True, channels=channels, placed=placed)
        for text in texts
    )
    if trains:
        _check_buckets(config, model, train.sizes)
    if evaluation.random and config.data.eval.split:
        drawing = ["buckets"]
        drawing += sorted(name for name, function in OPS.items() if DECLARED[function].random)
        raise UserError(
            f"data.eval.pipeline {evaluation.text!r} is random, evaluation is not: leave out "
            f"{', '.join(drawing)}"
        )
    same = config.data.eval.source in (None, "", config.data.train.source)
    if same and train.levels != evaluation.levels:
        ranged = next(parsed.text for parsed in (train, evaluation) if parsed.levels)
        raise UserError(
            "data.train.pipeline and data.eval.pipeline read the same source by different ranges, "
            f"{' and '.join(map(repr, texts))}: begin both with {ranged.partition('|')[0].strip()}"
        )
    return train, evaluation


def _check_buckets(config: ConfigDict, model: Model, sizes: tuple[tuple[int, int], ...]) -> None:
    """Raises UserError where a training step cannot have images of these sizes."""
    if not sizes:
        return
    tall, wide = model.config.image_size
    if not model.family.any_size or config.distill:
        who = f"{model.name} takes" if not model.family.any_size else "distill has a teacher of"
        raise UserError(
            f"data.train.pipeline has buckets, but {who} images of one size; resnet…_gn, "
            "resnet…_frozen_bn, nonlocal_… and resnetv2_…_bit take any, and DETRs on the first two"
        )
    if len(sizes) == 1:
        raise UserError(f"the buckets of data.train.pipeline are all {tall} × {wide}")
    largest = max(sizes, key=math.prod)
    if (tall, wide) not in sizes or tall * wide < math.prod(largest):
        raise UserError(
            f"the largest bucket, {largest[0]} × {largest[1]}, is the size of evaluation, but "
            f"model.image_size is {tall} × {wide}: "
            f"--config.model.image_size={largest[0]},{largest[1]}"
        )
    for size in sizes:
        try:
            dataclasses.replace(model.config, image_size=size)
        except ValueError as error:
            raise UserError(f"bucket {size[0]} × {size[1]}: {error}") from error


def _give_way(c: ConfigDict, named: list[str]) -> list[str]:
    """Where the user names another model, what the recipe set for its own one gives way: its
    architecture, and fields that models of the other family do not have."""
    if "model.name" not in named:
        return []
    name = c.model.name
    family, by_name, _ = find_family(name, imports=True)
    lines = []
    for field, value in c.model.to_dict().items():
        if field == "name" or value is None or f"model.{field}" in named:
            continue
        if field not in family.of_run or field in by_name or field not in family.fields:
            c.model[field] = None
            lines.append(f"model.{field}={value} of the recipe gives way to model.name={name}")
    return lines


def _inherit(c: ConfigDict, weights: Weights) -> list[str]:
    """Gives the config what it leaves open and the weights decide; says what differs by that from
    the model's name. Raises UserError where the weights are of another family."""
    name = c.model.name
    family, by_name, _ = find_family(name, imports=True)
    theirs = weights.model.config
    if weights.model.family not in (family, family.backbone):
        raise UserError(
            f"{weights.path} holds a {type(theirs).__name__.removesuffix('Config')} "
            f"({weights.model.name}), but model.name is {name}"
        )
    usual = {name: field.default for name, field in family.fields.items()} | by_name
    lines = []
    for field, value in dataclasses.asdict(theirs).items():
        if field in family.of_run or field in by_name or c.model.get(field) is not None:
            continue
        c.model[field] = value
        if value != usual[field]:
            lines.append(f"model.{field}={value} comes with {weights.path}")
    shown = weights.model.data_config.per_channel(c.model.channels)
    lines += weights.guesses([key for key in ("mean", "std") if c.data[key] is None])
    for key, each in zip(("mean", "std"), shown, strict=True):
        if c.data[key] is None:
            c.data[key] = each if len(set(each)) > 1 else each[0]
    return lines


def _shown_by_pipelines(c: ConfigDict, named: list[str]) -> None:
    """Takes mean and std from the end of the pipelines, where they are said there."""
    parts = ["train", *(["eval"] if c.data.eval.split else [])]
    said = [
        pipeline_text.parse(c.data[part].pipeline, (32, 32), imports=True).shown for part in parts
    ]
    if not any(said):
        return
    if said[0] is None or said[0] != said[-1] or {"data.mean", "data.std"} & set(named):
        raise UserError(
            "value_range or normalise belongs into both pipelines alike, or data.mean and data.std "
            f"are set instead: {', '.join(c.data[part].pipeline for part in parts)}"
        )
    c.data.mean, c.data.std = said[0]


def _make_model(c: ConfigDict, activation: str, remainder: bool) -> Model:
    """The model of a config, whose fields it makes final; with `remainder`, of an image size that
    patches need not tile. `activation` makes predictions of its logits."""
    fields = c.model.to_dict()
    model = create_model(fields.pop("name"), remainder=remainder, **fields)
    c.model.update(dataclasses.asdict(model.config))
    for key in ("mean", "std"):
        value = c.data[key] if c.data[key] is not None else 0.5
        each = value if isinstance(value, list | tuple) else [value]
        if pipeline_text.not_shown_by(key, value) or len(each) not in (1, model.config.channels):
            raise UserError(
                f"data.{key} is {'a' if key == 'mean' else 'a positive'} number, or one for "
                f"each of the {model.config.channels} channels, not {value!r}"
            )
        c.data[key] = value
    data = DataConfig(written=c.data.eval.pipeline, mean=c.data.mean, std=c.data.std)
    return dataclasses.replace(model, data_config=data, activation=activation)


def _attention(model: Model, gpu: Gpu | None) -> list[str]:
    """Which attention `auto` comes to on GPUs. Raises UserError where cuDNN's is asked for and
    cannot be had."""
    c: Any = model.config
    if getattr(c, "attention", "xla") == "xla":
        return []
    reason = refusal(c, gpu)
    if reason and c.attention == "cudnn":
        raise UserError(f"model.attention=cudnn: {reason}; here: --config.model.attention=xla")
    if gpu is None:
        return []
    return [f"attention by XLA: {reason}" if reason else "attention by cuDNN"]
