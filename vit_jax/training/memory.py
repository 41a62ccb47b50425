"""What a compiled step takes of a device's memory, and the largest passes that fit."""

import bisect
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.keys import AUTO
from vit_jax.parallel.runtime import everyones
from vit_jax.sizes import microbatches
from vit_jax.training.run import Run


def step_bytes(compiled: Any) -> int:
    """Bytes that a compiled step needs on each device, arguments included.

    The TPU compiler checks the peak against the chip's memory. Its size of temporaries may be more
    than the chip has, even for a program that fits (libtpu 0.0.42). On other devices the
    temporaries are one allocation.
    """
    memory = compiled.memory_analysis()
    placed = jax.tree.leaves(compiled.input_shardings)[0].device_set
    if next(iter(placed)).platform == "tpu" and memory.peak_memory_in_bytes:
        return memory.peak_memory_in_bytes
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )  # fmt: skip


def device_bytes(device: jax.Device) -> int | None:
    """Bytes of memory that a device may use; None if it does not report them, as a CPU."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def fitting(run: Run, asked: ConfigDict) -> tuple[Run, list[str]]:
    """The run, and lines for the user. With `microbatch=auto`, the run has the largest microbatch
    that fits its devices. With `preflight`, a run that does not fit raises UserError."""
    own_limit = device_bytes(run.mesh.local_devices[0])
    limits = [int(limit) for limit in everyones(str(own_limit or "")) if limit]
    limit = min(limits) if limits else None
    if asked.microbatch == AUTO:
        return within(run, limit)
    if asked.preflight and limit:
        check_fits(run, limit)
    return run, []


def check_fits(run: Run, limit: int) -> None:
    """Raises UserError if a step needs more than `limit` bytes on a device."""
    needed = step_bytes(run.compiled_step)
    if needed > limit:
        raise UserError(
            f"a step takes {needed / 2**30:.2f} of the {limit / 2**30:.2f} GiB of a device: a "
            "smaller --config.microbatch (or auto), --config.model.remat=full or "
            "--config.mesh.fsdp=-1; vit plan --search finds what fits, --config.preflight=False "
            "starts all the same"
        )


def within(run: Run, limit: int | None) -> tuple[Run, list[str]]:
    """The run with the largest microbatch whose step needs at most `limit` bytes on a device, and a
    line about it. Its step is compiled. Without a limit, the run stays as it is.

    Raises UserError if even the smallest microbatch needs more.
    """
    c = run.config
    if limit is None:
        return run, [f"microbatch {c.microbatch}: the devices do not tell their memory"]
    sizes = microbatches(c.batch_size, c.mesh.data * c.mesh.fsdp)
    runs: dict[int, Run] = {}

    def needed(size: int) -> float:
        runs[size] = run.changed({"microbatch": size})
        try:
            return step_bytes(runs[size].compiled_step)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return math.inf

    # The largest usually fits. If not, a binary search compiles few of the other sizes.
    fit = len(sizes)
    if needed(sizes[-1]) > limit:
        fit = bisect.bisect(sizes[:-1], float(limit), key=needed)
    if fit:
        chosen = runs[sizes[fit - 1]]
        used = f"{step_bytes(chosen.compiled_step) / 2**30:.2f} of {limit / 2**30:.2f} GiB a device"
        return chosen, [f"microbatch {sizes[fit - 1]} of {c.batch_size}: its step takes {used}"]
    smallest = needed(sizes[0])
    least = f" ({smallest / 2**30:.2f} GiB)" if smallest < math.inf else ""
    raise UserError(
        f"microbatch=auto: even with the smallest passes a step{least} takes more than the "
        f"{limit / 2**30:.2f} GiB of a device: "
        "--config.model.remat=full, --config.mesh.fsdp=-1 or a smaller --config.batch_size"
    )
