"""The bundled recipes: what each of their arguments resolves to, without any data."""

import re

import pytest
from made_images import folder_of_images

import vit_jax
from vit_jax import recipe
from vit_jax.config import flat
from vit_jax.errors import UserError
from vit_jax.training.resolve import known
from vit_jax.training.run import run_of

SIZES = ["ti16", "s16", "s32", "b16", "b32", "l16", "l32", "h14", "g14", "G14"]
PATCH_14 = ["h14", "g14", "G14"]

# Table 1 of arXiv 2010.11929 (B, L, H), DeiT (Ti, S), table 2 of arXiv 2106.04560 (g, G): D, L.
WIDTH_AND_DEPTH = {
    "ti": (192, 12), "s": (384, 12), "b": (768, 12), "l": (1024, 24), "h": (1280, 32),
    "g": (1408, 40), "G": (1664, 48),
}  # fmt: skip

# Training images and classes, as the papers and TFDS give them.
IMAGES_AND_CLASSES = {
    "imagenet21k": (14_197_122, 21_843),
    "imagenet2012": (1_281_167, 1000),
    "jft300m": (303_000_000, 18_291),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "oxford_iiit_pet": (3680, 37),
    "oxford_flowers102": (1020, 102),
}
PRETRAIN = ["imagenet21k", "imagenet2012", "jft300m"]
FINETUNE = ["cifar10", "cifar100", "imagenet2012", "oxford_iiit_pet", "oxford_flowers102"]


@pytest.fixture(autouse=True)
def _no_data_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))


def resolved(spec, **overrides):
    """The resolved config of a recipe on the tests' eight devices, as a flat dict."""
    c = recipe.load(spec)
    named = recipe.override(c, {key.replace("__", "."): v for key, v in overrides.items()})
    return flat(run_of(c, named, data=known).config)


# -- every argument -----------------------------------------------------------------------


@pytest.mark.parametrize("dataset", PRETRAIN)
@pytest.mark.parametrize("size", SIZES)
def test_pretraining_resolves_for_every_size_and_data_set(size, dataset):
    c = resolved(f"pretrain.py:{size},{dataset}")
    letter, patch = re.fullmatch(r"(\D+)(\d+)", size).groups()
    assert (c["model.hidden_size"], c["model.num_layers"]) == WIDTH_AND_DEPTH[letter]
    assert (c["model.patch_size"], c["model.image_size"]) == (int(patch), [224, 224])
    assert c["model.num_classes"] == IMAGES_AND_CLASSES[dataset][1]
    assert (c["batch_size"], c["schedule.warmup_steps"]) == (4096, 10_000)
    assert c["optimizer.name"] == "adamw"


@pytest.mark.parametrize("dataset", FINETUNE)
@pytest.mark.parametrize("size", [size for size in SIZES if size not in PATCH_14])
def test_fine_tuning_resolves_for_every_size_and_data_set(size, dataset):
    c = resolved(f"finetune.py:{size},{dataset}")
    letter, patch = re.fullmatch(r"(\D+)(\d+)", size).groups()
    assert (c["model.hidden_size"], c["model.num_layers"]) == WIDTH_AND_DEPTH[letter]
    assert (c["model.patch_size"], c["model.image_size"]) == (int(patch), [384, 384])
    assert c["model.num_classes"] == IMAGES_AND_CLASSES[dataset][1]


@pytest.mark.parametrize("size", PATCH_14)
def test_fine_tuning_with_patches_of_14_takes_a_resolution_that_they_divide(size):
    c = resolved(f"finetune.py:{size},cifar10", model__image_size="392")
    assert c["model.image_size"] == [392, 392]


