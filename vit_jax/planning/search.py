"""Finds the fastest mesh, microbatch, rematerialisation and attention that fit a machine.

The analytic model estimates every combination. The best ones are compiled, the fastest estimate
first. The search ends when one fits and no remaining estimate is faster.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config import changed
from vit_jax.errors import UserError
from vit_jax.keys import AUTO
from vit_jax.parallel.mesh import make_mesh
from vit_jax.planning import analytic
from vit_jax.planning.plan import GIB, Plan, by_formula, make_plan
from vit_jax.planning.topologies import Target
from vit_jax.training.resolve import known
from vit_jax.training.run import run_of

REMATS = ("none", "dots", "full")
COMPILED = 6  # the highest number of combinations that are compiled
# Keys that the search varies if the user did not set them.
VARIED = (
    "mesh.data", "mesh.fsdp", "mesh.tensor", "microbatch", "model.remat", "model.attention",
)  # fmt: skip
Choice = dict[str, Any]  # key in VARIED -> value: one combination


def search(
    config: ConfigDict, named: Iterable[str], target: Target, say: Callable[[str], None]
) -> tuple[Choice, Plan]:
    """The fastest choice that fits, and its plan. Keys that the user set (`named`) stay.

    Raises UserError if no choice fits.
    """
    named = list(named)
    values = {key: operator.attrgetter(key)(config) for key in VARIED if key in named}
    fixed = {key: value for key, value in values.items() if value not in (None, -1, AUTO)}
    judged = [
        (choice, plan) for choice, plan in estimates(config, named, target)
        if choice.items() >= fixed.items()
    ]  # fmt: skip
    if not judged:
        count, keys = target.count, " ".join(f"{key}={value}" for key, value in fixed.items())
        below = config.batch_size // count * count
        would = f": multiples of {count} would work, as {below or count} or {below + count}"
        raise UserError(
            f"no mesh of {count} devices splits batch_size {config.batch_size}"
            + (f" with {keys}: leave that to the search" if keys else would)
        )
    judged.sort(key=lambda pair: pair[1].step_s)
    least = min(judged, key=lambda pair: pair[1].memory.total)
    candidates = [pair for pair in judged if pair[1].fits] or [least]
    best: tuple[Choice, Plan] | None = None
    for choice, plan in candidates[:COMPILED]:
        if best and plan.step_s >= best[1].step_s:
            break
        if not isinstance(target.devices, int):
            plan = make_plan(changed(config, choice), named, target)
        say(f"{in_words(choice)}: {_summary(plan)}")
        if plan.fits and (best is None or plan.step_s < best[1].step_s):
            best = choice, plan
    if best is None:
        raise UserError(
            f"nothing fits {target.name}: the smallest is {in_words(least[0])}, about "
            f"{least[1].memory.total / GIB:.1f} of {least[1].memory.limit / GIB:.2f} GiB a chip"
        )
    return best


def in_words(choice: Choice) -> str:
    """A choice as options of the command line."""
    return " ".join(f"--config.{key}={value}" for key, value in choice.items() if value)


def _summary(plan: Plan) -> str:
    fits = "fits" if plan.fits else "does not fit"
    ceiling = "at most" if plan.how == "compiled" else "about"
    return (
        f"{plan.memory.total / GIB:.2f} of {plan.memory.limit / GIB:.2f} GiB a chip, {fits}; "
        f"{ceiling} {plan.images_per_second:,.0f} images/s"
    )


def estimates(
    config: ConfigDict, named: list[str], target: Target
) -> Iterator[tuple[Choice, Plan]]:
    """Every choice that the batch and the model allow, with its plan by the analytic model."""
    count, size = target.count, config.batch_size
    for remat, attention in itertools.product(REMATS, _attentions(config, named, target)):
        start = _choice(1, 1, 1, size, remat, attention)
        try:
            run = run_of(changed(config, start), named, 1, data=known, gpu=target.gpu)
        except UserError:  # the model has no rematerialisation
            if remat != REMATS[0]:
                continue
            raise
        trace = analytic.trace(run)
        heads = getattr(run.model.config, "num_heads", 1)
        for fsdp, tensor in itertools.product(range(1, count + 1), (1, 2, 4, 8)):
            rows, fits = count // tensor, not count % (fsdp * tensor)
            if not fits or heads % tensor or size % rows or rows // fsdp % target.slices:
                continue
            mesh = make_mesh((rows // fsdp, fsdp, tensor), count)
            for microbatch in _halves(size, rows):
                choice = _choice(rows // fsdp, fsdp, tensor, microbatch, remat, attention)
                yield choice, by_formula(run.changed(choice, mesh), target, trace)


def _attentions(config: ConfigDict, named: list[str], target: Target) -> tuple[str | None, ...]:
    """Both kinds for a GPU that has cuDNN's attention; otherwise the kind of the config."""
    one = changed(config, _choice(1, 1, 1, config.batch_size, "none", config.model.attention))
    model = run_of(one, named, 1, data=known, gpu=target.gpu).model
    if getattr(model.config, "attention", "") == "cudnn":
        return "cudnn", "xla"
    return (config.model.attention,)


def _choice(*values: Any) -> Choice:
    return dict(zip(VARIED, values, strict=True))


def _halves(size: int, rows: int) -> Iterator[int]:
    """`size` halved again and again, as long as `rows` devices can split it evenly."""
    while not size % rows:
        yield size
        if size % 2:
            return
        size //= 2
