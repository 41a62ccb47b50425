"""Files of timm compute here what timm computes: logits, and the output of every block."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)

from peer_models import (  # noqa: E402
    assert_same,
    computed,
    filled,
    loaded,
    run,
    some_images,
    unmade,
)
from safetensors.torch import save_file  # noqa: E402

from vit_jax.errors import UserError  # noqa: E402
from vit_jax.pretrained.files import Tensors  # noqa: E402
from vit_jax.pretrained.load import load_pretrained  # noqa: E402
from vit_jax.pretrained.timm import TIMM  # noqa: E402
from vit_jax.pretrained.weights import open_weights  # noqa: E402

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 5}


def made(name, **arguments):
    with unmade():
        model = timm.create_model(name, **arguments)
    return filled(model)


def blocks_of(model):
    """Modules by the names that their outputs have here."""
    blocks = {f"block{i:02d}": block for i, block in enumerate(getattr(model, "blocks", ()))}
    stages = getattr(getattr(model, "patch_embed", model), "backbone", model)
    for s, stage in enumerate(getattr(stages, "stages", ()), start=1):
        for u, unit in enumerate(stage.blocks, start=1):
            blocks[f"stage{s}_unit{u:02d}"] = unit
    return blocks


@pytest.mark.parametrize(
    ("name", "arguments", "fields", "blocks"),
    [
        ("vit_tiny_patch16_224", {}, {}, 12),
        ("vit_small_patch16_224", {}, {}, 12),
        ("vit_base_patch16_224", {}, {}, 12),
        ("vit_base_patch32_384", {}, {}, 12),
        ("vit_medium_patch16_gap_256", {}, {"num_heads": 8}, 12),
        ("vit_tiny_r_s16_p8_224", {}, {}, 12),
        ("vit_small_r26_s32_224", {}, {}, 12 + 8),
        ("vit_base_r50_s16_224", {}, {}, 12 + 16),
        ("resnetv2_50x1_bit", {}, {}, 16),
        ("mixer_b16_224", {}, {}, 12),
        ("deit_small_distilled_patch16_224", {}, {}, 12),
        ("deit3_small_patch16_224", {}, {}, 12),
        ("vit_small_patch14_reg4_dinov2", {}, {}, 12),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 112, "num_classes": 7}, {}, 12),
        ("vit_small_patch14_dinov2", {"img_size": 112}, {}, 12),
        (
            "vit_giant_patch14_reg4_dinov2",
            {"embed_dim": 192, "depth": 4, "num_heads": 3, "img_size": 112}, {}, 4,
        ),
        ("vit_base_patch16_siglip_224", {}, {}, 12),
        ("vit_base_patch16_clip_224", {}, {}, 12),
        (
            "vit_base_patch32_clip_quickgelu_224",
            {"embed_dim": 192, "depth": 3, "num_heads": 3}, {"gelu": "quick"}, 3,
        ),
    ],
)  # fmt: skip
def test_logits_and_blocks_are_timms(tmp_path, name, arguments, fields, blocks):
    theirs, flat = made(name, **arguments)
    model, params = loaded(tmp_path / "model.safetensors", flat, **fields)
    images = some_images(model.config.image_size)
    modules = blocks_of(theirs)
    assert len(modules) == blocks
    epsilons = {getattr(model.config, f"{kind}norm_eps", None) for kind in ("layer", "group")}
    assert {
        m.eps for m in theirs.modules() if hasattr(m, "eps") and "Norm" in type(m).__name__
    } <= (epsilons)  # too small for logits to show
    worst = assert_same(computed(model, params, images), run(theirs, images, modules))
    print(f"{name}: logits {worst[0]:.1e}, blocks {worst[1]:.1e}")


def test_another_gelu_would_be_noticed(tmp_path):
    theirs, flat = made("vit_tiny_patch16_224")
    model, params = loaded(tmp_path / "model.safetensors", flat, gelu="tanh")
    images = some_images(model.config.image_size)
    with pytest.raises(AssertionError):
        assert_same(computed(model, params, images), run(theirs, images, blocks_of(theirs)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"qk_norm": True, "init_values": 0.1},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
        {"global_pool": "map", "reg_tokens": 2, "class_token": False, "no_embed_class": True},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True, "qkv_bias": False},
        {"img_size": (16, 48), "in_chans": 1},
    ],
    ids=str,
)
def test_a_vit_with_other_arguments_is_timms(tmp_path, arguments):
    theirs, flat = made("vit_base_patch16_224", **TINY | {"patch_size": 8} | arguments)
    size = {"source_image_size": (16, 48)} if "img_size" in arguments else {}
    model, params = loaded(tmp_path / "model.safetensors", flat, num_heads=3, **size)
    images = some_images(model.config.image_size, 2, model.config.channels)
    assert_same(computed(model, params, images), run(theirs, images, blocks_of(theirs)))


def test_a_pth_file_is_read_bare_and_under_model(tmp_path):
    theirs, _ = made("vit_base_patch16_224", **TINY)
    images = some_images((32, 32), 2)
    for number, tree in enumerate(
        [theirs.state_dict(), {"model": theirs.state_dict(), "epoch": 3}]
    ):
        torch.save(tree, tmp_path / f"{number}.pth")
        model, params, _ = load_pretrained(tmp_path / f"{number}.pth", say=None, num_heads=3)
        assert_same(computed(model, params, images), run(theirs, images, blocks_of(theirs)))


@pytest.mark.parametrize("dtype", ["safetensors", "pth"])
def test_bfloat16_is_read_as_its_own_values_in_float32(tmp_path, dtype):
    theirs, _ = made("vit_base_patch16_224", **TINY)
    halved = {name: x.to(torch.bfloat16) for name, x in theirs.state_dict().items()}
    path = tmp_path / f"half.{dtype}"
    (save_file if dtype == "safetensors" else torch.save)(halved, path)
    model, params, _ = load_pretrained(path, say=None, num_heads=3)
    assert params["embed"]["bias"].dtype == jnp.float32
    np.testing.assert_array_equal(
        params["encoder"]["block01"]["mlp"]["fc1"]["kernel"],
        halved["blocks.1.mlp.fc1.weight"].float().numpy().T,
    )
    images = some_images((32, 32), 2)
    theirs.load_state_dict({name: x.float() for name, x in halved.items()})
    assert_same(computed(model, params, images), run(theirs, images, blocks_of(theirs)))


@pytest.fixture
def folder(tmp_path):
    """A folder as timm writes one, of a tiny model with the arguments."""

    def write(name, model_args, **how):
        theirs, _ = made(name, **model_args)
        timm.models.save_for_hf(
            theirs, tmp_path / "folder", model_args=model_args, safe_serialization=True, **how
        )
        return theirs, tmp_path / "folder"

    return write


def test_a_folders_config_tells_heads_activation_pooling_and_preprocessing(folder):
    shown = {
        "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear",
        "crop_pct": 0.8,
    }  # fmt: skip
    arguments = TINY | {"num_heads": 4, "act_layer": "gelu_tanh", "fc_norm": False}
    theirs, path = folder(
        "vit_base_patch16_224", arguments | {"global_pool": "avg", "img_size": (16, 48)},
        data_config=shown,
        model_config={"label_names": ["a", "b", "c", "d", "e"]},
    )  # fmt: skip
    weights = open_weights(path)
    c, data = weights.model.config, weights.model.data_config
    assert (c.num_heads, c.gelu, c.pool, c.image_size) == (4, "tanh", "gap", (16, 48))
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.interpolation, data.crop, data.squash) == ("bilinear", 0.8, False)
    assert weights.classes == ["a", "b", "c", "d", "e"]
    model, params, _ = load_pretrained(path, say=None)
    images = some_images((16, 48), 2)
    assert_same(computed(model, params, images), run(theirs, images, blocks_of(theirs)))


def test_an_old_config_json_in_one_piece_is_read(folder):
    _, path = folder("vit_base_patch16_224", TINY)
    config = {
        "architecture": "vit_base_patch16_224", "num_classes": 5, "input_size": [3, 32, 32],
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic",
        "crop_pct": 1.0, "crop_mode": "squash",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    data = open_weights(path).model.data_config
    assert (data.mean, data.crop, data.squash) == ((0.1, 0.2, 0.3), 1.0, True)


ACTIVATIONS = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_siglip_224",
        "vit_base_patch32_siglip_256", "vit_so400m_patch14_siglip_378",
        "vit_so400m_patch16_siglip_256", "vit_large_patch16_siglip_512",
        "vit_large_patch16_siglip_gap_512", "vit_giantopt_patch16_siglip_256",
        "vit_base_patch16_gap_224", "vit_medium_patch16_gap_256", "deit3_medium_patch16_224",
        "vit_mediumd_patch16_reg4_gap_256", "vit_betwixt_patch16_reg4_gap_256",
        "vit_so150m_patch16_reg4_map_256", "vit_so150m2_patch16_reg1_gap_256",
        "vit_base_patch16_plus_240", "vit_little_patch16_reg4_gap_256",
        "vit_wee_patch16_reg1_gap_256", "vit_giant_patch14_dinov2",
        "vit_gigantic_patch14_clip_224",
    ],
)  # fmt: skip
def test_an_architectures_name_tells_heads_and_activation(name):
    """Of published files, which are large: names and shapes alone, as timm has them."""
    with unmade():
        theirs = timm.create_model(name, num_classes=3)
    shapes = {key: tuple(x.shape) for key, x in theirs.state_dict().items()}
    tensors = Tensors(
        Path(name), "safetensors", shapes, dict.fromkeys(shapes, "float32"), None,
        config={"architecture": name},
    )  # fmt: skip
    fields = TIMM.reader.describe(tensors, {}).fields
    assert fields["num_heads"] == theirs.blocks[0].attn.num_heads
    activation = type(theirs.blocks[0].mlp.act).__name__
    assert fields["mlp"] == "swiglu" or fields["gelu"] == ACTIVATIONS[activation]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"architecture": "vit_base_patch16_rpn_224"}, "normalises after its blocks"),
        ({"model_args": {"act_layer": "relu"}}, "act_layer 'relu' has no counterpart"),
        ({"model_args": {"pool_include_prefix": True}}, "pool_include_prefix"),
    ],
)
def test_what_shapes_do_not_show_and_no_model_here_computes_is_refused(folder, config, told):
    _, path = folder("vit_base_patch16_224", TINY)
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        open_weights(path)
