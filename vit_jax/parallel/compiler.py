"""Options for XLA's compiler, all in one place, by the device that a step is compiled for."""

import os
from typing import Any

from vit_jax.models.kernels import gpu_of

# `deterministic`: no atomics, and no choice of kernels by their measured times.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}
# Without a GPU there is nothing to measure kernels on. Untuned, Triton's products fail for some
# shapes ("Couldn't find output tile sizes"), and cuBLAS takes them all.
ABSENT = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# Several GPUs: the gathering of one scanned layer's parameters begins while the layer before it is
# computed, and its gradients are summed while the next one is. Without these, nothing is computed
# meanwhile, because the loop's body begins with the gathering that it needs (docs/performance.md).
OVERLAP = {
    "xla_gpu_enable_pipelined_all_gather": True, "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
}  # fmt: skip


def options(devices: Any, *, deterministic: bool = False) -> dict[str, Any] | None:
    """Options for a step that is compiled for an array of devices; None where XLA's own are right.

    Of `OVERLAP`, what the user names in XLA_FLAGS stays as it is there.
    """
    gpu = gpu_of(devices.flat[0])
    if gpu is None:
        return None
    flags = os.environ.get("XLA_FLAGS", "")
    overlap = {name: value for name, value in OVERLAP.items() if f"--{name}=" not in flags}
    parts = ((DETERMINISTIC, deterministic), (overlap, devices.size > 1), (ABSENT, not gpu.here))
    chosen = {name: value for part, wanted in parts if wanted for name, value in part.items()}
    return chosen or None
