"""What was prepared trains: through the command line, and through the pre-training recipes."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from imagenet_files import downloads, picture, tar
from made_images import folder_of_images

import vit_jax
from tests.xla_flags import xla_flags
from vit_jax import recipe
from vit_jax.preparing.prepare import Options, prepare

NO_TENSORFLOW = "raise ImportError('TensorFlow is not to be imported here')\n"
TINY = {
    "batch_size": "8", "eval_batch_size": "8", "total_steps": "2", "model.image_size": "32",
    "model.hidden_size": "16", "model.num_layers": "2", "model.num_heads": "2",
    "model.mlp_dim": "32", "model.dtype": "float32", "log_every_steps": "1",
}  # fmt: skip

SECRET = """
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Jft300m(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        labels = tfds.features.ClassLabel(names=[f"class {n}" for n in range(18_291)])
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": labels}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(16), "val": self._generate_examples(5)}

    def _generate_examples(self, count):
        for number in range(count):
            pixels, file = np.full((40, 48, 3), 10 * number, np.uint8), io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            yield number, {"image": file.getvalue(), "label": 1143 * number}
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "root"))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def trained(spec, workdir):
    """Two steps and an evaluation of a recipe at its own sources, with a tiny model."""
    config = recipe.load(spec)
    recipe.override(config, TINY)
    result = vit_jax.train(config, workdir, devices=jax.devices()[:1], quiet=True)
    return result, json.loads((workdir / "classes.json").read_text())


def head_at_chance(classes):
    """The recipes' sigmoid loss at zero kernels and biases of -10: each wrong class costs
    log(1 + e^-10), the right one log(1 + e^10)."""
    return (classes - 1) * np.log1p(np.exp(-10)) + np.log1p(np.exp(10))


def test_a_prepared_folder_trains_in_a_process_that_cannot_import_tensorflow(tmp_path):
    counts = {"train/cat": 8, "train/dog": 8, "val/cat": 2, "val/dog": 2}
    photos = folder_of_images(tmp_path / "photos", counts)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "tensorflow.py").write_text(NO_TENSORFLOW)
    paths = f"{tmp_path}/blocked:{os.getcwd()}"

    def vit(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "vit_jax.cli", *arguments], check=False, capture_output=True,
            text=True, env=os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": xla_flags()},
        )  # fmt: skip

    made = vit("data", "prepare", f"folder:{photos}")
    assert (made.returncode, made.stderr) == (0, "")
    options = [f"--config.{key}={value}" for key, value in TINY.items()]
    options += ["--config.data.train.source=tfds:photos", "--config.data.eval.split=val"]
    run = vit("train", f"--config=folder.py:{photos}", f"--workdir={tmp_path}/work", *options)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "work" / "result.json").read_text())
    assert (result["steps"], result["eval/val/examples"]) == (2, 4)
    assert json.loads((tmp_path / "work" / "classes.json").read_text()) == ["cat", "dog"]


def test_imagenet21k_trains_by_its_recipe_from_tars(tmp_path):
    (tmp_path / "d").mkdir()
    for synset in ("n00004475", "n01440764", "n15102894"):
        files = {f"{synset}_{n}.JPEG": picture(f"{synset}{n}") for n in range(6)}
        (tmp_path / "d" / f"{synset}.tar").write_bytes(tar(files))
    prepare("imagenet21k", Options(source=str(tmp_path / "d"), val=4))
    result, classes = trained("pretrain.py:b16,imagenet21k", tmp_path / "work")
    assert (result["steps"], result["eval/val/examples"], len(classes)) == (2, 4, 21_843)
    rows = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").open()]
    assert rows[0]["loss"] == pytest.approx(head_at_chance(21_843), rel=1e-3)


def test_imagenet2012_trains_by_its_recipe_from_tars(tmp_path):
    prepare("imagenet2012", Options(source=str(downloads(tmp_path / "d"))))
    result, classes = trained("pretrain.py:b16,imagenet2012", tmp_path / "work")
    assert (result["steps"], result["eval/validation/examples"], len(classes)) == (2, 6, 1000)
    rows = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").open()]
    assert rows[0]["loss"] == pytest.approx(np.log(1000), rel=1e-3)


def test_jft300m_trains_by_its_recipe_from_a_private_builder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "our_sets.py").write_text(SECRET)
    prepare("tfds:our_sets:Jft300m", Options())
    result, classes = trained("pretrain.py:l16,jft300m", tmp_path / "work")
    assert (result["steps"], result["eval/val/examples"], len(classes)) == (2, 5, 18_291)
    rows = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").open()]
    assert rows[0]["loss"] == pytest.approx(head_at_chance(18_291), rel=1e-3)
