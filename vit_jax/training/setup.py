"""From a config to everything a run is made of: model, mesh, data, compiled steps, first state."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.checkpoint import checksums, manager, steps
from vit_jax.data import ops
from vit_jax.data.pipeline import check_depth
from vit_jax.data.sources import Facts, facts, open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.named import parse
from vit_jax.models import Model, create_model
from vit_jax.models.attention import cudnn_refuses
from vit_jax.models.model import DataConfig
from vit_jax.models.registry import find_kind, takes
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.runtime import everyones, share, together
from vit_jax.pretrained.load import OF_THE_RUN, fetch_weights, fill, order_of
from vit_jax.pretrained.opened import Weights
from vit_jax.pretrained.weights import open_weights
from vit_jax.resolution import Sizes, resolve
from vit_jax.training.distillation import open_teacher
from vit_jax.training.evaluation import check_evaluators, open_evaluators
from vit_jax.training.groups import frozen_mask, layer_scales
from vit_jax.training.optimizer import NORM_OF_PARAMETER, check_updates
from vit_jax.training.run import Run
from vit_jax.training.same_run import check_same_data, check_same_run
from vit_jax.training.state import State


def set_up(
    config: ConfigDict,
    named: Iterable[str] = (),
    devices: Sequence[jax.Device] | int | None = None,
    *,
    classes: list[str] | None = None,
    open_data: bool = True,
    weights: Weights | None = None,
) -> Run:
    """Resolves a config against its data and the machine.

    Args:
      config: a tree made from `vit_jax.config.base()`.
      named: keys given explicitly, for the check of unread ones.
      devices: those to use, all by default; or how many there are to be, for shapes alone.
      classes: those of a trained model, to evaluate it: the training data is not opened.
      open_data: False where only shapes are asked for; what is known of a data set is enough.
      weights: those that the run starts from: what the config leaves open of the model's
        arithmetic, and how images are shown, is theirs.

    Raises UserError for anything in the config that cannot work.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"a config is a ConfigDict, as recipe.load gives it, not {config!r}")
    named, of_weights = list(named), classes is not None  # to be evaluated at their own size
    data, train_source, eval_source = config.data, None, None
    trains = open_data and classes is None
    eval_spec = data.eval.source or data.train.source
    if not open_data:
        known = facts(data.train.source, data.train.split)
    elif classes is not None:
        known = Facts(1, len(classes), config.model.channels)
    else:
        train_source = open_source(data.train.source, data.train.split)
        classes = train_source.classes
        known = Facts(
            len(train_source), len(classes), train_source.channels, train_source.max_labels
        )
    if open_data and data.eval.split:
        eval_source = open_source(eval_spec, data.eval.split, classes or None)
        if not classes and len(eval_source.classes) != config.model.num_classes:
            raise UserError(
                f"{eval_spec} has {len(eval_source.classes)} classes, the weights "
                f"{config.model.num_classes} without names: they cannot be told apart"
            )
    count = (
        devices if isinstance(devices, int) else len(jax.devices() if devices is None else devices)
    )
    sizes = Sizes(known.num_examples, known.num_classes, known.channels, count)
    resolved, said = resolve(config, sizes, named)
    said += _give_way(resolved, named)
    notes = [note for source in (train_source, eval_source) if source for note in source.notes]
    said += dict.fromkeys(notes)
    _shown_by_pipelines(resolved, named)
    if weights is not None:
        said += _inherit(resolved, weights)
    model = _make_model(resolved, of_weights and "model.image_size" not in named)
    said += _attention(model) if open_data else []
    _check_parts(resolved, model, known.max_labels)
    pipelines = _pipelines(resolved, model)
    for source, parsed in zip((train_source, eval_source), pipelines, strict=True):
        note = check_depth(source, parsed, model.config.channels) if source else ""
        if note and not any(line.endswith(note) for line in said):
            said.append(f"warning: {parsed.text}: {note}")
    mesh = make_mesh((resolved.mesh.data, resolved.mesh.fsdp, resolved.mesh.tensor), devices)
    evaluators = []
    if open_data:
        evaluators = open_evaluators(resolved, classes or None, eval_source, known.num_examples)
        shape = (*model.config.image_size, model.config.channels)
        check_evaluators(evaluators[eval_source is not None :], shape)
    teacher = open_teacher(resolved, model, classes or [], said.append) if trains else None
    return Run(
        resolved, said, model, mesh, classes or [], train_source, evaluators, known.num_examples,
        known.max_labels, weights, teacher,
    )  # fmt: skip


