"""`vit bench`: what it tells is what was run, in lines, as JSON and as CSV; a batch that does not
fit is halved; what it cannot measure is one line."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_images import folder_of_images

from tests.xla_flags import xla_flags
from vit_jax import cli
from vit_jax.models import create_model

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 64, "image_size": 8}
KEYS = {"batch_size": 16, "model.pool": "cls"} | {f"model.{k}": v for k, v in SIZES.items()}


def tiny(**changes):
    """The digits and a ViT of two layers; keys of the config with __ for the dot."""
    keys = KEYS | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--config=digits.py", *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.fixture
def vit(capsys):
    def run(*arguments):
        code = cli.main(["bench", *arguments])
        return code, *capsys.readouterr()

    return run


def figures(vit, *arguments):
    code, out, said = vit(*arguments, "--json")
    assert code == 0, said
    return json.loads(out), said


@pytest.mark.parametrize(("what", "per_mac"), [("step", 6), ("forward", 2)])
def test_rates_follow_from_the_median_the_batch_and_the_macs(vit, tmp_path, what, per_mac):
    began = time.perf_counter()
    code, out, _ = vit(
        what, *tiny(), "--rounds=3", "--steps=2", f"--json={tmp_path}/f.json",
        f"--csv={tmp_path}/f.csv",
    )  # fmt: skip
    spent = time.perf_counter() - began
    found = json.loads((tmp_path / "f.json").read_text())
    ours, matmul = found["rows"]
    assert (code, found["name"], ours["rounds"]) == (0, what, 3)
    assert 0 < ours["q1_s"] <= ours["median_s"] <= ours["q3_s"] < spent / 2
    assert ours["compile_s"] < spent
    # 4 patches and the class token of width 32: embedding, two blocks, head, by hand.
    tokens, width = 5, 32
    macs = 4 * 16 * width + 10 * width
    macs += 2 * tokens * (4 * width**2 + 2 * tokens * width + 2 * width * SIZES["mlp_dim"])
    rate = 16 / ours["median_s"]
    assert ours["images_per_second"] == pytest.approx(rate)
    assert ours["flops_per_second"] == pytest.approx(per_mac * macs * rate)
    products = 2 * 1024**3 / matmul["median_s"]
    assert matmul["flops_per_second"] == pytest.approx(products)
    assert ours["of_matmul"] == pytest.approx(per_mac * macs * rate / products / 8)  # 8 devices
    assert "mfu" not in ours  # of a CPU no peak is stated
    with (tmp_path / "f.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == ["vit_jax", "matmul, float32"]
    assert float(rows[0]["median_s"]) == ours["median_s"]
    assert f"{ours['images_per_second']:,.1f}" in out


def test_with_the_runs_own_data_the_wait_for_it_is_told(vit, tmp_path):
    photos = folder_of_images(tmp_path, {"train/a": 8, "train/b": 8, "val/a": 1, "val/b": 1})
    found, _ = figures(
        vit, "step", f"--config=folder.py:{photos}", "--config.batch_size=8", "--data=real",
        "--config.model.num_layers=1", "--rounds=2",
    )  # fmt: skip
    assert 0 < found["rows"][0]["waiting"] < 1


def test_peers_take_turns_with_ours_and_the_others_are_named(vit):
    found, said = figures(vit, "step", *tiny(mixup=0.2), "--rounds=3", "--against=linen,timm")
    sides = [row["side"] for row in found["rows"]]
    assert sides[:2] == ["vit_jax", "linen"]
    assert "matmul" in sides[-1]
    ours, linen = found["rows"][:2]
    assert linen["ratio_low"] <= linen["ratio"] <= linen["ratio_high"]
    assert next(iter(found["ratios"].values())) == linen["ratio"]
    assert linen["batch_size"] == ours["batch_size"] == 16
    assert "ours does what peers do not: mixup=0.2, optimizer.clip_norm=1.0" in said
    assert ("timm is not measured: " in said) == (len(sides) == 3)


def test_another_model_than_ours_is_not_compared_with_it(vit):
    found, said = figures(vit, "forward", *tiny(model__pool="gap"), "--rounds=1", "--against=linen")
    assert [row["side"] for row in found["rows"]] == ["vit_jax", "matmul, float32"]
    size = create_model(
        "vit_nano_patch4_8", **SIZES, channels=1, num_classes=10, pool="gap"
    ).num_params
    assert f"linen is not measured: it is not the same model: {size + 64:,} parameters, " in said


# Runs a command within so many bytes beyond what the process has when its devices are there.
WITHIN = """
import resource, sys
import jax
from vit_jax import cli
jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))).block_until_ready()
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(cli.main(["bench", *sys.argv[2:]]))
"""


def within(room, *arguments):
    ended = subprocess.run(
        [sys.executable, "-c", WITHIN, str(room), *arguments], cwd=ROOT, capture_output=True,
        text=True, timeout=600, check=False,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags()},
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_batch_that_does_not_fit_is_halved_and_that_is_said():
    batch = 2**19  # needs 5.4 GB in one piece; its quarter, 1.35 GB, leaves room for all else
    code, out, said = within(
        5 * 10**9 // 2, "forward", *tiny(batch_size=batch), "--rounds=1", "--json"
    )
    assert code == 0, said
    halved = said.count("takes too much memory")
    assert halved >= 1
    assert f"a batch of {batch:,} takes too much memory (RESOURCE_EXHAUSTED" in said
    ours = json.loads(out)["rows"][0]
    assert ours["batch_size"] == batch / 2**halved
    assert ours["compiled_bytes"] < 5 * 10**9 / 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_model_that_does_not_fit_with_any_batch_is_one_line():
    # Parameters of 26 GB in a room that the compiler and its threads fit into by far.
    code, out, said = within(8 * 10**9, "forward", *tiny(batch_size=1, model__mlp_dim=10**8))
    assert (code, out) == (2, "")
    assert said.splitlines()[-1].startswith("vit: error: not even a batch of 1 fits into memory")


def test_a_save_and_its_restore_are_told_and_nothing_is_left(vit, tmp_path):
    found, _ = figures(vit, "checkpoint", *tiny(), "--rounds=1", f"--folder={tmp_path}")
    waits, on_disk, sums, restored = found["rows"]
    assert "training waits" in waits["side"]
    assert waits["median_s"] < on_disk["median_s"]
    # Parameters and Adam's two moments, float32; counters beside them.
    params = create_model("vit_nano_patch4_8", **SIZES, channels=1, num_classes=10).num_params
    assert 12 * params <= waits["bytes"] <= 12 * params + 64
    assert restored["bytes_per_second"] == pytest.approx(waits["bytes"] / restored["median_s"])
    assert "sums" in sums["side"]
    assert list(tmp_path.iterdir()) == []


def test_compiling_is_told_apart_and_the_second_process_finds_what_the_first_compiled(vit):
    found, _ = figures(vit, "compile", *tiny(), "--rounds=1")
    seconds = {(row["case"].split(", ")[1], row["side"]): row["median_s"] for row in found["rows"]}
    for cache in ("empty cache", "warm cache"):
        parts = [s for (which, side), s in seconds.items() if which == cache]
        assert sum(parts[:-1]) == pytest.approx(parts[-1], rel=1e-3)
    assert seconds["warm cache", "compile"] < seconds["empty cache", "compile"]


def test_every_stage_of_the_input_is_told(vit, tmp_path):
    photos = folder_of_images(tmp_path, {"train/a": 8, "train/b": 8, "val/a": 1, "val/b": 1})
    options = (
        f"--config=folder.py:{photos}", "--config.batch_size=8", "--seconds=0.2",
        "--config.data.train.pipeline=decode|inception_crop(32)|resize|flip_lr",
    )  # fmt: skip
    found, _ = figures(vit, "input", *options)
    stages = found["stages"]
    assert [row["stage"] for row in stages] == [
        "read", "decode (its head; the rest in what follows)", "inception_crop(32)", "resize",
        "flip_lr", "one thread", "batches on the host, 2 threads",
        "batches on the devices, 2 threads",
    ]  # fmt: skip
    parts = sum(row["us_per_image"] for row in stages[:5])
    assert stages[5]["us_per_image"] == pytest.approx(parts)
    for row in stages:
        assert row["images_per_second"] == pytest.approx(1e6 / row["us_per_image"])
        assert row["images_per_second_per_core"] <= row["images_per_second"]
    code, out, _ = vit("input", *options, f"--json={tmp_path}/input.json")
    assert code == 0
    assert len(out.splitlines()) == 1 + len(stages)
    assert len(json.loads((tmp_path / "input.json").read_text())["stages"]) == len(stages)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["input", "--config=digits.py", "--seconds=0"], "--seconds must be more than 0"),
        (["input", "--config=folder.py:/nowhere"], "there is no folder /nowhere"),
        (["step", "--config=digits.py", "--rounds=0"], "--rounds must be more than 0"),
        (["step", "--config=digits.py", "--json=/nowhere/f.json"], "there is no folder /nowhere"),
        (["step", "--config=digits.py", "--csv=/tmp"], "--csv=/tmp is a folder"),
        (["step", "--config=digits.py", "--json="], "--json= names no file"),
        (["step", "--config=digits.py", "--against=tim"], "no peer 'tim'; did you mean timm?"),
        (["forward", "--config=digits.py", "--against=linen", "--data=real"],
         "leave out --data=real"),
        (["checkpoint", *tiny(), "--folder=/nowhere"], "/nowhere: there is no such folder"),
        (["compile", "--config=digitz.py", "--rounds=1"], "digits.py"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(vit, options, told):
    code, _, said = vit(*options)
    assert (code, said.count("\n")) == (2, 1)
    assert told in said


def test_an_option_of_another_part_is_refused(vit, capsys):
    with pytest.raises(SystemExit) as stopped:
        vit("step", "--config=digits.py", "--seconds=1")
    assert stopped.value.code == 2
    assert "unrecognized arguments: --seconds=1" in capsys.readouterr().err
