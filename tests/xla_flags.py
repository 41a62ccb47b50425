"""What the tests tell XLA: how many devices a CPU is, and how to compile."""

import os


def xla_flags(devices: int = 1) -> str:
    """`XLA_FLAGS` of a process on so many CPU devices.

    Where programs are little optimised (tests/conftest.py) fusions are compiled by XLA's older way:
    the suite's slowest files took 123 s with it, 183 s without.
    """
    told = [f"--xla_force_host_platform_device_count={devices}"] if devices > 1 else []
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        told.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(told)