def _check_parts(config: ConfigDict, model: Model, max_labels: int) -> None:
    """Raises UserError where loss, optimiser or evaluators cannot work, before any is opened."""
    if max_labels > 1 and config.loss.name == "softmax":
        raise UserError(
            f"{config.data.train.source} has up to {max_labels} labels an example, loss=softmax "
            "takes one: --config.loss=sigmoid"
        )
    check_updates(config.optimizer, model.abstract_params)
    parse(config.evaluators)
    if config.optimizer.name in NORM_OF_PARAMETER and getattr(model.config, "scan", False):
        raise UserError(
            f"optimiser {config.optimizer.name} scales by norms of whole parameters, and "
            "model.scan makes one parameter of all layers': --config.model.scan=False"
        )
    frozen_mask(model.abstract_params, config.optimizer.freeze)
    if config.optimizer.layer_decay is not None:
        layer_scales(model.abstract_params, config.optimizer.layer_decay)
    _check_class_weights(config)


def _pipelines(config: ConfigDict, model: Model) -> list[ops.Pipeline]:
    """Those of training and of evaluation, which fit each other. Raises UserError."""
    size, channels = model.config.image_size, model.config.channels
    texts = [config.data[part].pipeline for part in ("train", "eval")]
    train, evaluation = (ops.parse(t, size, imports=True, channels=channels) for t in texts)
    if evaluation.random and config.data.eval.split:
        raise UserError(
            f"data.eval.pipeline {evaluation.text!r} is random, evaluation is not: leave out "
            f"{', '.join(sorted(ops.RANDOM))}"
        )
    same = config.data.eval.source in (None, "", config.data.train.source)
    if same and train.levels != evaluation.levels:
        ranged = next(parsed.text for parsed in (train, evaluation) if parsed.levels)
        raise UserError(
            "data.train.pipeline and data.eval.pipeline read the same source by different ranges, "
            f"{' and '.join(map(repr, texts))}: begin both with {ranged.partition('|')[0].strip()}"
        )
    return [train, evaluation]


def _check_class_weights(config: ConfigDict) -> None:
    given = config.loss.class_weights
    if given is None:
        return
    numbers = isinstance(given, list | tuple) and all(
        isinstance(one, int | float) and 0 <= one < math.inf for one in given
    )
    if not numbers or len(given) != config.model.num_classes or not sum(given):
        raise UserError(
            f"loss.class_weights is a number, 0 or more, for each of the "
            f"{config.model.num_classes} classes (not all 0), not {given!r}"
        )


def open_origin(config: ConfigDict, workdir: Path) -> Weights | None:
    """What a run with `init` has its model's arithmetic from: once it has saved, its own last
    checkpoint, which is there when the weights are gone; before, the weights."""
    if not isinstance(config, ConfigDict) or not config.init or config.resume:
        return None
    if _last_step(workdir):
        return open_weights(workdir)
    return open_weights(fetch_weights(config.init), channels=None)


def _give_way(config: ConfigDict, named: list[str]) -> list[str]:
    """Where the user names another model, what the recipe set for its own one gives way: its
    architecture, and fields that models of the other family do not have."""
    if "model.name" not in named:
        return []
    name = config.model.name
    _, _, by_name = find_kind(name)
    lines = []
    with config.unlocked():
        for field, value in config.model.to_dict().items():
            if field == "name" or value is None or f"model.{field}" in named:
                continue
            of_model = field not in OF_THE_RUN or field in by_name
            if of_model or not takes(name, field):
                config.model[field] = None
                lines.append(f"model.{field}={value} of the recipe gives way to model.name={name}")
    return lines


def _inherit(config: ConfigDict, weights: Weights) -> list[str]:
    """Gives the config what it leaves open and the weights decide; says what differs by that from
    the model's name. Raises UserError where the weights are of another family."""
    name = config.model.name
    _, family, by_name = find_kind(name)
    theirs = weights.model.config
    if type(theirs) is not family:
        raise UserError(
            f"{weights.path} holds a {type(theirs).__name__.removesuffix('Config')} "
            f"({weights.model.name}), but model.name is {name}"
        )
    usual = {field.name: field.default for field in dataclasses.fields(family)} | by_name
    lines = []
    with config.unlocked():
        for field, value in dataclasses.asdict(theirs).items():
            if field in OF_THE_RUN or field in by_name or config.model[field] is not None:
                continue
            config.model[field] = value
            if value != usual[field]:
                lines.append(f"model.{field}={value} comes with {weights.path}")
        shown = weights.model.data_config.per_channel(config.model.channels)
        lines += weights.guesses([key for key in ("mean", "std") if config.data[key] is None])
        for key, each in zip(("mean", "std"), shown, strict=True):
            if config.data[key] is None:
                config.data[key] = each if len(set(each)) > 1 else each[0]
    return lines


def _shown_by_pipelines(config: ConfigDict, named: list[str]) -> None:
    """Takes mean and std from the end of the pipelines, where they are said there."""
    parts = ["train", *(["eval"] if config.data.eval.split else [])]
    said = [ops.parse(config.data[part].pipeline, (32, 32), imports=True).shown for part in parts]
    if not any(said):
        return
    if said[0] is None or said[0] != said[-1] or {"data.mean", "data.std"} & set(named):
        raise UserError(
            "value_range or normalise belongs into both pipelines alike, or data.mean and data.std "
            f"are set instead: {', '.join(config.data[part].pipeline for part in parts)}"
        )
    with config.unlocked():
        config.data.mean, config.data.std = said[0]


