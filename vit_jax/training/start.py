"""Where a run begins: from scratch, from weights, or from a checkpoint of its own."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax.checkpoint import checksums, manager, steps
from vit_jax.config import WEIGHTS_WANTED, check_base, flat
from vit_jax.errors import UserError
from vit_jax.models.registry import find_family
from vit_jax.parallel.runtime import everyones, share, together
from vit_jax.pretrained.given import given
from vit_jax.pretrained.load import fetch_weights, fill, order_of
from vit_jax.pretrained.opened import Weights
from vit_jax.pretrained.weights import open_weights
from vit_jax.training.run import Run
from vit_jax.training.same_run import check_same_data, check_same_run
from vit_jax.training.state import State
from vit_jax.user_code import signature


def open_origin(config: ConfigDict, workdir: Path) -> Weights | None:
    """What a run with `init` has its model's arithmetic from: once it has saved, its own last
    checkpoint, which is there when the weights are gone; before, the weights."""
    if not isinstance(config, ConfigDict):
        return None  # `resolve` refuses it
    check_base(config)
    if not config.init or config.resume:
        return None
    if _last_step(workdir):
        family = find_family(config.model.name, imports=True)[0]  # the user's word, repeated
        return open_weights(workdir, decoder=family.encoder is not None)
    return _weights(config)


def _weights(config: ConfigDict) -> Weights:
    """Those of `init`. Where their file is silent, the run's fields say what they are.

    Raises UserError where they cannot be had, or where the recipe leaves them to the user.
    """
    if config.init == WEIGHTS_WANTED:
        raise UserError(
            "this recipe starts from weights: add --config.init=FILE, FOLDER, runs/NAME or a name "
            "that vit_jax.list_pretrained() shows"
        )
    family = find_family(config.model.name, imports=True)[0]  # the user's word, as above
    fields = given(config)
    run = {k: v for k, v in fields.items() if k == "image_size" or k not in family.of_run}
    size = run.pop("source_image_size", None)
    return open_weights(
        fetch_weights(config.init), run=run, decoder=family.encoder is not None,
        source_image_size=size,
    )  # fmt: skip


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

    def about(self, run: Run, examples_seen: int, seconds: Mapping[str, float]) -> dict[str, Any]:
        """What a checkpoint keeps beside its arrays, for `continued` and for those who open it."""
        config = flat(run.config)
        return {
            "config": config, "classes": run.classes, "origin": self.origin, "sources": run.held,
            "activation": run.model.activation,
            "train_examples": run.train_examples, "examples_seen": examples_seen,
            "goodput": dict(seconds), **signature(config),
        }  # fmt: skip


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
    weights = run.resolved.weights or _weights(c)
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