@pytest.mark.parametrize("source", ["folder:{}/a?val=0.5", "csv:{}/t.csv?label=x,y&val=0.5"])
def test_recipes_take_folders_and_tables_with_their_options(source, tmp_path):
    folder_of_images(tmp_path / "a", {"x": 4, "y": 4})
    rows = [f"a/{'xy'[n % 2]}/{n // 2}.jpg,{1 - n % 2},{n % 2}" for n in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["file,x,y", *rows]))
    source = source.format(tmp_path)
    for spec in (f"finetune.py:b16,{source}", f"vtab.py:b16,{source}",
                 f"folder.py:{source.removeprefix('folder:')}"):  # fmt: skip
        c = resolved(spec)
        assert (c["data.train.source"], c["model.num_classes"]) == (source, 2)
        assert c["data.eval.split"] == "val"
    with pytest.raises(UserError, match=r"finetune.py needs the table: --config=finetune.py:b16"):
        recipe.load("finetune.py:b16,csv:")


def test_what_follows_the_size_may_be_left_out():
    assert resolved("pretrain.py") == resolved("pretrain.py:b16,imagenet21k")
    assert resolved("pretrain.py:b16") == resolved("pretrain.py:b16,imagenet21k")
    assert resolved("finetune.py") == resolved("finetune.py:b16,cifar10")
    assert resolved("finetune.py:b16") == resolved("finetune.py:b16,cifar10")


def test_the_base_recipe_wants_a_length_only():
    assert resolved("base.py", total_steps="100")["total_steps"] == 100


