"""Shows versions, devices, memory and disk, and checks that each device computes.

Exits 0 where everything works and 1 where something does not.
"""

import argparse
import os
import shutil
import sys
from importlib import metadata

PACKAGES = (
    "vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
    "tensorflow-datasets", "ml_collections", "clu", "numpy", "opencv-python-headless",
    "simplejpeg", "tensorboardX",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    print(f"Python {sys.version.split()[0]}")
    problems = []
    for name in PACKAGES:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")
            if name != "vit_jax":  # a checkout runs without being installed
                problems.append(f"{name} is missing: pip install {name}")
    print(f"{os.cpu_count()} cores, {_memory()} memory, {_free('.')} free here")
    problems += _devices()
    if _has("tensorflow"):
        print(
            "warning: TensorFlow is installed; vit does not import it, and a GPU build in the "
            "same process would take the devices' memory"
        )
    for problem in problems:
        print(f"problem: {problem}")
    print("all is well" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def _devices() -> list[str]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.parallel.chips import peak_flops

    problems = []
    for device in jax.devices():
        stats = device.memory_stats() or {}
        limit = f", {stats['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in stats else ""
        peak = peak_flops(device.device_kind)
        stated = f", stated peak {peak:.3g} FLOP/s" if peak else ""
        x = jax.device_put(jnp.arange(64.0).reshape(8, 8), device)
        computes = np.allclose(np.asarray(x @ x), np.asarray(x) @ np.asarray(x))
        print(f"{device.platform} {device.id}: {device.device_kind}{limit}{stated}")
        if not computes:
            problems.append(f"{device} multiplies matrices wrongly")
    return problems


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.1f} GiB"


def _free(path: str) -> str:
    return f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"
