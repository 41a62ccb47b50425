"""What a compiled step takes of a device's memory, and the largest passes that fit."""

import bisect
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.config import AUTO
from vit_jax.errors import UserError
from vit_jax.parallel.runtime import everyones
from vit_jax.sizes import microbatches
from vit_jax.training.run import Run


def step_bytes(compiled: Any) -> int:
    """Bytes that a compiled step needs on each device, arguments included.

    The TPU compiler refuses a program by its peak, and states temporaries that may be larger than
    the chip of programs that it takes (libtpu 0.0.42); elsewhere temporaries are one allocation.
    """
    found = compiled.memory_analysis()
    placed = jax.tree.leaves(compiled.input_shardings)[0].device_set
    if next(iter(placed)).platform == "tpu" and found.peak_memory_in_bytes:
        return found.peak_memory_in_bytes
    return (
        found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )  # fmt: skip


def device_bytes(device: jax.Device) -> int | None:
    """The memory that a device may use; None where it does not say, as a CPU."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def fitting(run: Run, asked: ConfigDict) -> tuple[Run, list[str]]:
    """The run, where `microbatch=auto` was asked for with what fits its devices, and a line on
    that; with `preflight`, a run that does not fit them is refused."""
    mine = device_bytes(run.mesh.local_devices[0])
    told = [int(limit) for limit in everyones(str(mine or "")) if limit]
    limit = min(told) if told else None
    if asked.microbatch == AUTO:
        return within(run, limit)
    if asked.preflight and limit:
        check_fits(run, limit)
    return run, []


def check_fits(run: Run, limit: int) -> None:
    """Raises UserError where a step takes more than `limit` bytes a device."""
    needed = step_bytes(run.compiled_step)
    if needed > limit:
        raise UserError(
            f"a step takes {needed / 2**30:.2f} of the {limit / 2**30:.2f} GiB of a device: a "
            "smaller --config.microbatch (or auto), --config.model.remat=full or "
            "--config.mesh.fsdp=-1; vit plan --search finds what fits, --config.preflight=False "
            "starts all the same"
        )


def within(run: Run, limit: int | None) -> tuple[Run, list[str]]:
    """The run with the largest microbatch whose step takes at most `limit` bytes a device, its step
    compiled, and a line on it; where nothing is known of the limit, the run as it is.

    Raises UserError where even the smallest takes more.
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

    # Mostly all fits; where it does not, halving the sizes that are left compiles few of them.
    fit = len(sizes)
    if needed(sizes[-1]) > limit:
        fit = bisect.bisect(sizes[:-1], float(limit), key=needed)
    if fit:
        chosen = runs[sizes[fit - 1]]
        told = f"{step_bytes(chosen.compiled_step) / 2**30:.2f} of {limit / 2**30:.2f} GiB a device"
        return chosen, [f"microbatch {sizes[fit - 1]} of {c.batch_size}: its step takes {told}"]
    smallest = needed(sizes[0])
    least = f" ({smallest / 2**30:.2f} GiB)" if smallest < math.inf else ""
    raise UserError(
        f"microbatch=auto: even with the smallest passes a step{least} takes more than the "
        f"{limit / 2**30:.2f} GiB of a device: "
        "--config.model.remat=full, --config.mesh.fsdp=-1 or a smaller --config.batch_size"
    )