# Every documented argument of the recipes for large data, and the model that it names.
LEVELS = ["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]
ARGUMENTS = [
    *(f"augreg.py:{size},{dataset}" for size in ("ti16", "s32", "s16", "b32", "b16", "l16",
      "r_ti16", "r26_s32", "r50_l32") for dataset in ("imagenet21k", "imagenet2012")),
    *(f"augreg.py:s16,imagenet2012,{level}{reg}" for level in LEVELS for reg in ("", ",reg")),
    *(f"plain.py:{epochs}" for epochs in (90, 150, 300)),
    *(f"deit3.py:{size},{dataset}" for size in ("s16", "b16", "l16", "h14")
      for dataset in ("imagenet2012", "imagenet21k")),
    *(f"bit.py:{size},{dataset}" for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")
      for dataset in ("imagenet2012", "imagenet21k")),
    *(f"mixer.py:{size}" for size in ("s32", "s16", "b32", "b16", "l32", "l16")),
    *(f"{recipe}.py:{size},{dataset}" for recipe in ("vtab", "linear_probe")
      for size in ("b16", "r50_b16", "mixer_b16", "bit_50x1")
      for dataset in ("cifar100", "cifar10")),
    *(f"mae.py:{size},{dataset}" for size in ("s16", "b16", "l16", "h14")
      for dataset in ("imagenet2012", "imagenet21k")),
    *(f"pretrain.py:{model},{dataset}" for model in ("r_ti16", "r26_s32", "r26_b32", "r50_b16",
      "r50_l32", "mixer_b16", "bit_50x1", "bit_101x1", "bit_152x2") for dataset in PRETRAIN),
    *(f"finetune.py:{model},cifar10" for model in ("r50_b16", "r50_l32", "mixer_b16", "bit_50x1")),
]  # fmt: skip


@pytest.mark.parametrize("spec", ARGUMENTS)
def test_every_documented_argument_resolves(spec):
    c = resolved(spec)
    assert c["total_steps"] > 0
    assert c["optimizer.lr"] > 0
    assert c["optimizer.lr_per"] is None


# -- final numbers ------------------------------------------------------------------------


def test_augreg_picks_the_papers_level_for_each_size():
    """Figure 4 of arXiv 2106.10270, as its reference code has it."""
    for size, randaug, mixup in (
        ("ti16", "", 0.0), ("s32", "", 0.0), ("s16", "|randaug(2,0)", 0.0),
        ("b32", "|randaug(2,10)", 0.2), ("b16", "|randaug(2,10)", 0.2),
        ("l16", "|randaug(2,15)", 0.5),
    ):  # fmt: skip
        c = resolved(f"augreg.py:{size},imagenet21k")
        assert c["data.train.pipeline"] == f"decode|inception_crop|flip_lr{randaug}"
        assert c["mixup"] == mixup
    c = resolved("augreg.py:b16,imagenet21k,strong2,reg")
    wanted = {
        "total_steps": round(300 * 14_197_122 / 4096), "mixup": 0.8, "model.dropout": 0.1,
        "model.drop_path": 0.1, "optimizer.lr": 1e-3, "optimizer.weight_decay": 1e-4,
        "optimizer.decay_by": "schedule", "optimizer.mu_dtype": "bfloat16",
        "optimizer.clip_norm": 1.0, "schedule.name": "cosine", "schedule.warmup_steps": 10_000,
        "loss.name": "sigmoid", "model.head_bias": -10.0, "model.pre_logits": False,
    }  # fmt: skip
    assert {key: c[key] for key in wanted} == wanted
    assert resolved("augreg.py:b16,imagenet2012")["model.head_bias"] == -6.9


def test_a_bit_scales_its_rate_with_the_batch():
    assert resolved("bit.py:50x1,imagenet2012")["optimizer.lr"] == pytest.approx(1.6)
    assert resolved("bit.py:50x1,imagenet21k")["optimizer.lr"] == pytest.approx(0.48)
    half = resolved("bit.py:50x1,imagenet2012", batch_size="2048")
    assert half["optimizer.lr"] == pytest.approx(0.8)


def test_the_page_of_recipes_is_what_the_recipes_say():
    import runpy
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    page = runpy.run_path(str(root / "docs" / "recipes_page.py"))["page"]
    assert (root / "docs" / "recipes.md").read_text() == page()
    named = set(re.findall(r"^## (\w+)\.py$", page(), re.MULTILINE))
    assert named == {path.stem for path in (root / "configs").glob("*.py")} - {"__init__"}


def test_b16_on_imagenet21k_is_the_papers_recipe():
    c = resolved("pretrain.py:b16,imagenet21k")
    wanted = {
        "total_steps": round(90 * 14_197_122 / 4096), "batch_size": 4096,
        "data.train.source": "tfds:imagenet21k", "data.train.split": "train",
        "data.train.pipeline": "decode|inception_crop|flip_lr",
        "data.eval.pipeline": "decode|resize_small|central_crop",
        "model.name": "vit_base_patch16_224", "model.num_classes": 21_843,
        "model.hidden_size": 768, "model.num_layers": 12, "model.num_heads": 12,
        "model.mlp_dim": 3072, "model.image_size": [224, 224], "model.patch_size": 16,
        "model.channels": 3, "model.pre_logits": True, "model.head_bias": -10.0,
        "model.dropout": 0.1, "model.attention_dropout": 0.0, "model.dtype": "bfloat16",
        "optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.03,
        "optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.clip_norm": None,
        "schedule.name": "linear", "schedule.warmup_steps": 10_000, "schedule.end_lr": 1e-5,
        "loss.name": "sigmoid", "loss.label_smoothing": 0.0, "mixup": 0.0,
    }  # fmt: skip
    assert {key: c[key] for key in wanted} == wanted
    assert wanted["total_steps"] == 311_948


def test_b16_on_imagenet2012_is_the_papers_recipe():
    c = resolved("pretrain.py:b16,imagenet2012")
    wanted = {
        "total_steps": round(300 * 1_281_167 / 4096), "optimizer.lr": 3e-3,
        "optimizer.weight_decay": 0.3, "schedule.name": "cosine", "model.dropout": 0.1,
        "loss.name": "softmax", "model.head_bias": 0.0, "data.eval.split": "validation",
    }  # fmt: skip
    assert {key: c[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("size", "epochs", "lr"),
    [("b32", 7, 8e-4), ("b16", 7, 8e-4), ("l32", 7, 6e-4), ("l16", 14, 4e-4), ("h14", 14, 3e-4)],
)
def test_jft_has_epochs_and_a_rate_by_size(size, epochs, lr):
    c = resolved(f"pretrain.py:{size},jft300m")
    assert c["total_steps"] == round(epochs * 303_000_000 / 4096)
    assert c["optimizer.lr"] == lr
    assert (c["optimizer.weight_decay"], c["model.dropout"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("dataset", "steps", "warmup", "evaluated"),
    [
        ("cifar10", 10_000, 500, "test"),
        ("cifar100", 10_000, 500, "test"),
        ("imagenet2012", 20_000, 500, "validation"),
        ("oxford_iiit_pet", 500, 100, "test"),
        ("oxford_flowers102", 500, 100, "test"),
    ],
)
def test_fine_tuning_has_the_papers_numbers(dataset, steps, warmup, evaluated):
    c = resolved(f"finetune.py:b16,{dataset}")
    wanted = {
        "total_steps": steps, "schedule.warmup_steps": warmup, "batch_size": 512,
        "optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.clip_norm": 1.0,
        "optimizer.weight_decay": 0.0, "schedule.name": "cosine", "schedule.end_lr": 0.0,
        "model.image_size": [384, 384], "model.pre_logits": False, "model.head_bias": 0.0,
        "model.dropout": 0.0, "mixup": 0.0, "loss.name": "softmax", "data.train.split": "train",
        "data.eval.split": evaluated,
    }  # fmt: skip
    assert {key: c[key] for key in wanted} == wanted


def test_the_large_sizes_split_their_parameters_over_eight_devices():
    for size in SIZES:
        c = resolved(f"pretrain.py:{size},imagenet21k")
        large = size[0] in "lhgG"
        assert (c["mesh.data"], c["mesh.fsdp"]) == ((1, 8) if large else (8, 1))
        assert c["model.remat"] == ("dots" if large else "none")


# -- what cannot work ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("pretrain.py:b16,imagenet21", "unknown data set 'imagenet21': did you mean imagenet2"),
        ("pretrain.py:b16,imagenet-21k", "imagenet21k"),
        ("finetune.py:b16,cifar_100", "did you mean cifar100"),
        ("finetune.py:b16,pets", "oxford_iiit_pet"),
        ("pretrain.py:x16,imagenet21k", "unknown model size 'x16'.*such as b16"),
        ("pretrain.py:imagenet21k", "unknown model size 'imagenet21k'"),
        ("finetune.py:b,cifar10", "unknown model size 'b'.*such as b16"),
        ("augreg.py:b16,imagenet21k,medium", "unknown level 'medium': did you mean medium"),
        ("augreg.py:b16,imagenet1k", "unknown data set 'imagenet1k'"),
        ("augreg.py:b16,imagenet21k,none,dropout", "the fourth argument is reg or nothing"),
        ("plain.py:ninety", "plain.py takes a number of epochs"),
        ("deit3.py:ti16", "unknown model 'ti16'"),
        ("bit.py:50x1,jft300m", "unknown data set 'jft300m'"),
    ],
)
def test_an_unknown_argument_is_answered_with_what_would_work(spec, near):
    with pytest.raises(UserError, match=near):
        recipe.load(spec)


def test_without_the_data_one_is_told_what_to_put_where(tmp_path):
    with pytest.raises(UserError) as error:
        vit_jax.train(recipe.load("pretrain.py:b16,imagenet21k"), tmp_path / "work")
    assert str(error.value) == (
        "tfds:imagenet21k is not on this machine: expected its array_record files and "
        f"dataset_info.json in {tmp_path}/imagenet21k/VERSION/ (TFDS_DATA_DIR moves the root), "
        "which `vit data prepare imagenet21k --from=TARS` makes; or give a folder of images "
        "PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg as "
        "--config.data.train.source=folder:PATH --config.data.eval.split=val"
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("written", "meant"),
    [("L16,jft300m", "l16,jft300m"), ("H_14,jft300m", "h14,jft300m"), ("B_16", "b16")],
)
def test_a_size_is_the_same_recipe_however_it_is_written(written, meant):
    assert resolved(f"pretrain.py:{written}") == resolved(f"pretrain.py:{meant}")
