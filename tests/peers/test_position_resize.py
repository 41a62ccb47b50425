"""Positions on another grid are those of the package that the weights come from."""

import math

import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from made_weights import fill  # noqa: E402
from peer_models import filled, unmade  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from test_round_trips import dinov2_shapes  # noqa: E402

from vit_jax.pretrained.load import load_pretrained  # noqa: E402

PATCH, WIDTH = 2, 16
GRIDS = pytest.mark.parametrize("new", [(24, 24), (7, 7), (16, 12)], ids=str)


def assert_resized(path, new, theirs, prefix, rule, patch=PATCH, **given):
    """The table of a loaded file, prefix tokens first, is theirs; those are kept as they were."""
    size = (new[0] * patch, new[1] * patch)
    model, params, report = load_pretrained(path, say=None, image_size=size, **given)
    assert report.fates["pos_embed/grid"] == f"resized (14 x 14 to {new[0]} x {new[1]}, {rule})"
    assert model.config.num_prefix_positions == prefix
    theirs = theirs.numpy()[0]
    assert theirs.shape == (prefix + new[0] * new[1], WIDTH)
    grid = np.asarray(params["pos_embed"]["grid"]).reshape(-1, WIDTH)
    difference = np.abs(grid - theirs[prefix:]).max()
    print(f"{difference:.1e}")
    assert difference < 5e-6
    if prefix:
        np.testing.assert_array_equal(params["pos_embed"]["prefix"], theirs[:prefix])
    else:
        assert "prefix" not in params["pos_embed"]


@GRIDS
@pytest.mark.parametrize(
    ("name", "arguments", "prefix"),
    [
        ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_base_patch16_224", {"no_embed_class": True, "reg_tokens": 4}, 0),
        ("vit_base_patch16_224", {}, 1),
        ("deit_base_distilled_patch16_224", {}, 2),
        ("vit_base_patch16_224", {"reg_tokens": 2}, 3),
        (
            "vit_base_patch16_224",
            {"class_token": False, "global_pool": "avg", "reg_tokens": 4}, 4,
        ),
        ("vit_base_patch16_224", {"reg_tokens": 4}, 5),
    ],
    ids=str,
)  # fmt: skip
def test_timm(tmp_path, name, arguments, prefix, new):
    with unmade():
        model = timm.create_model(
            name, img_size=14 * PATCH, patch_size=PATCH, embed_dim=WIDTH, depth=1, num_heads=2,
            **arguments,
        )  # fmt: skip
    _, flat = filled(model)
    save_file(flat, tmp_path / "made.safetensors")
    table = torch.from_numpy(flat["pos_embed"])
    theirs = timm.layers.resample_abs_pos_embed(table, list(new), num_prefix_tokens=prefix)
    assert_resized(tmp_path / "made.safetensors", new, theirs, prefix, "timm", num_heads=2)


@GRIDS
@pytest.mark.parametrize(
    ("name", "prefix", "rule"),
    [
        ("ViTModel", 1, "huggingface"),
        ("DeiTModel", 2, "huggingface"),
        ("DeiTForImageClassificationWithTeacher", 2, "huggingface"),
        ("Dinov2Model", 1, "huggingface"),
        ("Dinov2WithRegistersModel", 1, "dinov2_reg"),  # smoothed, unlike the others
    ],
)
def test_transformers(tmp_path, name, prefix, rule, new):
    kind = getattr(transformers, name)
    with unmade():
        model = kind(
            kind.config_class(
                hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
                image_size=14 * PATCH, patch_size=PATCH,
            )
        )  # fmt: skip
    model, _ = filled(model)
    model.save_pretrained(tmp_path)
    tokens = torch.zeros(1, prefix + new[0] * new[1], WIDTH)
    embeddings = getattr(model, "deit", model).embeddings
    with torch.no_grad():
        theirs = embeddings.interpolate_pos_encoding(tokens, new[0] * PATCH, new[1] * PATCH)
    assert_resized(tmp_path, new, theirs, prefix, rule)


def resized_by_the_hub(table, new, registers):
    """DINOv2's interpolate_pos_encoding: models without registers were published with an offset
    of 0.1 and no smoothing, those with them with smoothing and no offset."""
    patches = table[:, 1:]
    side = math.isqrt(patches.shape[1])
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    how = {"size": new} if registers else {"scale_factor": tuple((n + 0.1) / side for n in new)}
    grid = torch.nn.functional.interpolate(grid, mode="bicubic", antialias=registers, **how)
    assert grid.shape[2:] == new
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], dim=1)


@GRIDS
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_hub(tmp_path, registers, new):
    shapes = dinov2_shapes(registers, depth=1, width=WIDTH) | {"pos_embed": (1, 1 + 14**2, WIDTH)}
    flat = fill(shapes, layout="torch")
    save_file(flat, tmp_path / "made.safetensors")
    theirs = resized_by_the_hub(torch.from_numpy(flat["pos_embed"]), new, bool(registers))
    rule = "dinov2_reg" if registers else "dinov2"
    assert_resized(tmp_path / "made.safetensors", new, theirs, 1, rule, patch=14, num_heads=2)


def test_the_packages_differ_so_that_another_rule_would_be_noticed():
    table = torch.from_numpy(
        fill({"pos_embed": (1, 1 + 14**2, WIDTH)}, layout="torch")["pos_embed"]
    )
    timms = timm.layers.resample_abs_pos_embed(table, [24, 24])
    hub = resized_by_the_hub(table, (24, 24), False)
    plain = torch.nn.functional.interpolate(
        table[:, 1:].reshape(1, 14, 14, WIDTH).permute(0, 3, 1, 2), size=(24, 24), mode="bicubic"
    )
    plain = plain.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)
    assert (hub[:, 1:] - plain).abs().max() > 1e-3
    assert (timms - hub).abs().max() > 1e-3
    assert (timms[:, 1:] - plain).abs().max() > 1e-3
