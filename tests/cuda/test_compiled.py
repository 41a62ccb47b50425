"""The steps that the CUDA compiler makes are those of `benchmarks/results/gpu_compiled.json`:
memory, calls of cuDNN, collectives. Needs the CUDA wheels and no GPU: `make test-cuda-compile`."""

import importlib.util
import json
import time
from pathlib import Path

import jax
import pytest

from vit_jax import cli
from vit_jax.planning import gpus

pytestmark = pytest.mark.skipif(
    bool(gpus.missing()), reason="make test-cuda-compile installs the CUDA wheels"
)
ROOT = Path(__file__).parent.parent.parent
COMMITTED = json.loads((ROOT / "benchmarks/results/gpu_compiled.json").read_text(encoding="utf-8"))
FUSED = [row for row in COMMITTED["rows"] if row["attention"] == "cudnn"]
SAME_COMPILER = COMMITTED["versions"]["jax"] == jax.__version__
UNROLLED = "layers unrolled"


@pytest.fixture(scope="module")
def compiled():
    spec = importlib.util.spec_from_file_location(
        "gpu_compiled", ROOT / "benchmarks" / "gpu_compiled.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", FUSED, ids=lambda row: f"{row['case']}, {row['gpus']}")
def test_a_step_is_what_was_committed(row, compiled):
    kind, _, count = row["gpus"].rpartition("x")
    found = compiled.planned(row["case"], kind, int(count))
    assert found["attention"] == "cudnn"
    for name in ("cuDNN attention", "cuDNN attention, backward"):
        assert found["calls"][name] == row["layers"]  # one each way for each layer
    assert found["arguments_mib"] == pytest.approx(row["arguments_mib"], rel=0.01)
    assert found["flops"] == pytest.approx(row["flops"], rel=0.01)
    assert found["collectives"].keys() == row["collectives"].keys()
    for name, size in row["collectives"].items():
        assert found["collectives"][name] == pytest.approx(size, rel=0.05), name
    # Another XLA may fuse otherwise.
    room = 0.02 if SAME_COMPILER else 0.25
    assert found["temporaries_mib"] == pytest.approx(row["temporaries_mib"], rel=room)
    assert found["bytes"] == pytest.approx(row["bytes"], rel=room)


def committed(case, gpus, attention):
    (row,) = [
        row for row in COMMITTED["rows"]
        if (row["case"], row["gpus"], row["attention"]) == (case, gpus, attention)
    ]  # fmt: skip
    return row


@pytest.mark.parametrize(("model", "most"), [("B/16", 14_500), ("L/16", 19_500)])
def test_fused_attention_saves_memory_and_traffic(model, most):
    fused, plain = (committed(f"{model}, {UNROLLED}", "h100x1", side) for side in ("cudnn", "xla"))
    assert fused["temporaries_mib"] <= most
    assert fused["temporaries_mib"] < 0.65 * plain["temporaries_mib"]
    assert fused["bytes"] < 0.7 * plain["bytes"]


def test_a_plan_takes_a_minute_and_its_figures_are_those_counted_by_hand(capsys):
    began = time.monotonic()
    code = cli.main([
        "plan", "--config=pretrain.py:l16,imagenet2012", "--config.batch_size=1024",
        "--config.mesh.data=1", "--config.mesh.fsdp=8", "--topology=gpu:h100x8", "--json",
    ])  # fmt: skip
    assert code == 0
    assert time.monotonic() - began < 240  # 40 s on two quiet cores
    plan = json.loads(capsys.readouterr().out)
    assert plan["how"] == "compiled"
    width, mlp, layers, tokens, patch = 1024, 4096, 24, 197, 16 * 16 * 3
    block = 4 * width * width + 2 * width * mlp
    kernels = layers * block + patch * width + width * width + width * 1000
    small = layers * (9 * width + mlp + 4 * width) + (tokens + 1) * width + 4 * width + 1000
    params = kernels + small
    images = 128 * 224 * 224 * 3
    state = 3 * 4 * params / 8  # parameters and two moments in float32, over eight GPUs
    assert plan["bytes_per_chip"]["arguments"] == pytest.approx(state + images, rel=0.02)
    collectives = {one["kind"]: one["bytes"] for one in plan["collectives"]}
    # Each block is gathered for the forward and for the backward pass, in bfloat16.
    assert collectives["all-gather"] == pytest.approx(2 * 2 * kernels, rel=0.1)
    assert collectives["reduce-scatter"] == pytest.approx(2 * kernels, rel=0.1)
    attention = layers * 2 * tokens**2 * width
    macs = layers * block * tokens + attention + 196 * patch * width + width * width + width * 1000
    flops = 1024 * (3 * 2 * macs + 2 * layers * tokens**2 * width)  # one product once more
    assert plan["flops_per_step"]["compiled"] == pytest.approx(flops, rel=0.03)


def test_what_does_not_fit_is_refused_with_what_would(capsys):
    code = cli.main(["plan", "--config=pretrain.py:g14,jft300m", "--config.batch_size=256",
                     "--topology=gpu:a100-40gbx1"])  # fmt: skip
    assert code == 2
    said = capsys.readouterr().err
    assert "does not fit" in said
    assert "a smaller --config.microbatch, --config.model.remat=full; --search finds" in said
