"""Loading onto a mesh holds no second copy of the parameters on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vit_jax
from tests.xla_flags import xla_flags

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "restore.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small ViT, 88 MB, in two containers."""
    folder = tmp_path_factory.mktemp("small")
    model = vit_jax.create_model("vit_small_patch16_224", scan=True)
    params = model.init()
    for name, layout in (("google.npz", "google"), ("timm.safetensors", "timm")):
        vit_jax.save_pretrained(model, params, folder / name, layout)
    return folder


@pytest.mark.parametrize("layers", ["listed", "stacked"])
@pytest.mark.parametrize("name", ["google.npz", "timm.safetensors"])
def test_anonymous_memory_beyond_the_parameters_stays_below_a_third_of_the_file(
    files, name, layers
):
    path = files / name
    environment = os.environ | {"XLA_FLAGS": xla_flags(8)}
    found = subprocess.run(
        [sys.executable, SCRIPT, "--load", path, layers], env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["params"] > 88_000_000
    assert told["beyond"] < 0.3 * path.stat().st_size
