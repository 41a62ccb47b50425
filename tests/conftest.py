"""Eight virtual CPU devices for every test, and a compile cache that all of them share."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

from tests.xla_flags import xla_flags

os.environ["NPROC"] = "24"  # as `vit` does: see give_virtual_devices_threads in vit_jax/process.py
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"vit_jax_cache_{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Compiling is most of what the suite does: programs are little optimised, as in JAX's own tests,
# unless the environment says otherwise, as the longer suites and one of CI's runs do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The key that signs checkpoints is not that of whoever runs the tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="vit_jax_state_")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}"
# Traced programs are many small objects, and looking through all of them took 7% of the time.
gc.set_threshold(100_000, 20, 50)


@pytest.fixture
def vit(capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def vit(*arguments):
        from vit_jax import cli  # after the environment is set

        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return vit
