"""GPUs by name, their descriptions, and what a program says that calls NVIDIA's libraries."""

import re
from pathlib import Path

import pytest

from vit_jax import cli, process
from vit_jax.errors import UserError
from vit_jax.parallel.chips import CHIPS
from vit_jax.planning import gpus, hlo, topologies

NAMES = [chip.name for chip in CHIPS if not chip.kinds.startswith("TPU")]
HERE = gpus.missing() == ""
not_installed = pytest.mark.skipif(HERE, reason="the CUDA compiler is installed here")


@pytest.mark.parametrize("name", NAMES)
def test_every_gpu_is_described_as_its_data_sheet_says(name):
    (chip,) = [chip for chip in CHIPS if chip.name == name]
    row = gpus.kinds()[name]
    assert re.fullmatch(chip.kinds, row["device"])
    assert next(c for c in CHIPS if re.fullmatch(c.kinds, row["device"])) is chip
    assert float(row["bandwidth"]) == pytest.approx(chip.bandwidth, rel=0.05)
    share = chip.memory * 2**30 / float(row["memory_bytes"])
    assert share == pytest.approx(float(process.GPU_MEMORY), abs=0.005)
    assert row["source"]
    # Products of two numbers a clock, of each lane: float32 without tensor cores.
    float32 = (
        2 * float(row["multiprocessors"]) * float(row["lanes"]) * float(row["clock_ghz"]) * 1e9
    )
    assert float32 <= chip.peak_float32 * 1.01


def test_a_description_is_text_of_the_message_that_the_compiler_reads():
    text = gpus.description("h100")
    assert text.count("{") == text.count("}")
    for field in ("core_count: 132", "memory_bandwidth: 3352320000000", "major: 9 minor: 0",
                  'platform_name: "CUDA"', "threads_per_warp: 32"):  # fmt: skip
        assert field in text


@not_installed
@pytest.mark.parametrize(
    ("name", "count", "together"),
    [("h100x8", 8, 8), ("h100x2", 2, 2), ("a100-40gbx8x4", 32, 8), ("b200x4x2", 8, 4),
     ("rtx4090x1", 1, 1), ("l40sx8", 8, 8), ("h100x32", 32, 8), ("h100x18", 18, 6)],
)  # fmt: skip
def test_a_name_says_the_gpus_of_a_host_and_the_number_of_hosts(name, count, together):
    target = topologies.find(f"gpu:{name}")
    assert (target.count, target.together) == (count, together)


@pytest.mark.parametrize(
    ("name", "says"),
    [("h100x17", "15 would be"), ("h100", "gpu:h100x8x4"), ("t4x8", "names are h200, h100"),
     ("h100x8x0", "unknown GPUs"), ("x8", "rtx4090")],
)  # fmt: skip
def test_what_is_no_number_of_gpus_is_refused_with_what_would_be(name, says):
    with pytest.raises(UserError, match=re.escape(says)):
        topologies.find(f"gpu:{name}")


@not_installed
def test_a_compiler_that_is_missing_is_named_with_its_pip_line(capsys):
    code = cli.main(["plan", "--config=digits.py", "--topology=gpu:h100x8"])
    out = capsys.readouterr().out
    assert code == 0
    assert "NOT compiled: analytic model, by formula alone; the CUDA compiler is not" in out
    assert "pip install 'vit_jax[cuda]'" in out


# Two layers of a scanned step, as jax 0.10.2 compiles it for an H100, shortened: one product and
# one attention each way in the loop, and the gradient of a filter behind it.
PROGRAM = Path(__file__).with_name("gpu_step.hlo").read_text(encoding="utf-8")


def test_products_attention_and_convolutions_of_libraries_are_counted_by_hand():
    found = hlo.costs(PROGRAM, {"data": 1, "fsdp": 1, "tensor": 1})
    product = 2 * 64 * 32 * 96
    scores = 2 * 4 * 2 * 16 * 16 * 16  # one product of queries and keys
    convolution = 2 * 8 * (8 * 4) * (3 * 3) * 3 * 5
    assert found.flops == 2 * (product + (2 + 5) * scores) + convolution
    assert found.recomputed == 2 * scores  # the backward pass multiplies queries and keys again
    assert found.calls == {
        "cuBLAS product": 2, "cuDNN attention": 2, "cuDNN attention, backward": 2,
        "cuDNN convolution": 1,
    }  # fmt: skip


def test_the_workspace_of_a_product_is_no_traffic():
    found = hlo.costs(PROGRAM, {"data": 1, "fsdp": 1, "tensor": 1})
    product = 2 * (64 * 32 + 32 * 96 + 64 * 96)
    tokens, statistics = 2 * 4 * 16 * 32, 4 * 4 * 2 * 16
    attention = (3 + 1) * tokens + statistics + (5 + 3) * tokens + statistics
    convolution = 2 * (8 * 10 * 6 * 3 + 8 * 8 * 4 * 5 + 3 * 3 * 3 * 5)
    assert found.bytes == 2 * (product + attention) + convolution
