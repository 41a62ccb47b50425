"""Which options XLA gets for which devices."""

import jax
import numpy as np

from vit_jax.parallel.compiler import ABSENT, DETERMINISTIC, OVERLAP, options


class Absent:
    """A GPU that is not here, as JAX describes it to a compiler."""

    platform, device_kind, compute_capability = "gpu", "NVIDIA H100 80GB HBM3", "9.0"


def gpus(count):
    return np.array([Absent() for _ in range(count)])


def test_a_cpu_gets_none():
    assert options(np.array(jax.devices()), deterministic=True) is None


def test_one_gpu_has_nothing_to_overlap():
    assert options(gpus(1)) == ABSENT


def test_several_gpus_overlap_collectives_unless_xlas_own_flags_say_otherwise(monkeypatch):
    assert options(gpus(8)) == OVERLAP | ABSENT
    monkeypatch.setenv("XLA_FLAGS", " ".join(f"--{name}=false" for name in OVERLAP))
    assert options(gpus(8)) == ABSENT
    monkeypatch.delenv("XLA_FLAGS")
    assert options(gpus(8), deterministic=True) == OVERLAP | DETERMINISTIC | ABSENT
