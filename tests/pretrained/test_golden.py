"""Logits that timm, Transformers and Google's models gave, computed here without any of them.

golden/make.py wrote the files: names and shapes as the packages write them, and what they computed.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from made_weights import fill
from safetensors.numpy import save_file

import vit_jax

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def rebuilt(told: dict, folder: Path) -> Path:
    """The file or folder of which a golden file tells."""
    if told["layout"] in ("google", "big_vision"):
        np.savez(folder / "made.npz", **fill(told["shapes"]))
        return folder / "made.npz"
    tensors = fill(told["shapes"], layout="torch")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if told["config"] is None:
        return folder / "model.safetensors"
    (folder / "config.json").write_text(json.dumps(told["config"]))
    return folder


def test_every_layout_has_golden_logits_and_they_are_small_files():
    layouts = {json.loads(path.read_text())["layout"] for path in GOLDEN}
    assert layouts == {"google", "big_vision", "timm", "dinov2", "huggingface"}
    assert max(path.stat().st_size for path in GOLDEN) < 30_000


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_logits_are_those_of_the_package_that_the_weights_come_from(path, tmp_path):
    told = json.loads(path.read_text())
    model, params, report = vit_jax.load_pretrained(
        rebuilt(told, tmp_path), say=None, **told["arguments"]
    )
    shape, seed = told["images"]["shape"], told["images"]["seed"]
    images = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    logits, _ = jax.jit(model.apply)(params, images)
    wanted = np.array(told["logits"])
    assert np.ptp(wanted) > 0.5  # else any model would do
    np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=0)
    assert set(report.counts()) <= {"loaded", "unused"}
