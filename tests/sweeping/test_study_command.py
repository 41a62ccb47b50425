"""`vit study` as its user has it: real trials of two architectures, stopped in the middle."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
RECIPE = """
from configs import digits


def get_config():
    c = digits.get_config()
    c.total_epochs, c.total_steps = 0.1, None
    c.batch_size = 32
    c.schedule.warmup_steps, c.schedule.warmup_epochs = 2, None
    c.model.image_size = 8
    return c


def sweep():
    return [
        {"model.name": "vit_mu_patch4_32", "model.image_size": 8},
        {"model.name": "vit_nano_patch4_8", "model.image_size": 8},
    ]
"""


def rows_of(folder):
    with (folder / "study.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_stopped_in_the_middle_ends_with_every_trial_once(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE, encoding="utf-8")
    folder = tmp_path / "study"
    command = [sys.executable, "-P", "-m", "vit_jax.cli", "study", f"--workdir={folder}",
               f"--config={tmp_path / 'mine.py'}", "--epochs=0.2,0.1"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    study = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    first = folder / "0000" / "result.json"
    end = time.monotonic() + 240
    while not first.is_file():
        assert study.poll() is None, study.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    assert study.wait(120) == 75, study.stderr.read()
    before = first.stat().st_mtime_ns
    assert len(rows_of(folder)) < 4
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "done: 4 trials; study.csv, study.html in" in ended.stdout
    assert first.stat().st_mtime_ns == before
    rows = rows_of(folder)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["model"] for row in rows} == {"vit_mu_patch4_32", "vit_nano_patch4_8"}
    for row in rows:
        result = json.loads((folder / f"{int(row['trial']):04d}/result.json").read_text("utf-8"))
        assert int(row["examples"]) == result["examples_seen"]
        assert float(row["flops"]) == 6 * int(row["macs"]) * int(row["examples"])
        assert float(row["eval/val/accuracy"]) == pytest.approx(result["accuracy"], abs=1e-6)
    assert "4 of 4 trials finished" in (folder / "study.html").read_text("utf-8")
    again = subprocess.run(
        [*command, "--pixels=8,16"], env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "done: 4 trials; pixels.csv, study.csv, study.html in" in again.stdout
    with (folder / "pixels.csv").open(encoding="utf-8", newline="") as file:
        points = list(csv.DictReader(file))
    assert [(point["model"], point["side"]) for point in points] == [
        (model, side)
        for model in ("vit_mu_patch4_32", "vit_nano_patch4_8") for side in ("8", "16")
    ]  # fmt: skip
    assert all(float(point["layer_s"]) > 0 for point in points)
    assert "Exponents" in (folder / "study.html").read_text(encoding="utf-8")