def _make_model(config: ConfigDict, remainder: bool) -> Model:
    """The model of a resolved config, whose fields it makes final; with `remainder`, of an image
    size that patches need not tile."""
    fields = config.model.to_dict()
    model = create_model(fields.pop("name"), remainder=remainder, **fields)
    shown: dict[str, Any] = {}
    with config.unlocked():
        for field, value in dataclasses.asdict(model.config).items():
            config.model[field] = list(value) if isinstance(value, tuple) else value
        for key in ("mean", "std"):
            value = config.data[key] if config.data[key] is not None else 0.5
            each = value if isinstance(value, list | tuple) else [value]
            if ops.not_shown_by(key, value) or len(each) not in (1, model.config.channels):
                raise UserError(
                    f"data.{key} is {'a' if key == 'mean' else 'a positive'} number, or one for "
                    f"each of the {model.config.channels} channels, not {value!r}"
                )
            config.data[key] = list(value) if isinstance(value, tuple) else value
            shown[key] = config.data[key]
    data = DataConfig(written=config.data.eval.pipeline, **shown)
    return dataclasses.replace(model, data_config=data, activation=config.loss.name)


def _attention(model: Model) -> list[str]:
    """Which attention `auto` comes to on a GPU. Raises UserError where cuDNN's is asked for and
    cannot be had."""
    c: Any = model.config
    if getattr(c, "attention", "xla") == "xla":
        return []
    head = c.hidden_size // c.num_heads
    refuses = cudnn_refuses(c.num_tokens, head, c.dtype, c.attention_dropout)
    if refuses and c.attention == "cudnn":
        raise UserError(f"model.attention=cudnn: {refuses}; here: --config.model.attention=xla")
    if jax.default_backend() != "gpu":
        return []
    return [f"attention by XLA: {refuses}" if refuses else "attention by cuDNN"]


def _last_step(workdir: Path) -> str:
    """Of the work folder's own checkpoints; empty where it has not saved."""
    last = steps.latest(workdir / "checkpoints")
    return "" if last is None else str(last)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins: its state, and what the host has counted so far."""

    state: State
    said: list[str]
    origin: str  # scratch, or the checkpoint whose parameters it was given
    step: int = 0
    examples_seen: int = 0
    ledger: dict[str, float] = dataclasses.field(default_factory=dict)  # goodput.PARTS: seconds


def first_state(run: Run, workdir: Path) -> Start:
    """The work folder's own last checkpoint, else `resume`, else `init`, else from scratch.

    Raises UserError where the checkpoint to continue is another run's, or past this one's end.
    """
    c = run.config
    check_same_data(run)
    # As process 0 sees it: a shared file system may show others an older state of the folder.
    if last := everyones(_last_step(workdir))[0]:
        source = workdir / "checkpoints" / last
        moved = together(lambda: check_same_run(run, source))
        start = continued(run, source)
        return dataclasses.replace(start, said=[*start.said, *moved])
    if c.resume:
        source = manager.find(c.resume)
        start = continued(run, source)  # first, to show the tensors of another model
        moved = together(lambda: check_same_run(run, source))
        return dataclasses.replace(start, said=[*start.said, *moved])
    if not c.init:
        return Start(run.init_state(), ["from scratch"], "scratch")
    weights = run.weights or open_weights(fetch_weights(c.init))
    same, order = weights.classes == run.classes, order_of(weights.classes, run.classes)
    params, report = fill(
        weights, run.model, run.shardings["params"],
        keep_head=same or order is not None, order=None if same else order, seed=c.seed,
    )  # fmt: skip
    lines = [f"parameters from {weights.path}: {report.lines()[0]}", *report.lines()[1:]]
    return Start(run.init_state(params), lines, str(weights.path))


def continued(run: Run, source: Path) -> Start:
    """A run from one of its checkpoints on. Raises UserError where that is damaged or too far."""
    together(lambda: checksums.check(source, *share()))
    about = manager.about(source)
    state = manager.restore(source, run.abstract_state, run.shardings)
    step = int(state["step"])
    if step > run.config.total_steps:
        raise UserError(
            f"{source} is past the end of this run, which has {run.config.total_steps} steps: give "
            "it more, or start another one with --config.init"
        )
    said = [f"continues {source} at step {step}"]
    for key in ("total_steps", "microbatch"):
        before, now = about["config"].get(key), run.config[key]
        if before != now:
            effect = {"total_steps": "the schedule ends there", "microbatch": "other dropout"}[key]
            said.append(f"{key} was {before} and is {now} now: {effect}")
    return Start(
        state, said, about["origin"], step,
        about["examples_seen"], about["goodput"],
    )  # fmt: skip
