"""A file of the user's that is named like a module of the standard library is run by nothing that
`vit` starts."""

import os
import subprocess
import sys

import pytest
from vit_jax.launch import kubernetes, slurm, tpu
from vit_jax.launch.job import PYTHON, Job

from vit_jax.benching import compiling
from vit_jax.errors import UserError

NAMES = ("queue", "random", "socket", "pickle", "selectors", "json", "vit_jax")


@pytest.fixture
def here(tmp_path):
    """A folder of modules that would shadow the library's, and say so."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text("import os\nos.mkdir('RAN')\nraise SystemExit(9)\n")
    return folder


def run(line, here):
    done = subprocess.run(
        line, cwd=here, capture_output=True, text=True, check=False, timeout=120,
        env={key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"},
    )  # fmt: skip
    assert not (here / "RAN").exists(), done.stderr
    return done


def test_the_canary_is_run_by_a_python_that_looks_in_the_current_folder(here):
    subprocess.run([sys.executable, "-m", "queue"], cwd=here, check=False)
    assert (here / "RAN").exists()


def test_a_local_job_does_not_run_it(here):
    done = run([*PYTHON, "-m", "vit_jax.cli", "launch", "local", "--platform=cpu", "--", "train",
                "--config=digits.py", "--config.optimizer.lr=-1", "--workdir=w"], here)  # fmt: skip
    assert (done.returncode, done.stdout.count("vit: error: ")) == (2, 1)
    assert "optimizer.lr is a number of at least 0" in done.stdout


def test_a_worker_process_of_vit_does_not_run_it(here, tmp_path):
    """Workers of data are started by multiprocessing, as here."""
    script = tmp_path / "bin" / "vit"
    script.parent.mkdir()
    script.write_text(
        "import multiprocessing, sys\nfrom vit_jax.cli import entry\n"
        "if __name__ == '__main__':\n"
        "    sys.argv[1:] = ['--help']\n    entry()\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=print, args=['works'])\n"
        "    worker.start(), worker.join()\n"
    )
    done = run([sys.executable, script], here)
    assert done.stdout.endswith("works\n"), done.stderr


def test_a_measured_start_does_not_run_it(here, monkeypatch):
    """Of `vit bench compile`, which starts itself; a recipe that is not there ends it early."""
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match="no config file"):
        compiling.in_a_process("none.py", {}, str(here.parent / "cache"))
    assert not (here / "RAN").exists()


def test_scripts_start_python_without_it_or_the_console_script(tmp_path):
    job = Job("a", ("train", "--config=digits.py"), tmp_path, image="v:1")
    starts = [line for line in slurm.script([job], {}).splitlines() if sys.executable in line]
    assert len(starts) == 2
    assert all(f"{sys.executable} -P -" in line for line in starts)
    assert " vit train --config=digits.py" in tpu.script(job, accelerator="v4-8", zone="a-b")
    pod = kubernetes.manifests(job)[-1]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][0] == "vit"
