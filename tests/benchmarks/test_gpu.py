"""gpu.sh runs to its end without a GPU, and its results say so; what fails stops nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xla_flags import xla_flags

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def gpu(tmp_path, *arguments, **environment):
    """Exit code, what was printed, and the results by name of their file's ending."""
    results = tmp_path / "results"
    ended = subprocess.run(
        ["bash", "benchmarks/gpu.sh", f"--results={results}", *arguments], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1300, check=False,
        env=os.environ | {
            "PYTHON": sys.executable, "WORK": str(tmp_path / "work"), "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(),
        } | environment,
    )  # fmt: skip
    files = {path.suffix: path.read_text() for path in results.glob("*")}
    return ended.returncode, ended.stdout, files


def test_it_runs_to_its_end_on_a_cpu_and_says_that_no_gpu_was_had(tmp_path):
    code, said, files = gpu(tmp_path, "--quick", "check", "inference")
    assert code == 0, said
    found = json.loads(files[".json"])
    assert found["gpu"] is False
    assert "No GPU was had: these are figures of cpu" in files[".md"]
    runs = found["runs"]
    assert list(runs) == [
        "check-attention", "check-float32", "check-bfloat16", "check-evaluate",
        "inference-vit_tiny_patch16_224",
    ]  # fmt: skip
    assert "cuDNN's attention was not had" in said
    # In bfloat16 a rounding is 2^-8; float32 would be far below.
    for row in runs["check-attention"]["rows"]:
        assert 2**-12 < row["error"] < 0.2
    assert "loss" in found["logs"]["check-curves"]
    assert runs["check-evaluate"]["accuracy"] == runs["check-bfloat16"]["accuracy"]
    rows = runs["inference-vit_tiny_patch16_224"]["rows"]
    assert "forward" in rows[0]["case"]
    assert rows[0]["images_per_second"] > 0
    assert runs["check-float32"]["steps"] == 11  # an epoch of 1,442 images in batches of 128


def test_what_has_no_time_left_is_reported_and_the_other_parts_are_tried(tmp_path):
    code, said, files = gpu(tmp_path, "--quick", "small", "large", LIMIT="1")
    assert code == 1
    logs = json.loads(files[".json"])["logs"]
    assert len(logs) == 2
    assert all("not begun: the part's time is used up" in text for text in logs.values())
    assert "failed: small-vit_tiny_patch16_224 large-vit_large_patch16_224" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--data=/nowhere"], "--data=/nowhere has no folder train"), (["medium"], "Parts, each")],
)
def test_what_it_is_not_given_right_is_told_before_anything_runs(tmp_path, arguments, told):
    code, said, files = gpu(tmp_path, *arguments)
    assert (code, files) == (2, {})
    assert told in said
