"""`vit evaluate`, `vit describe` and `vit doctor`, as a user calls them."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax import cli
from vit_jax.models.data_config import DataConfig
from vit_jax.training.evaluation import measure
from vit_jax.training.run import run_of

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    vit_jax.train(tiny_config(optimizer__lr=1e-2, total_steps=40), workdir, devices=ONE, quiet=True)
    return workdir


def test_evaluate_tells_what_training_told_on_another_number_of_devices(trained, capsys):
    assert cli.main(["evaluate", f"--workdir={trained}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = [row for row in rows(trained) if "eval/val/accuracy" in row][-1]
    assert found["accuracy"] == told["eval/val/accuracy"]
    assert found["loss"] == pytest.approx(told["eval/val/loss"], rel=1e-5)
    assert (found["examples"], found["step"], found["split"]) == (355, 40, "val")


def test_evaluate_writes_json_to_a_file_and_takes_another_split(trained, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    checkpoint = f"--checkpoint={trained}/checkpoints/40"
    assert cli.main(["evaluate", checkpoint, "--split=train", f"--json={file}"]) == 0
    assert json.loads(file.read_text())["examples"] == 1442
    assert "1442 examples of digits train" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [8, 56, 64, 360])
def test_metrics_do_not_depend_on_batch_size_or_devices(batch_size):
    reference = None
    for devices in (1, 8):
        config = tiny_config(eval_batch_size=batch_size)
        run = run_of(config, devices=jax.devices()[:devices])
        params = run.init_state()["params"]
        head = np.random.default_rng(0).normal(size=params["head"]["kernel"].shape)
        params["head"]["kernel"] = jax.device_put(head.astype(np.float32))
        found = measure(run, params, print)
        reference = reference or measure_by_hand(run, params)
        assert found["examples"] == 355
        assert found["accuracy"] == pytest.approx(reference[0], abs=1e-9)
        assert found["loss"] == pytest.approx(reference[1], rel=1e-6)


def measure_by_hand(run, params):
    """Accuracy and negative log-likelihood of the split in float64, one matrix at a time."""
    images = np.stack(
        [run.evaluators[0].test[i]["image"] for i in range(len(run.evaluators[0].test))]
    )
    labels = np.array(
        [run.evaluators[0].test[i]["label"] for i in range(len(run.evaluators[0].test))]
    )
    params = jax.device_get(params)
    logits, _ = run.model.apply(params, run.model.data_config.normalise(images))
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return (logits.argmax(-1) == labels).mean(), -log_p[np.arange(len(labels)), labels].mean()


def test_constant_logits_score_no_accuracy():
    run = run_of(tiny_config(), devices=ONE)
    assert measure(run, run.init_state()["params"], print)["accuracy"] == 0.0


def test_describe_shows_the_recipe_whose_data_is_not_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cli.main(["describe", "--config=configs/pretrain.py:b16,imagenet21k"]) == 0
    said = capsys.readouterr().out
    for text in (
        "total_steps = 311948", "14,197,122 training examples, 21,843 classes",
        "encoder/block/attention/qkv/kernel", "103,186,515 parameters", "warmup_steps = 10000",
    ):  # fmt: skip
        assert text in said, text


def test_describe_writes_one_augmented_batch_as_a_picture(capsys, tmp_path):
    sheet = tmp_path / "batch.png"
    assert cli.main(["describe", "--config=digits.py", f"--batch={sheet}"]) == 0
    with Image.open(sheet) as image:
        assert image.size == (512, 512)  # 64 digits of 8 pixels, enlarged eightfold
        assert len(np.unique(np.asarray(image))) > 8


def test_doctor_names_versions_and_devices(capsys):
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"jax {jax.__version__}" in said
    assert said.count("cpu ") >= 8
    assert "all is well" in said


def test_logits_that_are_not_numbers_score_nothing():
    run = run_of(tiny_config(), devices=ONE)
    params = run.init_state()["params"]
    params["head"]["kernel"] = params["head"]["kernel"].at[:, 3].set(jnp.nan)
    found = measure(run, params, print)
    assert (found["accuracy"], found["examples"]) == (0.0, 355)


def test_evaluate_takes_a_run_whose_batch_this_machine_does_not_divide(tmp_path, capsys):
    config = tiny_config(batch_size=30, microbatch=10, total_steps=1)
    result = vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["examples"]) == (result["accuracy"], 355)


def test_converted_weights_are_measured_at_the_size_that_they_were_shown_at(tmp_path, capsys):
    """As DINOv2 of the Hub: positions of 32 x 32 pixels, images shown at 24 x 24."""
    model = vit_jax.create_model(
        "vit_mu_patch4_32", num_layers=1, num_classes=2, posemb_resize="huggingface"
    )
    shown = DataConfig(0.4, 0.3, "bicubic", crop=0.8, floor=True, image_size=(24, 24))
    model = dataclasses.replace(model, data_config=shown)
    params = model.init()
    rng = np.random.default_rng(0)
    params["head"]["kernel"] = rng.normal(0, 0.2, (32, 2)).astype(np.float32)
    vit_jax.save_pretrained(model, params, tmp_path / "own", "orbax", classes=["cat", "dog"])
    for name in ("cat", "dog"):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (40 + i, 61, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / f"{i}.png")
    data = [f"--data=folder:{tmp_path}/data", "--split=val"]
    assert cli.main(["evaluate", f"--checkpoint={tmp_path}/own", *data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    table = tmp_path / "p.csv"
    photos = str(tmp_path / "data")
    assert cli.main(["predict", str(tmp_path / "own"), photos, "--top=2", f"--output={table}"]) == 0
    chances = [
        float(row["probability"])
        for row in csv.DictReader(table.read_text().splitlines())
        if row["label"] in row["image"]
    ]
    assert len(chances) == found["examples"] == 16
    assert found["loss"] == pytest.approx(-np.log(chances).mean(), abs=1e-4)
    assert found["accuracy"] == np.mean(np.array(chances) > 0.5)
    other = ["--config.model.image_size=32", "--config.data.eval.pipeline=decode|resize"]
    assert cli.main(["evaluate", f"--checkpoint={tmp_path}/own", *data, *other, "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["loss"] != pytest.approx(found["loss"], abs=1e-4)


def test_a_result_that_cannot_be_written_is_told_all_the_same(trained, capsys):
    assert cli.main(["evaluate", f"--workdir={trained}", "--json=/no/such/folder/x.json"]) == 2
    said = capsys.readouterr()
    assert "355 examples of digits val" in said.out
    assert "cannot write /no/such/folder/x.json" in said.err
    assert cli.main(["describe", "--config=digits.py", "--batch=/no/such/folder/x.png"]) == 2
    assert "cannot write the picture /no/such/folder/x.png" in capsys.readouterr().err


def test_weights_of_any_layout_are_measured_on_a_labelled_set(trained, tmp_path, capsys):
    """The digits of a run, as timm has them: the same numbers, of the data's own classes."""
    assert cli.main(["evaluate", f"--workdir={trained}", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert cli.main(["convert", str(trained), str(tmp_path / "a.safetensors"), "--to=timm"]) == 0
    heads = vit_jax.load_pretrained(trained, say=None)[0].config.num_heads
    command = ["evaluate", f"--weights={tmp_path / 'a.safetensors'}", "--data=digits",
               f"--config.model.num_heads={heads}"]  # fmt: skip
    capsys.readouterr()
    assert cli.main([*command, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "classes matched by" in told.err
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--workdir=a", "--checkpoint=b"], ["--weights=x.npz"],
     ["--weights=x.npz", "--data=digits", "--workdir=a"]],
)  # fmt: skip
def test_what_is_measured_is_named_once(arguments, capsys):
    assert cli.main(["evaluate", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--workdir" in line
