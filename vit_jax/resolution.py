"""From what was asked for to final numbers: durations in steps, the data's and the mesh's sizes,
paths from the root.

`run_hash` names a run before its data and devices are known, so that a login node, a pod and a
laptop name it alike.
"""

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ml_collections import ConfigDict

from vit_jax.calls import options_apart
from vit_jax.config import (
    COUNTS,
    DURATIONS,
    FREE_ON_RESUME,
    check_read,
    check_tree,
    check_values,
    config_hash,
    flat,
    leaves,
    set_by_user,
)
from vit_jax.errors import UserError
from vit_jax.keys import AUTO
from vit_jax.sizes import divides, mesh_sizes, microbatches

# Steps between two rows where the config leaves it open, and how many rows a short run has then.
LOG_EVERY, ROWS_AT_LEAST = 50, 10

if TYPE_CHECKING:  # launchers import this module, and know no data
    from vit_jax.data.source import Facts


def resolve(
    config: ConfigDict,
    data: "Facts",
    devices: int,
    outputs: Callable[[ConfigDict, "Facts"], int],
    named: Iterable[str] = (),
) -> tuple[ConfigDict, list[str]]:
    """A copy of the config in which every number is final, and lines for the user.

    Args:
      config: a tree made from `base()`.
      data: the number of examples, channels and classes of the training data.
      devices: the number of devices.
      outputs: the task's function of config and data that gives the width of the model's head.
      named: keys that the user gave explicitly; it is an error if the run does not read them.

    Raises:
      UserError: an unknown or unread key, two units for one duration, a size that cannot work.
    """
    check_tree(config)
    named = list(named)
    check_read(config, set_by_user(config, named))
    for key in ("init", "resume"):
        if config[key] == "":
            raise UserError(f"{key} is empty: name weights, or none with --config.{key}=None")
    if config.init and config.resume:
        raise UserError(
            "init and resume are both set: init takes the parameters alone, resume the whole "
            "state; keep one of them"
        )
    eval_keys = [key for key in named if key.startswith(("data.eval.", "eval_"))]
    for key in eval_keys if not config.data.eval.split else ():
        if dict(leaves(config))[key]:
            raise UserError(f"{key} is set, but data.eval.split is empty: there is no evaluation")
    c = copy.deepcopy(ConfigDict(config)).unlock()
    lines: list[str] = []
    check_values(c)
    total = _steps(c, "total", data)
    if total is None:
        options = ", ".join(DURATIONS["total"])
        raise UserError(f"the run has no length: set one of {options}")
    c.total_steps = total
    c.schedule.warmup_steps = _steps(c, "warm-up", data) or 0
    lines += _warm_up_of_whole_run(c)
    c.log_every_steps = c.log_every_steps or min(LOG_EVERY, max(1, total // ROWS_AT_LEAST))
    c.eval_every_steps = _steps(c, "evaluation", data) or total
    if c.stop_after and not (c.data.eval.split and c.eval_every_steps < total):
        raise UserError(
            f"stop_after={c.stop_after} counts evaluations before the end, and there are none: "
            "--config.eval_every_steps=N or --config.eval_every_epochs=N, and data.eval.split"
        )
    lines += _scale_rate(c)
    for names in DURATIONS.values():
        for key in names[1:]:
            c.update_from_flattened_dict({key: None})
    if c.checkpoint.every_steps is None:
        c.checkpoint.every_steps = max(1, total // 10)

    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh_sizes(c.mesh, devices)
    rows = c.mesh.data * c.mesh.fsdp
    c.eval_batch_size = c.eval_batch_size or -(-c.batch_size // rows) * rows
    # `auto` is the whole batch until the step is compiled (training/memory.py).
    c.microbatch = c.batch_size if c.microbatch in (None, AUTO) else c.microbatch
    divides(c, "batch_size", rows, "mesh.data x mesh.fsdp")
    divides(c, "eval_batch_size", rows, "mesh.data x mesh.fsdp")
    if c.microbatch % rows or c.batch_size % c.microbatch:
        fitting = microbatches(c.batch_size, rows)
        raise UserError(
            f"microbatch {c.microbatch} does not divide batch_size {c.batch_size} into multiples "
            f"of mesh.data x mesh.fsdp = {rows}; {', '.join(map(str, fitting[-8:]))} would work"
        )
    if data.num_examples < 1:
        raise UserError(f"data.train {c.data.train.source} has no examples")

    c.model.num_classes = outputs(c, data)
    c.model.channels = c.model.channels or data.channels
    if c.batch_size > data.num_examples:
        lines.append(
            f"batch_size {c.batch_size} is more than the {data.num_examples} training examples: "
            "a batch holds some of them twice"
        )
    _absolute_paths(c)
    return c, lines


def _warm_up_of_whole_run(c: ConfigDict) -> list[str]:
    """A line where the warm-up leaves no step in which the learning rate could fall."""
    warmup, total = c.schedule.warmup_steps, c.total_steps
    if warmup < total or total == 1:
        return []
    how = "is as long as the run" if warmup == total else (
        f"is longer than the run and is cut to its {total:,} steps"
    )  # fmt: skip
    return [
        f"warning: the warm-up of {warmup:,} steps {how}, so the learning rate never falls; a "
        f"tenth of the run is --config.schedule.warmup_steps={total // 10}"
    ]


def _scale_rate(c: ConfigDict) -> list[str]:
    """Scales a learning rate that the config states for another batch size (`lr_per`)."""
    reference_batch, lr = c.optimizer.lr_per, c.optimizer.lr
    if not reference_batch:
        return []
    c.optimizer.lr, c.optimizer.lr_per = lr * c.batch_size / reference_batch, None
    return [
        f"learning rate {lr:g} for batches of {reference_batch} is {c.optimizer.lr:g} for "
        f"batch_size {c.batch_size}"
    ]


def _steps(c: ConfigDict, duration: str, data: "Facts") -> int | None:
    """A duration in steps, from any unit; None if the config does not state it."""
    durations = {key: value for key, value in leaves(c) if key in DURATIONS[duration] and value}
    if len(durations) > 1:
        raise UserError(f"{' and '.join(durations)} are both set: keep one of them")
    for key, value in durations.items():
        if value < 0:
            raise UserError(f"{key} must be positive, not {value}")
        if key.endswith("steps"):
            return int(value)
        examples = value * data.num_examples if key.endswith("epochs") else value
        return max(1, round(examples / c.batch_size))
    return None


def _absolute_paths(c: ConfigDict) -> None:
    """Makes paths absolute, so that a work folder can be used from any folder."""
    for key, paths, absolute in (("evaluators", "(?:folder|csv):[^'\"]+", _absolute),
                                 ("distill", "[^'\"]+", _there)):  # fmt: skip
        if c[key]:  # its paths stand in quotes
            parts = re.split(rf"((?<=['\"]){paths}(?=['\"]))", c[key])
            c[key] = "".join(absolute(part) if i % 2 else part for i, part in enumerate(parts))
    c.data.eval.source = _absolute(c.data.eval.source or c.data.train.source)
    c.data.train.source = _absolute(c.data.train.source)


def _absolute(source: str) -> str:
    """A source with absolute paths."""
    return with_paths(source, lambda path: str(Path(path).expanduser().absolute()))


def with_paths(source: str, change: Callable[[str], str]) -> str:
    """Applies `change` to the path of `folder:PATH`, `csv:FILE` or `hf:/FOLDER`, or to each path of
    a mixture; also to an absolute `root=` of a table's images. A relative one begins at the
    table."""

    def changed(part: str) -> str:
        match = re.fullmatch(r"((?:[0-9.eE-]+\*)?(folder|csv|hf):)(.*)", part, re.DOTALL)
        if not match or (match[2] == "hf" and not match[3].startswith(("/", "~", "."))):
            return part
        path, options = options_apart(match[3])
        if match[2] == "csv":
            options = re.sub(r"(?<![^&])root=([/~][^&]*)", changed_root, options)
        return f"{match[1]}{change(path)}{'?' if options else ''}{options}"

    def changed_root(match: re.Match[str]) -> str:
        path = change(unquote(match[1])).replace("%", "%25").replace("&", "%26")
        return f"root={path}"

    return " + ".join(changed(part) for part in source.split(" + "))


def _there(path: str) -> str:
    """A path that exists, made absolute; any other text (a name of weights) stays as it is."""
    file = Path(path).expanduser()
    return str(file.absolute()) if file.exists() else path


def run_hash(config: ConfigDict) -> str:
    """The hash that names a run before its data and devices are known. Keys that change none of the
    run's numbers are left out. A run continues one with the same hash."""
    c = copy.deepcopy(config).unlock()
    _absolute_paths(c)
    return config_hash({
        key: value for key, value in flat(c).items()
        if key not in FREE_ON_RESUME - COUNTS
    })  # fmt: skip
