"""GPUs that are not here, as XLA's CUDA compiler takes them: it needs its wheels, and no driver.

`gpus.csv` describes each kind, with its source. JAX makes devices of a description; programs can be
compiled for them, and never run.
"""

import csv
import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
INSTALL = "pip install 'vit_jax[cuda]'"
CUDNN = "dnn_version_info { major: 9 minor: 8 }"  # that of the wheels, or an older one
CUDA = "runtime_version { major: 12 minor: 8 patch: 0 }"

# Of every kind since Volta.
COMMON = """
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
"""
FIELDS = {  # column -> field of XLA's message GpuDeviceInfoProto
    "multiprocessors": "core_count", "lanes": "fpus_per_core", "threads": "threads_per_core_limit",
    "clock_ghz": "clock_rate_ghz", "memory_bytes": "device_memory_size",
    "bandwidth": "memory_bandwidth", "l2_bytes": "l2_cache_size",
    "shared_bytes": "shared_memory_per_core", "shared_block_bytes": "shared_memory_per_block_optin",
}  # fmt: skip


@functools.cache
def kinds() -> dict[str, dict[str, str]]:
    """Name of a chip (`parallel/chips.py`) -> its row in `gpus.csv`."""
    with (Path(__file__).parent / "gpus.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def description(name: str) -> str:
    """The kind of GPU as text of XLA's message GpuTargetConfigProto."""
    row = kinds()[name]
    major, minor = row["capability"].split(".")
    fields = " ".join(f"{field}: {row[column]}" for column, field in FIELDS.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f"gpu_device_info {{ {COMMON} {fields} {capability} }}\n"
        f'platform_name: "CUDA" {CUDNN} {CUDA} device_description_str: "{row["device"]}"'
    )


def missing() -> str:
    """What is not installed of the CUDA compiler, and how to get it; empty if it is there."""
    if any(importlib.util.find_spec(name) for name in PLUGINS):
        return ""
    return f"the CUDA compiler is not installed: {INSTALL}, which needs no GPU"


def devices(name: str, a_host: int, hosts: int) -> Sequence[Any]:
    """Devices of a kind to compile for, `a_host` of them joined by NVLink, in the order of ids.

    Raises UserError if JAX has looked for devices before with the CUDA wheels but no driver.
    """
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which would ask the driver
    try:
        described = topologies.get_topology_desc(
            name, platform="cuda", target_config=description(name), topology=f"{hosts}x1x{a_host}"
        )
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise UserError(
            f"JAX has no CUDA compiler for {name}: {str(error).partition(chr(10))[0][:200]}; "
            "start with JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1, or install the wheels of this JAX: "
            f"{INSTALL}"
        ) from None
    return sorted(described.devices, key=lambda device: device.id)
