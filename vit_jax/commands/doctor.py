"""Shows versions, devices, memory and disk, and checks that each device computes.

The exit code is 0 if everything works, otherwise 1.
"""

import argparse
import importlib.util
import os
import shutil
import sys
from importlib import metadata

PACKAGES = (
    "vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
    "tensorflow-datasets", "ml_collections", "clu", "numpy", "opencv-python-headless",
    "simplejpeg", "tensorboardX",
)  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    print(f"Python {sys.version.split()[0]}")
    problems = []
    for name in PACKAGES:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")
            if name != "vit_jax":  # a checkout runs without being installed
                problems.append(f"{name} is missing: pip install {name}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    free = shutil.disk_usage(".").free / 2**30
    print(f"{os.cpu_count()} cores, {memory:.1f} GiB memory, {free:.1f} GiB free here")
    problems += _devices()
    if importlib.util.find_spec("tensorflow"):
        print(
            "warning: TensorFlow is installed; vit does not import it, and a GPU build in the "
            "same process would take the devices' memory"
        )
    for problem in problems:
        print(f"problem: {problem}")
    count = len(problems)
    print(f"{count} problem{'s' if count > 1 else ''}" if problems else "all is well")
    return 1 if problems else 0


def _devices() -> list[str]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.parallel.chips import peak_flops
    from vit_jax.parallel.runtime import no_device

    problems = []
    try:
        devices = jax.devices()
    except Exception as error:  # RuntimeError or AssertionError, by the platform
        return [no_device(error) or f"JAX finds no device: {error}"]
    for device in devices:
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
