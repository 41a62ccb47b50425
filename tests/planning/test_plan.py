"""Plans of small runs on the virtual devices here, and by formula for GPUs that are not."""

import json

import jax
import numpy as np
import pytest

from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.commands.plan import lines
from vit_jax.config import changed
from vit_jax.errors import UserError
from vit_jax.models import create_model
from vit_jax.planning import topologies
from vit_jax.planning.hlo import Collective
from vit_jax.planning.plan import as_json, by_formula, make_plan
from vit_jax.planning.roofline import seconds
from vit_jax.planning.search import estimates, search
from vit_jax.training.resolve import known
from vit_jax.training.run import run_of

H14 = "pretrain.py:h14,imagenet21k"


def local(**changes):
    return make_plan(tiny_config(**changes), (), topologies.find("local"))


def test_what_a_chip_holds_is_what_it_is_given_in_a_run():
    plan = local(mesh__data=2, mesh__fsdp=4, mesh__min_shard_size=1)
    state = plan.run.init_state()
    held = {
        part: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state[part]))
        for part in ("params", "opt")
    }
    assert plan.memory.params == held["params"]
    assert plan.memory.opt_state == held["opt"]
    assert plan.how == "compiled"


def test_parameters_and_optimiser_of_a_gpu_plan_are_counted_from_sizes_and_shards(capsys):
    """H/14: parameters and two moments in float32 over 8 chips, less what is replicated."""
    assert cli.main(["plan", f"--config={H14}", "--topology=gpu:h100x8", "--json",
                     "--config.batch_size=512"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    d, mlp, layers, classes, tokens = 1280, 5120, 32, 21843, 257
    block = 4 * d * d + 2 * d * mlp
    params = layers * block + 14 * 14 * 3 * d + (tokens - 1) * d + d * d + d * classes
    assert found["bytes_per_chip"]["params"] == pytest.approx(4 * params / 8, rel=0.02)
    assert found["bytes_per_chip"]["opt_state"] == pytest.approx(8 * params / 8, rel=0.02)
    assert found["how"] == "analytic"
    assert found["chips"] == 8
    macs = layers * (tokens * block + 2 * tokens**2 * d) + d * d + d * classes + 256 * 588 * d
    assert found["flops_per_step"]["analytic"] == pytest.approx(6 * macs * 512, rel=1e-3)
    gathered = sum(c["bytes"] for c in found["collectives"] if c["kind"] == "all-gather")
    assert gathered == pytest.approx(2 * 2 * params, rel=0.02)  # twice, in bfloat16
    assert set(found["roofline"]) >= {"compute_s", "memory_s", "network_s", "images_per_second",
                                      "mfu_ceiling"}  # fmt: skip


def test_activations_kept_grow_with_the_microbatch_and_shrink_with_rematerialisation():
    target = topologies.find("gpu:h100x8")

    def saved(remat, microbatch):
        config = tiny_config(batch_size=64, microbatch=microbatch, model__remat=remat)
        return by_formula(run_of(config, devices=8, data=known), target).memory.saved

    assert saved("none", 64) == 2 * saved("none", 32)
    assert saved("full", 64) < saved("dots", 64) < saved("none", 64)


def test_by_formula_rematerialisation_saves_memory_and_costs_time():
    """As the steps compiled for TPUs do (docs/scaling.md): what is computed twice moves again."""
    target = topologies.find("gpu:h100x8")
    plans = {}
    for remat in ("none", "dots", "full"):
        config = tiny_config(batch_size=64, model__remat=remat)
        plans[remat] = by_formula(run_of(config, devices=8, data=known), target)
    saved = [plan.memory.saved for plan in plans.values()]
    assert saved == sorted(saved, reverse=True)
    moved = [plan.costs.bytes for plan in plans.values()]
    assert moved == sorted(moved)
    assert moved[2] < 1.5 * moved[0]


def test_a_tensor_axis_splits_what_is_kept_but_for_the_residual_path():
    target = topologies.find("gpu:h100x8")
    saved = {}
    for tensor in (1, 2):
        config = tiny_config(batch_size=64, mesh__tensor=tensor)
        saved[tensor] = by_formula(run_of(config, devices=8, data=known), target).memory.saved
    assert saved[1] < saved[2] < 2 * saved[1]  # half as many rows, twice as many each


def test_an_h100_multiplies_float32_at_half_the_rate():
    peak = {
        dtype: by_formula(
            run_of(tiny_config(model__dtype=dtype), devices=1, data=known),
            topologies.find("gpu:h100x1"),
        ).roofline.compute_s
        for dtype in ("float32", "bfloat16")
    }
    assert peak["float32"] == pytest.approx(peak["bfloat16"] * 989 / 495)


def test_a_ring_passes_all_but_its_own_part_and_an_all_reduce_does_it_twice():
    target = topologies.find("gpu:h100x16")
    mesh = {"data": 2, "fsdp": 8, "tensor": 1}
    gather = Collective("all-gather", "fsdp", 8, 8e9, 1)
    assert seconds(gather, target, mesh) == pytest.approx(7e9 / 450e9)
    reduce = Collective("all-reduce", "data+fsdp", 16, 8e9, 1)
    between = 2 * (8e9 / 8) * (1 / 2) / 50e9  # of what each of 8 has, over the network
    assert seconds(reduce, target, mesh) == pytest.approx(2 * 7e9 / 450e9 + between)


def test_what_does_not_fit_exits_with_2_and_says_what_would_help(capsys):
    assert cli.main(["plan", f"--config={H14}", "--topology=gpu:h100x8"]) == 2
    out, err = capsys.readouterr()
    assert "NOT compiled" in out
    assert err.startswith("vit: error: does not fit: ")
    assert "a smaller --config.microbatch" in err


def test_search_finds_what_fits_and_is_fastest_of_what_was_judged():
    config = tiny_config(batch_size=64)
    told = []
    choice, plan = search(config, (), topologies.find("gpu:h100x8"), told.append)
    assert plan.fits
    assert choice["mesh.data"] * choice["mesh.fsdp"] * choice["mesh.tensor"] == 8
    assert len(told) >= 1
    again = make_plan(changed(config, choice), (), topologies.find("gpu:h100x8"))
    np.testing.assert_allclose(again.step_s, plan.step_s)


def test_search_varies_the_attention_of_gpus_that_have_cudnns():
    config = tiny_config(batch_size=64, model__dtype="bfloat16", model__attention_dropout=0.0)
    judged = list(estimates(config, [], topologies.find("gpu:h100x1")))
    saved = {
        choice["model.attention"]: plan.memory.saved for choice, plan in judged
        if choice["model.remat"] == "none" and choice["microbatch"] == 64
    }  # fmt: skip
    assert saved["cudnn"] < saved["xla"]  # it keeps no weights of pairs
    v100 = topologies.find("gpu:v100x1")
    assert {choice["model.attention"] for choice, _ in estimates(config, [], v100)} == {None}


def test_cudnns_attention_is_planned_without_cudnn_and_refused_where_it_cannot_be(capsys):
    plan = ["plan", "--config=digits.py", "--config.model.attention=cudnn"]
    assert cli.main([*plan, "--config.model.dtype=bfloat16", "--topology=gpu:h100x1"]) == 0
    assert "attention by cuDNN" in capsys.readouterr().out
    for dtype, gpu, says in (
        ("bfloat16", "gpu:v100x1", "needs an Ampere GPU or a newer one"),
        ("float32", "gpu:h100x1", "needs dtype bfloat16"),
        ("bfloat16", "local", "there is no NVIDIA GPU"),
    ):
        assert cli.main([*plan, f"--config.model.dtype={dtype}", f"--topology={gpu}"]) == 2
        assert says in capsys.readouterr().err


def test_json_is_plain_numbers():
    found = as_json(local())
    assert json.loads(json.dumps(found)) == found
    assert found["roofline"] is None  # nothing is stated of a CPU's peak


def test_a_plan_for_a_cpu_says_that_no_memory_is_stated():
    told = "\n".join(lines(local()))
    assert "the chip: what it has is not stated (a CPU reports none)" in told
    assert "headroom" not in told


def test_what_is_set_by_name_the_search_leaves_as_it_is():
    config, target = tiny_config(batch_size=64, microbatch=16), topologies.find("gpu:h100x8")
    config.mesh.tensor = 2
    choice, _ = search(config, ["mesh.tensor", "microbatch"], target, print)
    assert (choice["mesh.tensor"], choice["microbatch"]) == (2, 16)


def test_a_batch_that_no_mesh_splits_is_told_with_what_would():
    target = topologies.find("gpu:h100x8")
    with pytest.raises(UserError, match="splits batch_size 30: multiples of 8 would work, as 24"):
        search(tiny_config(batch_size=30), (), target, print)
    with pytest.raises(UserError, match=r"with mesh\.tensor=3: leave that to the search"):
        search(tiny_config(batch_size=32, mesh__tensor=3), ["mesh.tensor"], target, print)


def test_a_plan_by_formula_calls_nothing_compiled(capsys):
    cli.main(["plan", "--config=digits.py", "--topology=gpu:h100x1"])
    out = capsys.readouterr().out
    assert "FLOPs, by formula" in out
    assert "estimated" in out
    assert "as compiled" not in out
    assert "at most" not in out
    cli.main(["plan", "--config=digits.py", "--topology=gpu:h100x1", "--json"])
    assert json.loads(capsys.readouterr().out)["flops_per_step"]["compiled"] is None


def test_sizes_and_times_are_told_in_units_that_show_them(capsys):
    cli.main(["plan", "--config=digits.py", "--topology=gpu:v100-16gbx1"])
    out = capsys.readouterr().out
    assert "memory, MiB a chip" in out
    assert "roofline, milliseconds a step at the stated peaks (1.57e+13 FLOP/s in float32)" in out
    assert "14,848.00" in out  # a V100 of 16 GB


@pytest.mark.parametrize("file", ["/", "", "/nowhere/plan.json"])
def test_a_plan_that_could_not_be_written_is_not_made(file, capsys):
    assert cli.main(["plan", "--config=digits.py", "--topology=local", f"--json={file}"]) == 2
    assert capsys.readouterr().out == ""


BAD = [
    ("v5e:3x3", "there is no TPU slice v5e:3x3; of v5e there are 1x1, 2x2"),
    ("v5p:4x4x5", "there is no TPU slice v5p:4x4x5; of v5p there are 2x2x1"),
    ("v5p:8x4x4", "there is no TPU slice"),
    ("v9z:4x4", "unknown topology 'v9z:4x4': TPUs v4:"),
    ("v5e:256", "there is no TPU slice v5e:256; 256 chips are v5e:16x16; of v5e there are 1x1,"),
    ("v5litepod-17", "there is no TPU slice v5litepod-17; of v5e there are 1x1,"),
    ("v4-9", "there is no TPU slice v4-9; of v4 there are 2x2x1,"),
    ("gpu:h100", "unknown GPUs 'gpu:h100'"),
    ("gpu:t4x8", "names are h200, h100"),
    ("gpu:h100x0", "unknown GPUs"),
    ("", "unknown topology ''"),
]


@pytest.mark.parametrize(("topology", "line"), BAD)
def test_what_does_not_exist_is_refused_with_what_does(topology, line, capsys):
    assert cli.main(["plan", "--config=digits.py", f"--topology={topology}"]) == 2
    assert line in capsys.readouterr().err


NAMED = [("v5litepod-16", "v5e:4x4"), ("v6e-256", "v6e:16x16"), ("v4-8", "v4:2x2x1"),
         ("v5p-128", "v5p:4x4x4"), ("v4-512", "v4:4x8x8")]  # fmt: skip


@pytest.mark.parametrize(("accelerator", "shape"), NAMED)
def test_accelerator_types_are_slices_of_so_many_cores(accelerator, shape):
    assert topologies.by_shape(accelerator) == shape


def test_slices_of_gpus_or_none_are_refused():
    for topology, slices in (("gpu:h100x8", 2), ("local", 0), ("local", 2)):
        with pytest.raises(UserError, match="--slices"):
            topologies.find(topology, slices)


@pytest.mark.parametrize("generation", ["v4", "v5p"])
def test_slices_of_three_dimensions_are_multiples_of_four_above_64_chips(generation):
    for shape in topologies.shapes(generation):
        sides = [int(n) for n in shape.split("x")]
        assert np.prod(sides) < 64 or all(n % 4 == 0 for n in sides)
        assert len(sides) == 3


def test_hours_count_the_sizes_of_images_by_their_multiply_adds(capsys):
    plan = ["plan", "--config=digits.py", "--config.model.name=resnet14w8_gn",
            "--config.model.image_size=32", "--topology=gpu:h100x1"]  # fmt: skip
    hours, macs = [], []
    for text in ("decode|resize", "decode|buckets(16, (32, 16), 1.0)|resize"):
        assert cli.main([*plan, f"--config.data.train.pipeline={text}", "--json"]) == 0
        hours.append(json.loads(capsys.readouterr().out)["roofline"]["hours"])
    for size in ((16, 16), (32, 16), (32, 32)):
        macs.append(create_model("resnet14w8_gn", image_size=size, num_classes=10, channels=1).macs)
    assert hours[1] / hours[0] == pytest.approx(sum(macs) / 3 / macs[2])
    cli.main([*plan, f"--config.data.train.pipeline={text}"])
    assert "images have 3 sizes; the step below has the largest: 32 × 32" in capsys.readouterr().out
