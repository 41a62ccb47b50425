"""Weights of masked autoencoders of others: without their decoder a ViT, and whole where a masked
autoencoder is wanted."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.models.tiny_vit import images_for, randomised
from vit_jax import create_model, load_pretrained
from vit_jax.checkpoint.tree import flatten
from vit_jax.errors import UserError
from vit_jax.pretrained.huggingface import HUGGINGFACE
from vit_jax.pretrained.opened import listed_params
from vit_jax.pretrained.rows import expand
from vit_jax.pretrained.timm import TIMM

SIZES = {
    "hidden_size": 48, "num_heads": 3, "num_layers": 2, "mlp_dim": 20, "image_size": (16, 16),
    "decoder_width": 24, "decoder_layers": 2, "decoder_heads": 2, "decoder_mlp_dim": 16,
}  # fmt: skip
HUGGING = {"model": "vit", "prefix": "vit.", "decoder_layer": "decoder_layers.{i}"}
STATED = {
    "model_type": "vit_mae", "image_size": 16, "patch_size": 4, "num_attention_heads": 3,
    "hidden_size": 48, "num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    "decoder_num_attention_heads": 2, "norm_pix_loss": True, "mask_ratio": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(model, parameters, a folder of Transformers', a file of facebookresearch's)."""
    root = tmp_path_factory.mktemp("weights")
    model = create_model("mae_vit_mu_patch4_8", **SIZES)
    params = randomised(model)
    flat = {path: np.asarray(x) for path, x in flatten(params).items()}
    (root / "hugging").mkdir()
    for layout, dialect, file in (
        (HUGGINGFACE, HUGGING, root / "hugging" / "model.safetensors"),
        (TIMM, {}, root / "full.safetensors"),
    ):
        bound, unknown = expand(layout.rows(model.config, dialect), listed_params(model))
        assert unknown == []
        tensors = {}
        for item in bound:
            values = item.codec.write([flat[path] for path in item.ours])
            tensors |= dict(zip(item.theirs, map(np.ascontiguousarray, values), strict=True))
        save_file(tensors, file)
    (root / "hugging" / "config.json").write_text(json.dumps(STATED))
    return model, params, root / "hugging", root / "full.safetensors"


GIVEN = {"hugging": {}, "full": {"num_heads": 3, "decoder_heads": 2}}


