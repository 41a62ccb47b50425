"""What a run says of itself and of slips: devices that are not here, weights that a recipe needs,
sources of one's own, one class alone, a warm-up without end."""

import os
import re
import subprocess
import sys

import jax
import pytest
from made_images import folder_of_images
from ml_collections import ConfigDict

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax.errors import UserError
from vit_jax.evaluators.named import parse
from vit_jax.parallel.runtime import no_device
from vit_jax.resolution import resolve
from vit_jax.tasks.classification import Classification
from vit_jax.training.run import run_of

ONE = jax.devices()[:1]
TINY = {
    "batch_size": 8, "total_steps": 3, "model.image_size": 16, "model.num_layers": 1,
    "model.hidden_size": 16, "model.num_heads": 2, "model.mlp_dim": 16,
    "schedule.warmup_steps": 0, "data.eval.split": "",
}  # fmt: skip


def keys(**changes):
    return [f"--config.{key}={value}" for key, value in (TINY | changes).items()]


# -- devices that are not here ------------------------------------------------------------
GPU = "it needs an NVIDIA GPU with its driver, and pip install 'vit_jax[cuda]'"
CPU_ALONE = "jax_plugins" not in sys.modules and not os.path.exists("/dev/nvidia0")


def on(platform, *command):
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", *command],
        env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


