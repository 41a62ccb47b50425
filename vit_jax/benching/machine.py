"""The machine that a figure belongs to: versions, hardware, load, memory, and the speed at which it
multiplies matrices."""

import os
import platform
import resource
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_jax.benching.timing import Side, in_a_row

LOAD = os.getloadavg()[0]  # load of the machine before this process did anything
PACKAGES = (
    "vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "timm",
    "transformers", "tensorflow", "onnxruntime", "jax2onnx", "pillow",
    "simplejpeg", "opencv-python-headless", "grain",
)  # fmt: skip

# How XLA, PyTorch on a GPU, PyTorch on a CPU, and C++ report that memory is too small.
OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "can't allocate memory", "bad_alloc")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Versions of Python and of packages; None for a package that is not installed."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, JAX's devices, and the load before this process."""
    import jax

    devices = jax.devices()
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(), "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": devices[0].platform, "device": devices[0].device_kind, "devices": len(devices),
        "load_before": round(LOAD, 2),
    }  # fmt: skip


def resident(kind: str = "VmRSS") -> int:
    """Bytes of memory that this process uses now. The kind `RssAnon` leaves out pages of files."""
    if not (size := _field("/proc/self/status", kind)):
        raise OSError(f"this system does not report {kind}")
    return int(size.split()[0]) * 1024


def _field(file: str, name: str) -> str:
    """The value of `name: value` in a file of /proc; empty if there is none."""
    lines = Path(file).read_text(encoding="utf-8").splitlines() if os.path.exists(file) else ()
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")


def high_water(device: Any) -> dict[str, int]:
    """Peak memory up to now: that of JAX on the device, or that of the whole process on the machine
    if the device does not count it."""
    counted = device.memory_stats() or {}
    if "peak_bytes_in_use" in counted:
        return {"peak_device_bytes": counted["peak_bytes_in_use"]}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def out_of_memory(error: BaseException) -> bool:
    """Whether a library's error means that memory was too small."""
    return isinstance(error, MemoryError) or any(s in str(error).lower() for s in OUT_OF_MEMORY)


def matmul(device: Any, dtype: str) -> tuple[Side, float]:
    """Returns a side that multiplies square matrices on one device, and the FLOPs of one product.

    Their rate is the highest that the machine reaches. A model's FLOP/s are compared with it.
    """
    import jax
    import jax.numpy as jnp

    size, count = (1024, 4) if device.platform == "cpu" else (8192, 20)  # products in a row
    x = jax.device_put(jnp.full((size, size), size**-0.5, dtype), device)
    product = jax.jit(jnp.matmul)
    state = x

    def start() -> jax.Array:
        nonlocal state
        state = product(state, x)
        return state

    return in_a_row(start, jax.block_until_ready, count), 2.0 * size**3
