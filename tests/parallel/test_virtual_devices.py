"""Virtual devices of a CPU have threads enough to wait for each other in."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT = """
import os, sys
from vit_jax import cli
cli._threads_for_virtual_devices()
import jax
jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))).block_until_ready()
print(os.environ.get("NPROC"), len(os.listdir("/proc/self/task")))
"""


def threads(flags, **environment):
    told = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=ROOT, check=True, capture_output=True, text=True,
        env=os.environ | {"NPROC": "", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | environment,
    )  # fmt: skip
    return told.stdout.split()


def test_each_virtual_device_has_three_threads_of_the_pool():
    devices = "--xla_force_host_platform_device_count=20"
    asked, found = threads(devices)
    assert int(asked) >= 60
    assert int(found) > 60
    assert int(threads(devices, NPROC="20")[1]) < int(found) - 30  # an own number stays


def test_real_devices_have_what_they_had():
    assert len(threads("")) == 1  # no number was asked for
