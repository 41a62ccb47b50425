"""What a figure must be read with: versions, hardware, the load before, the memory that was taken,
and how fast this machine multiplies matrices."""

import os
import platform
import resource
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_jax.benching.timing import Side, in_a_row

LOAD = os.getloadavg()[0]  # of the machine before this run
PACKAGES = (
    "vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "timm",
    "transformers", "tensorflow", "pillow", "simplejpeg", "opencv-python-headless", "grain",
)  # fmt: skip

# What says that memory was too small: XLA, PyTorch on a GPU and on a CPU, Python.
TOO_SMALL = ("resource_exhausted", "out of memory", "can't allocate memory", "bad_alloc")

MATMUL = {"cpu": (1024, 4)}  # platform: side of square matrices, products in a row
LARGE_MATMUL = (8192, 20)  # elsewhere


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Of Python and of what is measured; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, JAX's devices, and the load before."""
    import jax

    devices = jax.devices()
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "load_before": round(LOAD, 2),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def high_water(device: Any) -> dict[str, int]:
    """The most memory that was held up to now: on a device that counts it, what JAX had of it;
    else what the whole process had of the machine's."""
    counted = device.memory_stats() or {}
    if "peak_bytes_in_use" in counted:
        return {"peak_device_bytes": counted["peak_bytes_in_use"]}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what a library wanted to say."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in TOO_SMALL)


def matmul(device: Any, dtype: str) -> tuple[Side, float]:
    """A side that multiplies square matrices on one device, and the FLOPs of one product: what
    share of that rate a model reaches is the part of the machine that it uses."""
    import jax
    import jax.numpy as jnp

    size, count = MATMUL.get(device.platform, LARGE_MATMUL)
    x = jax.device_put(jnp.full((size, size), size**-0.5, dtype), device)
    product = jax.jit(jnp.matmul)
    state = x

    def start() -> jax.Array:
        nonlocal state
        state = product(state, x)
        return state

    return in_a_row(start, jax.block_until_ready, count), 2.0 * size**3