@pytest.mark.parametrize("which", GIVEN)
def test_with_its_decoder_it_is_the_whole_model(written, which):
    model, params, *paths = written
    path = paths[list(GIVEN).index(which)]
    found, values, report = load_pretrained(path, decoder=True, say=None, **GIVEN[which])
    assert found.family.name == "mae"
    assert set(report.fates.values()) == {"loaded"}
    ours, theirs = flatten(params), flatten(values)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)
    assert found.config.mask_ratio == (0.5 if which == "hugging" else 0.75)
    images = images_for(model)
    noise = np.random.default_rng(0).uniform(size=(2, 16)).astype(np.float32)
    same = create_model("mae_vit_mu_patch4_8", **SIZES, mask_ratio=found.config.mask_ratio)
    np.testing.assert_allclose(
        found.apply(values, images, noise=noise)[0], same.apply(params, images, noise=noise)[0],
        atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("which", GIVEN)
def test_without_it_it_is_a_vit_whose_decoder_is_unused(written, which):
    _, params, *paths = written
    path = paths[list(GIVEN).index(which)]
    found, values, report = load_pretrained(path, say=None, num_heads=3)
    assert (found.family.name, found.config.num_classes) == ("vit", 0)
    unused = {name for name, fate in report.fates.items() if fate.startswith("unused")}
    assert unused
    assert all("decoder" in name or name == "mask_token" for name in unused)
    np.testing.assert_array_equal(values["norm"]["scale"], params["norm"]["scale"])
    np.testing.assert_array_equal(values["pos_embed"]["grid"], params["pos_embed"]["grid"])


def test_what_a_file_of_facebookresearch_does_not_state_is_said(written, capsys):
    path = written[3]
    load_pretrained(path, decoder=True, **GIVEN["full"])
    assert "does not say whether its decoder predicts pixels normalised" in capsys.readouterr().out
    model, _, report = load_pretrained(
        path, decoder=True, norm_pixels=False, say=None, **GIVEN["full"]
    )
    assert not model.config.norm_pixels
    assert not any("normalised by" in line for line in report.warnings)
    with pytest.raises(UserError, match=r"how many heads its decoder has.*model.decoder_heads"):
        load_pretrained(path, decoder=True, num_heads=3, say=None)


def test_a_decoder_that_lacks_a_layer_is_an_error_that_names_it(written, tmp_path):
    tensors = load_file(written[3])
    lost = {name: x for name, x in tensors.items() if "decoder_blocks.0.mlp.fc2" not in name}
    save_file(lost, tmp_path / "lost.safetensors")
    with pytest.raises(UserError, match=r"missing: decoder_blocks.0.mlp.fc2.bias \[24\]"):
        load_pretrained(tmp_path / "lost.safetensors", decoder=True, say=None, **GIVEN["full"])
    model, _, _ = load_pretrained(tmp_path / "lost.safetensors", num_heads=3, say=None)
    assert model.family.name == "vit"  # which needs none of it


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("decoder_num_attention_heads", "many", "is a whole number, not 'many'"),
        ("decoder_num_attention_heads", 5, "decoder_width is divisible by 4 and by decoder_heads"),
        ("norm_pix_loss", 1, "norm_pix_loss is true or false, not 1"),
        ("mask_ratio", 1.5, r"mask_ratio is a number in \[0, 1\), not 1.5"),
        ("mask_ratio", 0.99, "mask_ratio 0.99 leaves none of 16 patches visible"),
    ],
)
def test_a_folder_that_states_what_cannot_be_is_refused(written, tmp_path, key, value, told):
    (tmp_path / "model.safetensors").write_bytes((written[2] / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(STATED | {key: value}))
    with pytest.raises(UserError, match=told):
        load_pretrained(tmp_path, decoder=True, say=None)


def test_a_name_that_states_a_thousand_layers_makes_no_model_of_them(written, tmp_path):
    tensors = load_file(written[3])
    deep = {"decoder_blocks.900.norm1.weight": np.zeros(24, np.float32)}
    save_file(tensors | deep, tmp_path / "deep.safetensors")
    with pytest.raises(UserError, match=r"say 903 layers, it holds \d+ tensors"):
        load_pretrained(tmp_path / "deep.safetensors", decoder=True, say=None, **GIVEN["full"])


def test_a_page_shows_what_weights_of_others_reconstruct(written, tmp_path, vit):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    keys = [f"--config.model.{key}={value}" for key, value in GIVEN["full"].items()]
    for path, more, share in ((written[2], [], "50%"), (written[3], keys, "75%")):
        code, _, err = vit("look", path, tmp_path / "a.png", f"--output={tmp_path}/p.html", *more)
        assert code == 0, err
        assert f"{share} of the patches are masked" in (tmp_path / "p.html").read_text("utf-8")


def test_a_run_of_one_begins_with_theirs_and_takes_what_they_decide(written, tmp_path, vit):
    sizes = {f"model.{key}": value for key, value in SIZES.items() if key != "image_size"}
    keys = sizes | {
        "model.patch_size": 4, "model.image_size": 16, "total_steps": 1,
        "optimizer.lr": 0.0,
        "data.train.pipeline": "decode", "data.eval.split": None,
        "model.norm_pixels": None, "init": written[2], "batch_size": 8,
        "data.train.source": "synthetic:examples=16,classes=2,size=16",
    }  # fmt: skip
    command = [f"--config.{key}={value}" for key, value in keys.items()]
    code, _, err = vit("train", "--config=mae.py:digits", f"--workdir={tmp_path}", *command)
    assert code == 0, err
    _, params, _ = load_pretrained(tmp_path, decoder=True, say=None)
    ours, theirs = flatten(params), flatten(written[1])
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert (stated["model.norm_pixels"], stated["model.mask_ratio"]) == (True, 0.5)
