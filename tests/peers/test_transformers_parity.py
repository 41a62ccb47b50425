"""Folders of Transformers compute here what Transformers compute: logits, and every block."""

import json
import re

import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from peer_models import (  # noqa: E402
    assert_no_warning_but_of_images,
    assert_same,
    computed,
    filled,
    run,
    some_images,
    unmade,
)
from safetensors.numpy import load_file  # noqa: E402

from vit_jax.errors import UserError  # noqa: E402
from vit_jax.pretrained.load import load_pretrained  # noqa: E402
from vit_jax.pretrained.weights import open_weights  # noqa: E402

TINY = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80,
    "image_size": 32, "patch_size": 8, "num_labels": 5,
}  # fmt: skip


def made(name, **config):
    """A model of Transformers with made values. DINOv2's MLP has a ratio instead of a width."""
    kind = getattr(transformers, name)
    if "Dinov2" in name:
        config.pop("intermediate_size", None)
    with unmade():
        model = kind(kind.config_class(**config))
    return filled(model)[0]


def blocks_of(model):
    found = (
        (re.search(r"layers?\.(\d+)$", name), module) for name, module in model.named_modules()
    )
    return {f"block{int(match.group(1)):02d}": module for match, module in found if match}


def answer(out):
    """Logits, or without a head the class token after the last norm."""
    return out.logits if "logits" in out else out.last_hidden_state[:, 0]


def assert_computes_the_same(folder, theirs, batch=2, **how):
    model, params, report = load_pretrained(folder, say=None)
    assert set(report.counts()) <= {"loaded", "unused"}
    assert_no_warning_but_of_images(report)
    images = some_images(model.config.image_size, batch, model.config.channels)
    modules = blocks_of(theirs)
    assert len(modules) == model.config.num_layers
    reference = run(theirs, images, modules, answer)
    worst = assert_same(computed(model, params, images), reference)
    print(f"{type(theirs).__name__}: logits {worst[0]:.1e}, blocks {worst[1]:.1e}")
    return report


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ViTForImageClassification", {}),
        ("ViTForImageClassification", {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"}),
        ("ViTForImageClassification", {"layer_norm_eps": 1e-3, "num_channels": 1}),
        ("ViTModel", {}),
        ("DeiTForImageClassification", {}),
        ("DeiTForImageClassificationWithTeacher", {}),
        ("DeiTModel", {"hidden_act": "quick_gelu"}),
        ("Dinov2ForImageClassification", {}),
        ("Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
        ("Dinov2Model", {"use_mask_token": False}),
        ("Dinov2Model", {"use_swiglu_ffn": True, "mlp_ratio": 3}),
        ("Dinov2WithRegistersForImageClassification", {}),
        ("Dinov2WithRegistersForImageClassification", {"use_swiglu_ffn": True}),
        ("Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    ],
    ids=str,
)
def test_logits_and_blocks_are_transformers(tmp_path, name, config):
    theirs = made(name, **TINY | config)
    theirs.save_pretrained(tmp_path)
    report = assert_computes_the_same(tmp_path, theirs)
    unused = {name for name, fate in report.fates.items() if fate.startswith("unused")}
    held = load_file(tmp_path / "model.safetensors")
    assert unused == {name for name in held if "pooler" in name or "mask_token" in name}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ViTForImageClassification", {"num_labels": 1000}),
        ("Dinov2Model", {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 14}),
    ],
)
def test_published_sizes_are_transformers(tmp_path, name, config):
    theirs = made(name, **config)
    assert (theirs.config.num_hidden_layers, theirs.config.image_size) == (12, 224)
    theirs.save_pretrained(tmp_path)
    assert_computes_the_same(tmp_path, theirs, batch=1)
    (tmp_path / "model.safetensors").unlink()  # large


def test_shards_are_read_by_their_index(tmp_path):
    theirs = made("ViTForImageClassification", **TINY)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_computes_the_same(tmp_path, theirs)


def test_pytorch_model_bin_is_read(tmp_path):
    theirs = made("ViTForImageClassification", **TINY)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({n: torch.from_numpy(x) for n, x in tensors.items()}, tmp_path / "pytorch_model.bin")
    assert_computes_the_same(tmp_path, theirs)


def test_bfloat16_is_read_as_its_own_values_in_float32(tmp_path):
    theirs = made("Dinov2ForImageClassification", **TINY).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert {x.dtype.name for x in held.values()} == {"bfloat16"}
    assert_computes_the_same(tmp_path, theirs.float())


def test_classes_and_preprocessing_are_read(tmp_path):
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    made("ViTForImageClassification", **TINY, id2label=names).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6],
        resample=3,
    ).save_pretrained(tmp_path)  # fmt: skip
    weights = open_weights(tmp_path)
    data = weights.model.data_config
    assert weights.classes == ["ant", "bee", "cat", "dog", "elk"]
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.interpolation, data.squash) == ("bicubic", True)


def test_a_crop_is_read_as_a_part_of_the_short_side(tmp_path):
    made("Dinov2ForImageClassification", **TINY).save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3,
    ).save_pretrained(tmp_path)  # fmt: skip
    data = open_weights(tmp_path).model.data_config
    assert (data.crop, data.interpolation, data.squash) == (0.8, "bicubic", False)
    assert open_weights(tmp_path).classes is None


def test_a_config_without_heads_or_with_another_activation_is_refused(tmp_path):
    made("ViTForImageClassification", **TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no num_attention_heads: say"):
        open_weights(tmp_path)
    assert open_weights(tmp_path, num_heads=4).model.config.num_heads == 4
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(UserError, match="hidden_act 'relu'"):
        open_weights(tmp_path, num_heads=4)
