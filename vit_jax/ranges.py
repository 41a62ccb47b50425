"""Which numbers of a config can be: what each key's range is, and what divides what."""

import functools
import math
import re

from ml_collections import ConfigDict

from vit_jax.errors import UserError

AUTO = "auto"  # of microbatch


def check_ranges(c: ConfigDict) -> None:
    """Raises UserError for the first number that lies outside of its range."""
    for key in ("batch_size", "log_every_steps", "checkpoint.keep", "max_skipped_steps"):
        at_least_one(c, key)
    if c.checkpoint.every_minutes is not None and c.checkpoint.every_minutes <= 0:
        raise UserError(
            f"checkpoint.every_minutes is more than 0, not {c.checkpoint.every_minutes}"
        )
    for key in ("step_timeout", "heartbeat_timeout"):
        if c[key] <= 0:
            raise UserError(f"{key} is a number of seconds above 0, not {c[key]}")
    if c.microbatch is not None and c.microbatch != AUTO and not isinstance(c.microbatch, int):
        raise UserError(f"microbatch is a number of examples or auto, not {c.microbatch!r}")
    for key in ("eval_batch_size", "microbatch"):
        if isinstance(c[key], int):
            at_least_one(c, key)
    if not 0 <= c.seed < 2**32:
        raise UserError(f"seed lies in 0 … 2**32 - 1, not {c.seed}")
    for key, value in (("mixup", c.mixup), ("cutmix", c.cutmix), ("data.threads", c.data.threads),
                       ("data.workers", c.data.workers)):  # fmt: skip
        if value < 0:
            raise UserError(f"{key} must be 0 or more, not {value}")
    smoothing = c.loss.label_smoothing
    if not 0 <= smoothing < 1:
        raise UserError(f"loss.label_smoothing lies in [0, 1), not {smoothing}")
    if c.optimizer.lr_per is not None and c.optimizer.lr_per < 1:
        raise UserError(f"optimizer.lr_per must be at least 1, not {c.optimizer.lr_per}")
    for key in ("b1", "b2", "momentum"):
        if not 0 <= c.optimizer[key] < 1:
            raise UserError(f"optimizer.{key} lies in [0, 1), not {c.optimizer[key]}")
    if c.optimizer.decay_by == "schedule" and c.optimizer.name in ("adam", "lamb", "lars"):
        raise UserError(
            f"optimizer.decay_by=schedule means nothing to {c.optimizer.name}, whose decay is none "
            "or a part of the gradient"
        )
    if c.profile and not re.fullmatch(r"[1-9]\d*:[1-9]\d*(:(all|\d+(,\d+)*))?", c.profile):
        raise UserError(
            f"profile {c.profile!r}: write FIRST:COUNT steps, and of which processes where not of "
            "the first alone, as in 100:5, 100:5:all or 100:5:0,3"
        )
    for key in ("lr", "weight_decay", "clip_norm", "skip_norm"):
        if (c.optimizer[key] or 0) < 0:
            raise UserError(f"optimizer.{key} must be 0 or more, not {c.optimizer[key]}")
    for key, value in (("ema", c.ema), ("optimizer.layer_decay", c.optimizer.layer_decay)):
        if value is not None and not 0 < value <= 1 - (key == "ema") * 1e-9:
            raise UserError(f"{key} lies between 0 and 1, not {value}")
    if c.optimizer.name == "schedule_free" and (
        c.ema or c.optimizer.layer_decay or c.schedule.name != "constant" or not c.optimizer.b1
    ):
        raise UserError(
            "optimizer.name=schedule_free averages the weights itself: it needs "
            "schedule.name=constant (a warm-up is fine), optimizer.b1 above 0, no ema and no "
            "optimizer.layer_decay"
        )
    if c.data.damaged not in ("skip", "fail"):
        raise UserError(f"data.damaged is skip or fail, not {c.data.damaged!r}")


def at_least_one(c: ConfigDict, key: str) -> None:
    """Raises UserError where a dotted key's number is less than 1."""
    value = functools.reduce(lambda tree, name: tree[name], key.split("."), c)
    if value < 1:
        raise UserError(f"{key} must be at least 1, not {value}")


def divides(c: ConfigDict, key: str, divisor: int, what: str) -> None:
    """Raises UserError, with the nearest that would work, for what `divisor` does not divide."""
    value = c[key]
    if value % divisor:
        below, above = value // divisor * divisor, -(-value // divisor) * divisor
        near = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{key} {value} is not divisible by {what} = {divisor}; {near} would work")


def microbatches(batch_size: int, rows: int) -> list[int]:
    """Sizes of a pass that make up a batch and split over `rows` devices, in rising order."""
    return [m for m in range(rows, batch_size + 1, rows) if batch_size % m == 0]


# Beyond it a chip's parts of a kernel get too thin to travel well, and `data` costs less: H/14 on
# 256 chips has a ceiling of 49,700 images a second in place of 29,600 (docs/scaling.md).
WIDEST_FSDP = 16


def mesh_sizes(mesh: ConfigDict, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with a -1 filled in, so that they multiply to `devices`.

    Where both data and fsdp are -1, fsdp takes as much as divides, up to `WIDEST_FSDP`, and data
    what is left. Raises UserError with sizes that would work.
    """
    given = [mesh.data, mesh.fsdp, mesh.tensor]
    text = f"mesh data={given[0]}, fsdp={given[1]}, tensor={given[2]}"
    both = given[0] == given[1] == -1
    if any(size < 1 and size != -1 for size in given) or given.count(-1) > 1 + both:
        raise UserError(
            f"{text}: sizes are positive, and one of them, or data and fsdp, may be -1 (what is "
            "left)"
        )
    if both:
        left = devices // given[2]
        given[1] = max(n for n in range(1, WIDEST_FSDP + 1) if left % n == 0)
    known = math.prod(size for size in given if size != -1)
    filled = [devices // known if size == -1 else size for size in given]
    if math.prod(filled) != devices:
        factors = [n for n in range(1, devices + 1) if devices % n == 0]
        raise UserError(
            f"{text} does not multiply to the {devices} devices there are; each size must be one "
            f"of {', '.join(map(str, factors))}, for example mesh.data=-1, mesh.fsdp=1, "
            "mesh.tensor=1"
        )
    return filled[0], filled[1], filled[2]
