"""What the pipeline holds does not grow with the images that went through it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_images import encoded, smooth

pytestmark = pytest.mark.long

SCRIPT = """
import contextlib, sys
import numpy as np
from vit_jax.data import pipeline, pipeline_text
from vit_jax.data.sources import open_source
from vit_jax.tasks.classification import Labels

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

if __name__ == "__main__":
    shape = (128, 128, 3)
    source = open_source(f"folder:{sys.argv[1]}", "train")
    text = pipeline_text.parse("decode|inception_crop|flip_lr|randaug(2,15)", shape[:2])
    batches = pipeline.train_batches(
        source, text, shape, Labels(1, 1), seed=0, batch_size=16, rows=np.arange(16),
        examples_seen=0, steps=4 * len(source) // 16, threads=2, workers=int(sys.argv[2]),
    )
    with contextlib.closing(batches):
        for step, _ in enumerate(batches, 1):
            if step * 16 % len(source) == 0:
                print(resident(), flush=True)
"""


def test_memory_does_not_grow_over_epochs(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(encoded(smooth(300, 400), quality=90))
    for number in range(8, 1024):
        os.link(folder / f"{number % 8}.jpg", folder / f"{number}.jpg")
    (tmp_path / "script.py").write_text(SCRIPT)
    for workers in (0, 1):
        told = subprocess.run(
            [sys.executable, tmp_path / "script.py", tmp_path, str(workers)],
            capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout  # fmt: skip
        first, *_, before, last = map(int, told.split())
        # An epoch makes 50 MB of pixels in batches, and 370 MB of decoded images: MB, not of those.
        assert last - before <= 8, told
        assert last - first <= 24, told
