"""A detector is trained, continued, evaluated, planned and begun from a classifier's weights by the
commands that do so for classifiers."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import rows, told
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.evaluators.detection import METRICS
from vit_jax.recipe import load
from vit_jax.training.run import run_of

ROOT = Path(__file__).parents[2]
TINY = {
    "batch_size": 16, "total_steps": 6, "log_every_steps": 1, "eval_every_steps": 6,
    "checkpoint.every_steps": 3, "schedule.warmup_steps": 2, "model.num_layers": 1,
    "model.hidden_size": 32, "model.num_heads": 2, "model.mlp_dim": 32,
    "model.image_size": (32, 32),
    "model.detector_width": 32, "model.detector_heads": 2, "model.detector_mlp_dim": 32,
    "model.detector_encoder": 1, "model.detector_decoder": 2, "model.num_queries": 6,
    "data.train.source": "digit_scenes:examples=64,size=32",
    "data.eval.source": "digit_scenes:examples=20,size=32",
    "data.train.pipeline": "decode|flip_lr|inception_crop(None, 0.7)",
}  # fmt: skip


def command_line(**changes):
    """The recipe and its overrides, as typed."""
    keys = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--config=detr.py:digits", *(f"--config.{key}={value}" for key, value in keys.items())]


def config(**changes):
    c = load("detr.py:digits")
    with c.unlocked():
        for key, value in (TINY | {k.replace("__", "."): v for k, v in changes.items()}).items():
            c.update_from_flattened_dict({key: value})
    return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("scenes")
    return workdir, vit_jax.train(config(), workdir, quiet=True)


def test_it_trains_and_its_result_has_the_precisions(trained):
    workdir, result = trained
    assert next(iter(result)) == "ap"
    measured = {key.removeprefix("eval/val/") for key in result if key.startswith("eval/val/")}
    assert measured | {"damaged_images"} == set(METRICS)
    assert {"ap50", "ap75", "steps", "train_seconds", "loss/class", "loss/l1", "loss/giou"} <= set(
        result
    )
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_metric_of_classifiers_ranks_no_detector(tmp_path):
    with pytest.raises(UserError, match=r"best is 'max accuracy', and the evaluation has no acc"):
        vit_jax.train(config(best="max accuracy"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_it_continues_bit_for_bit(trained, tmp_path):
    vit_jax.train(config(schedule__name="constant"), tmp_path / "whole", quiet=True)
    vit_jax.train(config(schedule__name="constant", total_steps=3), tmp_path / "parts", quiet=True)
    vit_jax.train(config(schedule__name="constant"), tmp_path / "parts", quiet=True)
    assert told(tmp_path / "whole") == told(tmp_path / "parts")


def test_it_is_evaluated_from_its_checkpoint_on_eight_devices(trained, capsys):
    workdir, result = trained
    assert cli.main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["examples"], measured["objects"]) == (20, result["eval/val/objects"])
    assert measured["ap"] == pytest.approx(result["ap"], abs=1e-3)
    assert measured["ar_100"] == pytest.approx(result["eval/val/ar_100"], abs=1e-3)


def test_it_is_planned_and_described(capsys):
    assert cli.main(["plan", "--config=detr.py:digits", "--topology=local"]) == 0
    assert "mesh data 8" in capsys.readouterr().out
    assert cli.main(["describe", "--config=detr.py:digits"]) == 0
    assert "model.queries = 'refined'" in capsys.readouterr().out


def test_a_classifiers_weights_are_its_backbone(trained, tmp_path):
    classifier = vit_jax.create_model(
        "vit_nano_patch8_64", num_layers=1, hidden_size=32, num_heads=2, mlp_dim=32,
        image_size=(24, 40), num_classes=3, channels=1,
    )  # fmt: skip
    params = classifier.init(seed=5)
    from vit_jax.pretrained.save import save_pretrained

    save_pretrained(classifier, params, tmp_path / "vit.safetensors", to="timm")
    vit_jax.train(
        config(init=str(tmp_path / "vit.safetensors"), total_steps=1, optimizer__lr=0.0),
        tmp_path / "run", quiet=True,
    )  # fmt: skip
    _, found, _ = vit_jax.load_pretrained(tmp_path / "run", say=None)
    ours = found["backbone"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, ours, params["encoder"])
    assert found["backbone"]["pos_embed"]["grid"].shape == (4, 4, 32)


def test_a_detector_of_some_classes_begins_one_of_others(trained, tmp_path):
    workdir, _ = trained
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "train.json").write_text(json.dumps({
        "images": [{"id": n, "file_name": f"{n}.png", "height": 32, "width": 32}
                   for n in range(16)],
        "annotations": [{"id": n, "image_id": n, "category_id": 7 + n % 2, "bbox": [4, 4, 9, 12]}
                        for n in range(16)],
        "categories": [{"id": 7, "name": "cup"}, {"id": 8, "name": "jug"}],
    }))  # fmt: skip
    c = config(init=str(workdir), total_steps=1, optimizer__lr=0.0, data__eval__split="",
               data__train__source=f"coco:{folder}", data__eval__source="")  # fmt: skip
    c.model.channels = 1
    vit_jax.train(c, tmp_path / "run", quiet=True)
    (_, before, _), (_, after, _) = (
        vit_jax.load_pretrained(one, say=None) for one in (workdir, tmp_path / "run")
    )
    assert before.pop("head")["kernel"].shape == (32, 10 + 1)
    assert after.pop("head")["kernel"].shape == (32, 2 + 1)
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.long
def test_its_step_is_measured_its_rates_are_searched_and_it_is_launched(tmp_path, capsys):
    assert cli.main(["bench", "step", *command_line(), "--rounds=2", "--steps=1", "--json"]) == 0
    ours, _ = json.loads(capsys.readouterr().out)["rows"]
    assert ours["images_per_second"] == pytest.approx(16 / ours["median_s"])
    assert ours["flops_per_second"] > 0

    def done(*arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-P", "-m", "vit_jax.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    rates = "--sweep=optimizer.lr=1e-3,2e-3"
    found = done("sweep", *command_line(), "--study=rates", f"--workdir={tmp_path}", rates,
                 "--", "local", "--platform=cpu")  # fmt: skip
    assert found.returncode == 0, found.stderr
    with (tmp_path / "rates" / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["state"] for row in table] == ["finished"] * 2
    assert float(table[0]["eval/val/ap"]) >= float(table[1]["eval/val/ap"])

    shape = ("--platform=cpu", "--processes=2", "--devices=4")
    found = done("launch", "local", *shape, f"--dir={tmp_path}", "--", "train", *command_line(),
                 f"--workdir={tmp_path / 'job'}")  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "ap50" in json.loads((tmp_path / "job" / "result.json").read_text())


def yolos(**changes):
    """The same for a YOLOS, whose recipe has no keys of a DETR."""
    c = load("yolos.py:vit_nano_patch8_64,digit_scenes:examples=64,size=32")
    c.model.channels, c.data.mean, c.data.std = 1, 0.5, 0.5
    keys = {key: value for key, value in TINY.items() if "detector" not in key}
    keys |= {"data.train.pipeline": "decode", "data.eval.pipeline": "decode", "total_epochs": None}
    keys |= {"model.mid_positions": True, "eval_every_epochs": None, "model.num_layers": 2}
    with c.unlocked():
        for key, value in (keys | {k.replace("__", "."): v for k, v in changes.items()}).items():
            c.update_from_flattened_dict({key: value})
    return c


def test_a_yolos_trains_and_its_result_has_the_precisions(tmp_path):
    result = vit_jax.train(yolos(), tmp_path, quiet=True)
    assert {"ap", "ap50", "loss/class", "loss/l1", "loss/giou"} <= set(result)
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.long
@pytest.mark.parametrize("config", [config, yolos])
def test_losses_of_three_steps_agree_on_every_mesh(config):
    def losses(mesh, devices, microbatch=16):
        c = config(mesh__data=mesh[0], mesh__fsdp=mesh[1], mesh__tensor=mesh[2],
                   mesh__min_shard_size=64, microbatch=microbatch)  # fmt: skip
        run = run_of(c, devices=jax.devices()[:devices])
        step, state = run.compile_train_step(), run.init_state()
        found, batches = [], run.train_batches(0, 3)
        for _, batch in batches:
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
        batches.close()
        return np.array(found)

    reference = losses((1, 1, 1), 1)
    for mesh in ((8, 1, 1), (1, 8, 1), (2, 2, 2)):
        np.testing.assert_allclose(losses(mesh, 8), reference, rtol=2e-6, err_msg=str(mesh))
    np.testing.assert_allclose(losses((1, 1, 1), 1, microbatch=4), reference, rtol=2e-6)


def test_boxes_are_predicted_as_a_table_as_cocos_results_and_as_pictures(trained, tmp_path, capsys):
    workdir, _ = trained
    from vit_jax.data.sources import open_source

    source = open_source("digit_scenes:examples=3,size=32", "val")
    for number in range(3):  # twice as large as the model's images: boxes are in the files' pixels
        image = Image.fromarray(source[number]["image"][..., 0])
        image.resize((64, 96)).save(tmp_path / f"{number}.png")
    command = ["predict", str(workdir), *(str(tmp_path / f"{n}.png") for n in range(3))]
    assert cli.main([*command, "--threshold=0.01", f"--output={tmp_path}/boxes.csv"]) == 0
    lines = (tmp_path / "boxes.csv").read_text().splitlines()
    assert lines[0] == "image,class,score,x1,y1,x2,y2"
    assert len(lines) == 1 + 3 * 6  # every query
    for line in lines[1:]:
        _, name, score, *edges = line.split(",")
        x1, y1, x2, y2 = map(float, edges)
        assert name in source.classes
        assert 0.01 <= float(score) <= 1
        assert 0 <= x1 <= x2 <= 64
        assert 0 <= y1 <= y2 <= 96
    options = [f"--output={tmp_path}/boxes.json", "--threshold=0.01", f"--pictures={tmp_path}/seen"]
    assert cli.main([*command, *options]) == 0
    results = json.loads((tmp_path / "boxes.json").read_text())
    assert [one["image_id"] for one in results] == [0] * 6 + [1] * 6 + [2] * 6
    first = [float(n) for n in lines[1].split(",")[3:]]
    x, y, width, height = results[0]["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], first, atol=0.02)
    assert Image.open(tmp_path / "seen/0000-0.png").size == (64, 96)
    annotations = {
        "images": [{"id": 900 + n, "file_name": f"val/{n}.png"} for n in range(3)],
        "categories": [{"id": 7 * n + 3, "name": name} for n, name in enumerate(source.classes)],
    }
    (tmp_path / "known.json").write_text(json.dumps(annotations))
    options += [f"--coco={tmp_path}/known.json"]
    assert cli.main([*command, *options]) == 0
    again = json.loads((tmp_path / "boxes.json").read_text())
    for one, numbered in zip(results, again, strict=True):
        assert numbered["image_id"] == 900 + one["image_id"]
        assert numbered["category_id"] == 7 * one["category_id"] + 3
    annotations["categories"].pop()
    (tmp_path / "known.json").write_text(json.dumps(annotations))
    assert cli.main([*command, *options]) == 2
    assert "known.json does not list 1 of the 10 classes, such as 9" in capsys.readouterr().err
    assert cli.main([*command, options[-1]]) == 2
    assert "name that file, too" in capsys.readouterr().err
    assert cli.main([*command, "--threshold=0.999"]) == 0
    assert "0.png: no box at or above" in capsys.readouterr().out


def test_a_converted_run_finds_the_same_and_is_evaluated_as_a_detector(trained, tmp_path, capsys):
    workdir, result = trained
    assert cli.main(["convert", str(workdir), str(tmp_path / "copy"), "--to=orbax"]) == 0
    capsys.readouterr()
    data = "--data=digit_scenes:examples=20,size=32"
    assert cli.main(["evaluate", f"--checkpoint={tmp_path}/copy", data, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["objects"] == result["eval/val/objects"]
    assert measured["ar_100"] == pytest.approx(result["eval/val/ar_100"], abs=1e-3)


def test_a_detector_is_not_trained_as_a_classifier(capsys, tmp_path):
    command = ["train", "--config=digits.py", f"--workdir={tmp_path}/run"]
    assert cli.main([*command, "--config.model.name=detr_vit_nano_patch8_64"]) == 2
    assert "is for task=detection, not for task=classification" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_boxes_are_no_labels(capsys, tmp_path):
    command = [
        "train",
        "--config=digits.py",
        f"--workdir={tmp_path}/run",
        "--config.total_epochs=1",
    ]
    assert cli.main([*command, "--config.data.train.source=digit_scenes:examples=200,size=16"]) == 2
    assert "gives boxes and no labels: --config.task=detection" in capsys.readouterr().err


def test_classes_in_another_order_are_loaded_by_their_names(trained):
    """The last output, which is of no object, stays the last."""
    workdir, _ = trained
    from vit_jax.pretrained.load import fill
    from vit_jax.pretrained.weights import open_weights

    weights = open_weights(workdir)
    order = [3, 1, 2, 0, 4, 5, 6, 7, 8, 9]
    plain, _ = fill(weights, weights.model)
    other, _ = fill(weights, weights.model, order=order)
    np.testing.assert_array_equal(
        other["head"]["bias"], np.asarray(plain["head"]["bias"])[[*order, 10]]
    )


def test_published_settings_warn_where_frozen_parts_have_no_numbers(tmp_path):
    from vit_jax.recipe import override
    from vit_jax.training.resolve import resolve

    c = load("detr.py:r50,digit_scenes:examples=8")
    override(c, {"model.image_size": "64", "data.mean": "0.5", "data.std": "0.5"})
    assert any(
        "norms are frozen at their first values" in line for line in resolve(c, devices=1).said
    )