@pytest.mark.skipif(not CPU_ALONE, reason="this machine has other devices")
@pytest.mark.parametrize(
    ("platform", "why"),
    [
        ("cuda", GPU),
        pytest.param("gpu", GPU, marks=pytest.mark.long),
        pytest.param("tpu", "it needs a TPU, and pip", marks=pytest.mark.long),
        pytest.param("abacus", "is not in the list of known backends", marks=pytest.mark.long),
    ],
)
def test_devices_that_are_not_here_are_one_line(platform, why, tmp_path):
    code, _, said = on(platform, "train", "--config=digits.py", f"--workdir={tmp_path}/run")
    assert code == 2
    (line,) = said.splitlines()
    assert line.startswith(f"vit: error: JAX_PLATFORMS={platform}, but JAX finds no such device")
    assert why in line
    assert line.endswith("unset JAX_PLATFORMS, or JAX_PLATFORMS=cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not CPU_ALONE, reason="this machine has other devices")
@pytest.mark.long
def test_the_doctor_finds_that_devices_are_not_here():
    code, told, said = on("cuda", "doctor")
    assert (code, said) == (1, "")
    assert "problem: JAX_PLATFORMS=cuda, but JAX finds no such device here" in told
    assert told.endswith("1 problem\n")


def test_an_error_that_is_not_of_the_devices_stays_what_it_is():
    with pytest.raises(TypeError) as error:
        jax.numpy.zeros(3) @ jax.numpy.zeros(4)
    assert no_device(error.value) is None


# -- weights ------------------------------------------------------------------------------
def test_a_recipe_that_starts_from_weights_asks_for_them(vit, tmp_path):
    photos = folder_of_images(tmp_path / "photos", {"train/a": 4, "train/b": 4})
    code, _, said = vit("train", f"--config=finetune.py:ti16,folder:{photos}",
                        f"--workdir={tmp_path}/run", "--config.data.eval.split=")  # fmt: skip
    assert code == 2
    assert said == (
        "vit: error: this recipe starts from weights: add --config.init=FILE, FOLDER, runs/NAME "
        "or a name that vit_jax.list_pretrained() shows\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_config_that_base_did_not_make_is_one_line_from_python_too(tmp_path):
    config = ConfigDict({"seed": 0, "model": {"variant": "S/16"}})
    with pytest.raises(UserError, match=r"^this is a config without task, .* …: begin it with"):
        vit_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- sources of one's own -----------------------------------------------------------------
OWN = """
import numpy as np
class Stripes:
    classes = ["thin", "wide"]
    def __init__(self, split, count="24"):
        self.count = int(count)
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :: 2 + 2 * (index % 2)] = 200
        return {"image": pixels, "label": index % 2}
"""


@pytest.mark.parametrize(("argument", "count"), [("", 24), (":40", 40)])
def test_a_source_of_ones_own_needs_no_package(vit, tmp_path, monkeypatch, argument, count):
    module = f"stripes{count}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    source = f"{module}:Stripes{argument}"
    code, _, said = vit("train", "--config=folder.py:x", *keys(**{"data.train.source": source}),
                        "--workdir=run")  # fmt: skip
    assert code == 0, said
    assert f"{count} training examples, 2 classes" in said


@pytest.mark.parametrize("source", ["not_here:Stripes", "not_here:Stripes:400"])
def test_a_source_without_a_module_is_refused_with_how_to_name_ones_own(vit, tmp_path, source):
    code, _, said = vit("train", "--config=folder.py:x", *keys(**{"data.train.source": source}),
                        f"--workdir={tmp_path}/run")  # fmt: skip
    assert code == 2
    assert said.startswith(f"vit: error: unknown data source {source!r}: ")
    assert said.endswith("; one of your own is MODULE:NAME, and there is no module not_here here\n")
    assert len(said.splitlines()) == 1


# -- what a run says ----------------------------------------------------------------------
def lines(devices=1, **changes):
    return run_of(tiny_config(**changes), devices=jax.devices()[:devices]).in_numbers


def test_a_run_says_its_batch_its_rate_and_what_trains():
    plain = lines(batch_size=64, total_steps=100, optimizer__weight_decay=0.1,
                  schedule__warmup_steps=10)  # fmt: skip
    assert plain[0] == "1,442 training examples, 10 classes; batch 64 (1 device, no accumulation)"
    assert plain[1] == "100 steps = 6,400 examples = 4.438 epochs"
    assert plain[2] == "adamw: rate 0.003, cosine after 10 steps of warm-up"
    assert re.fullmatch(r"weight decay 0\.1 \(times the rate\) on \d+ tensors", plain[3])
    assert re.fullmatch(r"all \d+ tensors train \([\d,]+ parameters\)", plain[4])
    assert max(map(len, plain)) <= 80


def test_a_run_says_how_devices_and_passes_share_its_batch_and_what_is_frozen():
    spread = lines(8, batch_size=64, microbatch=16, optimizer__weight_decay=0.0,
                   schedule__warmup_steps=0, optimizer__freeze="(?!head).*")  # fmt: skip
    assert spread[0].endswith("; batch 64 (8 devices, 8 on each, 4 passes of 16)")
    assert spread[2] == "adamw: rate 0.003, cosine"
    assert spread[3] == "no weight decay"
    assert re.fullmatch(r"2 of \d+ tensors train \([\d,]+ parameters\)", spread[4])


def test_one_class_alone_is_a_warning(vit, tmp_path):
    photos = folder_of_images(tmp_path / "photos", {"train/cat": 8})
    code, _, said = vit("train", f"--config=folder.py:{photos}", *keys(), f"--workdir={tmp_path}/r")
    assert code == 0, said
    assert (
        "warning: all training examples are of one class, 'cat', so there is nothing to learn and "
        "every answer counts as right\n"
    ) in said


def test_few_shots_and_neighbours_are_called_what_they_are():
    (few, near), _ = parse("fewshot(n=(1, 5))|knn(k=(10,))")
    task = run_of(tiny_config(), devices=ONE).task
    assert task.in_words(few.called({"accuracy_1": 0.5, "accuracy_5": 0.5797, "examples": 9})) == (
        "1 shot 50.00%, 5 shots 57.97%"
    )
    assert task.in_words(near.called({"accuracy_10": 0.5507, "examples": 9})) == "k=10 55.07%"


def test_a_warm_up_of_the_whole_run_is_a_warning():
    def said(total, warmup):
        config = tiny_config(total_steps=total, schedule__warmup_steps=warmup)
        facts = run_of(tiny_config(), devices=ONE).resolved.data.facts
        return resolve(config, facts, 1, Classification.outputs)[1]

    assert said(100, 99) == []
    assert said(1, 1) == []
    assert said(100, 100) == [
        "warning: the warm-up of 100 steps is as long as the run, so the learning rate never "
        "falls; a tenth of the run is --config.schedule.warmup_steps=10"
    ]
    assert said(100, 250) == [
        "warning: the warm-up of 250 steps is longer than the run and is cut to its 100 steps, so "
        "the learning rate never falls; a tenth of the run is --config.schedule.warmup_steps=10"
    ]


@pytest.mark.parametrize(("total", "every"), [(1, 1), (9, 1), (37, 3), (500, 50), (90_000, 50)])
def test_a_short_run_reports_at_least_ten_losses(total, every):
    facts = run_of(tiny_config(), devices=ONE).resolved.data.facts
    config = tiny_config(total_steps=total, log_every_steps=None)
    assert resolve(config, facts, 1, Classification.outputs)[0].log_every_steps == every


def test_a_damaged_image_is_named_once_and_counted_in_every_row(vit, tmp_path):
    photos = folder_of_images(
        tmp_path / "photos", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2}
    )
    for file in "train/a/0", "val/b/1":
        (found,) = photos.glob(f"{file}.*")
        found.write_bytes(found.read_bytes()[:200])
    given = keys(**{"data.eval.split": "val", "total_steps": 9, "eval_every_steps": 3,
                    "batch_size": 16})  # fmt: skip
    code, _, said = vit("train", f"--config=folder.py:{photos}", *given, f"--workdir={tmp_path}/r")
    assert code == 0, said
    assert len(re.findall(r"damaged image skipped: \S+train/a/0", said)) == 1
    assert len(re.findall(r"damaged image skipped: \S+val/b/1", said)) == 1
    assert said.count("(4 examples, 1 damaged)") + said.count("(3 examples, 1 damaged)") == 3
    trained = [row["damaged_images"] for row in rows(tmp_path / "r") if "damaged_images" in row][-1]
    assert trained > 1
    assert f"damaged image skipped: {trained + 3} times in all\n" in said
    assert re.search(rf"step 9/9 .* damaged {trained}\n", said)


def test_launching_says_at_once_where_the_run_is(tmp_path):
    command = [sys.executable, "-m", "vit_jax.cli", "launch", "local", "--platform=cpu",
               f"--dir={tmp_path}", "--", "train", "--config=digits.py",
               "--config.optimizer.lr=-1"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    first = run.stderr.splitlines()[0]
    (name,) = [path.name for path in (tmp_path / "logs").iterdir()]
    assert first == (
        f"{name}: the run is in {tmp_path}/{name}, the output of its processes in "
        f"{tmp_path}/logs/{name}"
    )
