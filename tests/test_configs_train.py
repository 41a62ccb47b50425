"""Every bundled recipe takes a real step on made data, at a tiny size."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_images import encoded, folder_of_images, smooth

import vit_jax
from vit_jax import recipe
from vit_jax.training.run import run_of

pytestmark = pytest.mark.long

TINY = {"model.name": "vit_mu_patch16_224", "model.image_size": "32", "model.dtype": "float32"}
CLASSES_21K = 21_843


@pytest.fixture(autouse=True, scope="module")
def _compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of 16 training and 4 evaluation images of two classes."""
    counts = {"train/cat": 8, "train/dog": 8, "val/cat": 2, "val/dog": 2}
    return folder_of_images(tmp_path_factory.mktemp("pets"), counts)


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    """21,843 class folders, all of them links to the one folder with a JPEG; five in val."""
    root = tmp_path_factory.mktemp("imagenet21k")
    one = root / "one"
    one.mkdir()
    (one / "a.jpg").write_bytes(encoded(smooth(40, 48)))
    for split, count in (("train", CLASSES_21K), ("val", 5)):
        (root / split).mkdir()
        for number in range(count):
            os.symlink("../one", root / split / f"n{number:08d}")
    yield root
    shutil.rmtree(root)


def config(spec, source=None, **changes):
    """A recipe with one step of eight examples; keys of `changes` have __ for the dot."""
    c = recipe.load(spec)
    values = {"batch_size": "8", "total_steps": "1"}
    if source is not None:
        values |= {"data.train.source": source, "data.train.split": "train"}
        values |= {"data.eval.split": "val"}
    recipe.override(c, values | {key.replace("__", "."): v for key, v in changes.items()})
    return c


def one_step(c, devices):
    """(run, state before, state after, metrics) of the first step, from random parameters."""
    run = run_of(c, devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract_state)
    state["params"] = jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), state["params"]
    )
    on_devices = jax.tree.map(jnp.array, state)
    batches = run.train_batches(0, 1)
    try:
        _, batch = next(batches)
        after, metrics = run.compile_train_step()(
            jax.tree.map(jax.device_put, on_devices, run.shardings), batch
        )
    finally:
        batches.close()
    return run, state, after, metrics


SMALL_CROP = {"data.train.pipeline": "decode|resize_small(32)|random_crop(None, 4)|three_augment",
              "data.eval.pipeline": "decode|resize"}  # fmt: skip
CONVOLUTIONS = {"model.image_size": "32", "model.resnet_layers": "(1, 1)", "model.dtype": "float32"}
# What a recipe is run with, and on how many devices. Without warm-up the first rate is not zero.
STEPS = {
    "base.py": (None, 1, TINY | {"model.image_size": "16"}),
    "digits.py": (None, 1, {"model.num_layers": "1"}),
    "folder.py:{pets}": (None, 2, {"model.num_layers": "1"}),
    "pretrain.py:b16,imagenet2012": ("folder:{pets}", 1, TINY),
    "pretrain.py:l16,jft300m": ("folder:{pets}", 8, TINY),
    "finetune.py:b16,oxford_iiit_pet": ("folder:{pets}", 1, TINY),
    "augreg.py:b16,imagenet21k,medium2,reg": ("folder:{pets}", 1, TINY),
    "augreg.py:ti16,imagenet2012": ("folder:{pets}", 2, TINY),
    "plain.py:90": ("folder:{pets}", 1, TINY),
    "deit3.py:s16,imagenet2012": ("folder:{pets}", 1, TINY | SMALL_CROP),
    "deit3.py:l16,imagenet21k": ("folder:{pets}", 8, TINY | SMALL_CROP),
    "bit.py:50x1,imagenet2012": ("folder:{pets}", 1, CONVOLUTIONS),
    "mixer.py:s32": (
        "folder:{pets}",
        1,
        {"model.image_size": "64", "model.num_layers": "1", "model.dtype": "float32"},
    ),
    "vtab.py:b16,cifar100": ("folder:{pets}", 1, TINY),
    "linear_probe.py:b16,cifar10": ("folder:{pets}", 1, TINY),
    "pretrain.py:r_ti16,imagenet2012": (
        "folder:{pets}",
        1,
        {"model.image_size": "32", "model.num_layers": "1", "model.dtype": "float32"},
    ),
    "pretrain.py:bit_50x1,jft300m": ("folder:{pets}", 1, CONVOLUTIONS),
}


@pytest.mark.parametrize("spec", STEPS)
def test_a_recipe_takes_a_step_that_moves_its_parameters(spec, pets):
    source, devices, changes = STEPS[spec]
    c = config(
        spec.format(pets=pets),
        source and source.format(pets=pets),
        schedule__warmup_steps="0",
        **{key.replace(".", "__"): value for key, value in changes.items()},
    )
    run, before, after, metrics = one_step(c, devices)
    assert np.isfinite(float(metrics["loss"]))
    assert float(metrics["learning_rate"]) == pytest.approx(run.config.optimizer.lr)
    assert (int(after["step"]), int(metrics["skipped"]["total"])) == (1, 0)
    kernels = [params["head"]["kernel"] for params in (before["params"], after["params"])]
    assert kernels[0].shape[-1] == run.config.model.num_classes == len(run.classes)
    assert not np.array_equal(*map(np.asarray, kernels))


def test_imagenet21k_trains_from_a_folder_with_as_many_classes_and_is_fine_tuned(
    many_classes, pets, tmp_path
):
    tiny = {key.replace(".", "__"): value for key, value in TINY.items()}
    device = jax.devices()[:1]
    c = config("pretrain.py:b16,imagenet21k", f"folder:{many_classes}", **tiny)
    result = vit_jax.train(c, tmp_path / "pretrained", devices=device, quiet=True)
    assert result["steps"] == 1
    assert result["eval/val/examples"] == 5
    # The head starts with zero kernels and biases of -10 over an untrained body: each of the
    # 21,842 wrong classes costs log(1 + e^-10), the right one log(1 + e^10).
    chance = (CLASSES_21K - 1) * np.log1p(np.exp(-10)) + np.log1p(np.exp(10))
    assert result["loss"] == pytest.approx(chance, rel=1e-3)

    resolved = json.loads((tmp_path / "pretrained" / "config.json").read_text())
    assert resolved["model.num_classes"] == CLASSES_21K
    classes = json.loads((tmp_path / "pretrained" / "classes.json").read_text())
    assert classes == [f"n{number:08d}" for number in range(CLASSES_21K)]

    tiny |= {"model__image_size": "48", "init": str(tmp_path / "pretrained")}
    c = config("finetune.py:b16,cifar10", f"folder:{pets}", **tiny)
    result = vit_jax.train(c, tmp_path / "fine_tuned", devices=device, quiet=True)
    assert result["loss"] == pytest.approx(np.log(2), rel=1e-5)  # a new head, of zeros
    assert result["eval/val/examples"] == 4
    assert json.loads((tmp_path / "fine_tuned" / "classes.json").read_text()) == ["cat", "dog"]
