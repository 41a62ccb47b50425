"""Plans compiled for TPU slices by the TPU compiler, with no TPU, against counts by hand."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra tpu")

from vit_jax import cli

CLASSES = 21843
SETS = {  # patch, D, MLP, layers, tokens, batch, chips, data, fsdp (the recipe's own are 16 x 16)
    "l16": (16, 1024, 4096, 24, 197, 256, "4x4", 4, 4),
    "h14": (14, 1280, 5120, 32, 257, 4096, "16x16", -1, -1),
}


class Counted:
    """What a plan states, and by hand what it should."""

    def __init__(self, model: str, file):
        patch, d, mlp, self.layers, tokens, self.batch, chips, data, fsdp = SETS[model]
        arguments = [
            f"--config=pretrain.py:{model},imagenet21k", f"--topology=v5e:{chips}",
            f"--config.batch_size={self.batch}", f"--config.mesh.data={data}",
            f"--config.mesh.fsdp={fsdp}", "--config.data.eval.split=", f"--json={file}",
        ]  # fmt: skip
        assert cli.main(["plan", *arguments]) == 0
        self.plan = json.loads(file.read_text())
        self.data, self.fsdp = self.plan["mesh"]["data"], self.plan["mesh"]["fsdp"]
        self.block = 4 * d * d + 2 * d * mlp  # kernels of a layer
        grid = tokens - 1
        self.rest = patch**2 * 3 * d + grid * d + d * d + d * CLASSES  # embedding … head
        self.small = self.layers * (9 * d + mlp) + 6 * d + CLASSES  # biases, norms, class token
        self.macs = self.layers * (tokens * self.block + 2 * tokens**2 * d)
        self.macs += d * d + d * CLASSES + grid * patch**2 * 3 * d

    def traffic(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in self.plan["collectives"]:
            if one["axis"] == "fsdp":
                found[one["kind"]] = found.get(one["kind"], 0) + one["bytes"]
        return found


@pytest.fixture(scope="module", params=SETS)
def counted(request, tmp_path_factory):
    return Counted(request.param, tmp_path_factory.mktemp("plan") / "plan.json")


def test_it_is_compiled_and_fits(counted):
    plan = counted.plan
    assert plan["how"] == "compiled"
    assert plan["fits"]
    assert plan["chips"] == counted.data * counted.fsdp
    memory = plan["bytes_per_chip"]
    assert memory["arguments"] + memory["temporaries"] <= memory["total"] * 1.001
    assert memory["saved"] < memory["temporaries"]


def test_arguments_are_parameters_and_two_moments_over_the_shards(counted):
    images = counted.batch // (counted.data * counted.fsdp) * 224 * 224 * 3
    kernels = (counted.layers * counted.block + counted.rest) / counted.fsdp
    wanted = 12 * (kernels + counted.small) + images
    assert counted.plan["bytes_per_chip"]["arguments"] == pytest.approx(wanted, rel=0.02)


def test_blocks_are_gathered_twice_and_their_gradients_scattered_once_in_bfloat16(counted):
    blocks, rest = 2 * counted.layers * counted.block, 2 * counted.rest
    traffic = counted.traffic()
    assert traffic["all-gather"] == pytest.approx(2 * blocks + rest, rel=0.1)
    whole = traffic.get("all-reduce", 0)  # L/16's head, that is
    assert traffic["reduce-scatter"] == pytest.approx(blocks + rest - whole, rel=0.1)
    assert whole < 0.1 * traffic["reduce-scatter"]


def test_flops_are_six_for_each_multiply_accumulate(counted):
    flops = counted.plan["flops_per_step"]
    assert flops["analytic"] == pytest.approx(6 * counted.macs * counted.batch, rel=1e-3)
    assert flops["compiled"] - flops["recomputed"] == pytest.approx(flops["analytic"], rel=0.03)


def test_what_the_compiler_takes_fits(tmp_path):
    """Of this one its temporaries and arguments, as it states them, sum to 17 GiB."""
    file = tmp_path / "plan.json"
    arguments = ["--config=pretrain.py:h14,jft300m", "--topology=v5e:16x16",
                 "--config.batch_size=4096", "--config.mesh.data=256", "--config.mesh.fsdp=1",
                 "--config.data.eval.split=", f"--json={file}"]  # fmt: skip
    assert cli.main(["plan", *arguments]) == 0
    memory = json.loads(file.read_text())["bytes_per_chip"]
    assert memory["arguments"] + memory["saved"] < memory["total"] < 15.75 * 2**30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_ends_a_plan_at_once_and_prints_no_stack(number):
    """Also while the compiler works, which Python's own handlers would wait for."""
    command = [sys.executable, "-m", "vit_jax.cli", "plan",
               "--config=pretrain.py:l16,imagenet21k", "--topology=v5e:4x4"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as plan:
        assert "compiling for v5e:4x4" in plan.stderr.readline()
        os.kill(plan.pid, number)
        assert plan.wait(timeout=30) == -number
        assert plan.stderr.read() == ""


def test_a_gigantic_model_does_not_fit_one_chip(capsys):
    arguments = ["plan", "--config=pretrain.py:G14,jft300m", "--topology=v5e:1x1"]
    assert cli.main([*arguments, "--config.batch_size=64"]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_an_evaluation_step_that_does_not_fit_is_told_beside_the_whole_plan(capsys):
    arguments = ["--config=pretrain.py:ti16,imagenet21k", "--topology=v5e:1x1"]
    arguments += ["--config.batch_size=64", "--config.eval_batch_size=65536"]
    assert cli.main(["plan", *arguments]) == 2
    told = capsys.readouterr()
    assert "a step in all" in told.out
    assert "an evaluation step does not fit: " in told.err
    assert (
        "of 15.75 GiB a chip; what would help: a smaller --config.eval_batch_size (now 65536)"
        in told.err
    )


def test_offloaded_moments_leave_the_chip(tmp_path):
    """A small model on two chips, so that little is compiled."""
    small = ["--config=pretrain.py:ti16,imagenet21k", "--topology=v5e:1x1",
             "--config.data.eval.split=", "--config.batch_size=64"]  # fmt: skip
    found = {}
    for offload in (False, True):
        file = tmp_path / f"{offload}.json"
        arguments = [*small, f"--config.optimizer.offload={offload}", f"--json={file}"]
        assert cli.main(["plan", *arguments]) == 0
        found[offload] = json.loads(file.read_text())["bytes_per_chip"]
    less = found[False]["arguments"] - found[True]["arguments"]
    assert less == pytest.approx(found[False]["opt_state"], rel=0.1)  # padded to tiles
