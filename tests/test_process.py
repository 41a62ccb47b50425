"""What is set before a process starts: the allocator, threads for virtual devices; old versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax import process

ROOT = Path(__file__).parents[1]
COUNT = """
import os, sys
from vit_jax import process
process.give_virtual_devices_threads()
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


def test_a_jax_that_is_too_old_is_told_before_it_is_imported(tmp_path):
    (tmp_path / "jax-0.4.30.dist-info").mkdir()
    (tmp_path / "jax-0.4.30.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: jax\nVersion: 0.4.30\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", "doctor"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "JAX 0.10 or newer; this is JAX 0.4.30" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_the_allocator_is_set_before_training_and_left_alone_where_the_user_set_it(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import os\nraise ImportError(os.environ['GLIBC_TUNABLES'])\n")
    command = [sys.executable, "-m", "vit_jax.cli", "train", f"--config={recipe}", "--workdir=w"]
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.getcwd()
    for given, wanted in ({}, process.MALLOC), ({"GLIBC_TUNABLES": ""}, ""):
        run = subprocess.run(
            command, env=environment | given, capture_output=True, text=True, check=False
        )
        assert run.returncode == 2, run.stderr
        said = f"recipe {recipe}, line 2: ImportError: {wanted}".removesuffix(": ")
        assert run.stderr == f"vit: error: {said}\n"


@pytest.mark.parametrize(
    ("plugins", "platforms"),
    [(["xla_cuda12"], "cpu"), (["xla_cuda13"], "cpu"), (["xla_cuda12", "xla_rocm60"], None)],
)
def test_compilers_whose_device_is_not_here_leave_jax_on_the_cpu(tmp_path, plugins, platforms):
    if list(Path("/dev").glob("nvidia*")):
        pytest.skip("there is a GPU here")
    for name in plugins:
        (tmp_path / "jax_plugins" / name).mkdir(parents=True)
        (tmp_path / "jax_plugins" / name / "__init__.py").touch()
    script = (
        "import os; from vit_jax import process; process.prepare('plan'); "
        "print(os.environ.get('JAX_PLATFORMS'))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT,
        env=environment | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert ended.stdout.split() == [str(platforms)]


INTERRUPTED = """
import os, signal, sys
from vit_jax import process
signal.signal(signal.SIGINT, signal.default_int_handler)
process.let_interrupts_end_imports()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("raised", flush=True)
try:
    import interrupted_inside
finally:
    print("never", flush=True)
"""


def test_an_interrupt_ends_a_process_that_imports_and_is_raised_elsewhere(tmp_path):
    (tmp_path / "interrupted_inside.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (130, "raised\n", "vit: stopped at once\n")
