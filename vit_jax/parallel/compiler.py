"""Options for XLA's compiler, all in one place, by the device that a step is compiled for."""

from typing import Any

from vit_jax.models.kernels import gpu_of

# `deterministic`: no atomics, and no choice of kernels by their measured times.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}
# Without a GPU there is nothing to measure kernels on. Untuned, Triton's products fail for some
# shapes ("Couldn't find output tile sizes"), and cuBLAS takes them all.
ABSENT = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def options(device: Any, deterministic: bool) -> dict[str, Any] | None:
    """Options for a step that is compiled for a device; None where XLA's own are right."""
    gpu = gpu_of(device)
    if gpu is None:
        return None
    chosen = (DETERMINISTIC if deterministic else {}) | ({} if gpu.here else ABSENT)
    return chosen or None
