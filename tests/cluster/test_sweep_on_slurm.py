"""`vit sweep` whose trials are jobs of a real SLURM: killed, it finds its jobs again."""

import os
import subprocess
import sys
import time

import optuna
from slurm_here import Slurm

from tests.parallel.jobs import ROOT, TINY

PATIENCE = 300  # seconds


def test_a_sweep_on_slurm_killed_in_the_middle_finds_its_jobs_and_ends(tmp_path):
    folder = tmp_path / "rates"
    overrides = [f"--config.{key}={value}" for key, value in TINY.items() if key != "optimizer.lr"]
    line = [
        sys.executable, "-m", "vit_jax.cli", "sweep", "--config=digits.py", "--study=rates",
        "--sweep=optimizer.lr=1e-3,3e-3,9e-3", f"--workdir={tmp_path}", "--parallel=2", *overrides,
        "--", "slurm", "--platform=cpu", "--time-limit=30",
    ]  # fmt: skip
    (tmp_path / "slurm").mkdir()
    with Slurm(tmp_path / "slurm") as slurm:
        environment = slurm.environment | {"PYTHONPATH": str(ROOT)}
        sweep = subprocess.Popen(line, env=environment, cwd=ROOT)
        end = time.monotonic() + PATIENCE
        while len(list(folder.glob("*/metrics.jsonl"))) < 2:
            assert sweep.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        sweep.kill()
        sweep.wait()
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
            timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    journal = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.load_study(study_name="rates", storage=optuna.storages.JournalStorage(journal))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    for number in range(3):  # one job each
        logs = folder / f"000{number}" / "logs"
        assert len(list(logs.glob("*_submission.sh"))) == 1
        assert [path.read_text() for path in (logs / "codes").glob("[0-9]*") if "-" not in path.name
                ] == ["0"]  # fmt: skip
    assert os.path.exists(folder / "best.py")
