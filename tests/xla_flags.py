"""What the tests tell XLA: how many devices a CPU is, and how to compile."""

import os
from importlib.metadata import version

KNOWS_OLD_FUSIONS = version("jaxlib").startswith("0.10.")  # XLA ends a process over a flag it lacks


def xla_flags(devices: int = 1) -> str:
    """`XLA_FLAGS` of a process on so many CPU devices.

    Where programs are little optimised (tests/conftest.py) fusions are compiled by XLA's older way,
    while there is one: the suite's slowest files took 123 s with it, 183 s without.
    """
    told = [f"--xla_force_host_platform_device_count={devices}"] if devices > 1 else []
    if KNOWS_OLD_FUSIONS and os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        told.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(told)
