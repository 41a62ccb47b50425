"""Commands as functions: what they return is what the commands write."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.errors import UserError

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the digits, and images of them."""
    folder = tmp_path_factory.mktemp("python")
    c = tiny_config(optimizer__lr=1e-2, total_steps=40)
    vit_jax.train(c, folder / "run", devices=ONE, quiet=True)
    from vit_jax.data.memory import digits

    source = digits("", "val", None)
    for number in range(3):
        Image.fromarray(source[number]["image"][..., 0]).save(folder / f"{number}.png")
    return folder


def test_predictions_are_those_of_the_command_for_paths_arrays_and_pillows_images(run, tmp_path):
    paths = [run / f"{number}.png" for number in range(3)]
    command = ["predict", str(run / "run"), *map(str, paths), "--top=3"]
    assert cli.main([*command, f"--output={tmp_path}/table.csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    images = [Image.open(path) for path in paths]
    for given in (paths, list(map(str, paths)), images, list(map(np.asarray, images))):
        found = vit_jax.predict(run / "run", given, top=3)
        assert [
            (one.name, f"{one.value:.6f}", str(one.number)) for image in found for one in image
        ] == [(row["label"], row["probability"], row["class"]) for row in rows]
    assert vit_jax.predict(run / "run", []) == []


def test_an_evaluation_is_that_of_the_command(run, capsys):
    assert cli.main(["evaluate", f"--workdir={run / 'run'}", "--json"]) == 0
    assert vit_jax.evaluate(run / "run") == json.loads(capsys.readouterr().out)
    changed = vit_jax.evaluate(run / "run", split="train", overrides={"eval_batch_size": 64})
    assert changed["split"] == "train"
    assert changed["examples"] > 1000


def test_prepared_images_are_what_a_model_takes(run):
    model, params, _ = vit_jax.load_pretrained(run / "run", say=None)
    paths = [run / f"{number}.png" for number in range(3)]
    shown = model.prepare([paths[0], str(paths[1]), Image.open(paths[2])])
    assert (shown.shape, shown.dtype) == ((3, 8, 8, 1), np.float32)
    logits, _ = model.apply(params, shown)
    found = vit_jax.predict(run / "run", paths, top=10)
    for row, image in zip(np.asarray(jax.nn.softmax(logits)), found, strict=True):
        for one in image:
            assert row[one.number] == pytest.approx(one.value, abs=2e-6)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGB", "png"), ("RGBA", "png"),
     ("I;16", "png"), ("RGB", "jpg"), ("CMYK", "jpg"), ("RGB", "tif")],
)  # fmt: skip
def test_an_image_of_pillow_is_what_its_file_is(mode, suffix, run, tmp_path):
    model, _, _ = vit_jax.load_pretrained(run / "run", say=None)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(pixels).convert(mode)
    file = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(file, exif=exif)
    opened = Image.open(file)
    np.testing.assert_allclose(model.prepare([opened]), model.prepare([file]), atol=2 / 255)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((8, 8, 1), np.float32), r"not float32 \[8, 8, 1\]: scale it"),
        (np.zeros(8, np.uint8), r"not uint8 \[8\]"),
        ("not_there.png", "not_there.png"),
    ],
)
def test_what_is_no_image_is_named(image, said, run):
    model, _, _ = vit_jax.load_pretrained(run / "run", say=None)
    with pytest.raises((UserError, FileNotFoundError), match=said):
        model.prepare([image])
    with pytest.raises(UserError):
        vit_jax.predict(run / "run", [image])


def test_training_and_loading_from_python_warn_of_nothing(tmp_path):
    text = f"""
import jax, vit_jax
from tests.digits_run import tiny_config
c = tiny_config(total_steps=6, checkpoint__every_steps=2, eval_every_steps=3)
vit_jax.train(c, {str(tmp_path)!r}, devices=jax.devices()[:1], quiet=True)
vit_jax.load_pretrained({str(tmp_path)!r}, say=None)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", text], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
