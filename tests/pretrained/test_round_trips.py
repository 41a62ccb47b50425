"""A file that is read and written again in its own layout holds the same tensors, bit for bit."""

import numpy as np
import pytest
from linen_big_vision import BigVisionViT
from linen_google import BiTResNet, GoogleMixer, GoogleViT
from made_weights import fill, names_and_shapes, save_npz
from round_trip import assert_round_trip, read_npz
from safetensors.numpy import load_file, save_file

from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.save import save_pretrained

TINY = {"patch": 8, "width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 96, "num_classes": 5}
HYBRID = TINY | {"patch": 1}

GOOGLE = {
    "old": GoogleViT(**TINY),
    "linen": GoogleViT(**TINY, numbering="linen"),
    "gap": GoogleViT(**TINY, pool="gap"),
    "pre-logits": GoogleViT(**TINY, rep_size=64),
    "eleven layers": GoogleViT(**TINY | {"depth": 11}),
    "hybrid": GoogleViT(**HYBRID, resnet=(1, 2)),
    "stem alone": GoogleViT(**TINY | {"patch": 2}, resnet=()),
    "mixer": GoogleMixer(8, 32, 2, 24, 40, 5),
    "bit": BiTResNet(5, (1, 2)),
}
BIG_VISION = {
    f"{pool} {posemb} {'scanned' if scan else 'unrolled'}": BigVisionViT(
        **TINY, pool=pool, posemb=posemb, scan=scan, rep_size=64 if pool == "gap" else None
    )
    for pool in ("tok", "gap", "map")
    for posemb in ("learn", "sincos2d")
    for scan in (False, True)
}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, "") for name in GOOGLE), ("hybrid", "opt/target/"), ("linen", "params/")],
)
def test_google(tmp_path, name, prefix):
    save_npz(tmp_path / "a.npz", fill(names_and_shapes(GOOGLE[name], 32)), prefix)
    assert_round_trip(tmp_path / "a.npz", tmp_path / "b.npz", "google", read_npz)


@pytest.mark.parametrize("name", ["hybrid", "stem alone", "bit"])
def test_google_with_norms_of_four_dimensions(tmp_path, name):
    flat = fill(names_and_shapes(GOOGLE[name], 32))
    wide = {n: x[None, None, None] if "gn_" in n or "/gn" in n or "group_norm" in n else x
            for n, x in flat.items()}  # fmt: skip
    assert sum(x.shape != flat[n].shape for n, x in wide.items()) >= 2
    save_npz(tmp_path / "a.npz", wide)
    assert_round_trip(tmp_path / "a.npz", tmp_path / "b.npz", "google", read_npz)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, "") for name in BIG_VISION), ("tok learn scanned", "params/"),
        ("map learn scanned", "img/"), ("map learn unrolled", "params/img/"),
    ],
)  # fmt: skip
def test_big_vision(tmp_path, name, prefix):
    save_npz(tmp_path / "a.npz", fill(names_and_shapes(BIG_VISION[name], 32)), prefix)
    given = {"source_image_size": (32, 32)} if "sincos2d" in name else {}
    assert_round_trip(tmp_path / "a.npz", tmp_path / "b.npz", "big_vision", read_npz, **given)


@pytest.mark.parametrize(("layout", "module"), [("google", "old"), ("big_vision", "map learn")])
def test_images_that_are_no_squares(tmp_path, layout, module):
    module = GOOGLE[module] if layout == "google" else BIG_VISION[f"{module} scanned"]
    save_npz(tmp_path / "a.npz", fill(names_and_shapes(module, (16, 40))))
    assert_round_trip(
        tmp_path / "a.npz", tmp_path / "b.npz", layout, read_npz, source_image_size=(16, 40)
    )


def dinov2_shapes(registers=0, swiglu=False, chunks=0, depth=6, width=32, hidden=88):
    """Names and shapes of DINOv2's hub: every block by its number in the whole model."""
    shapes = {
        "cls_token": (1, 1, width), "mask_token": (1, width), "pos_embed": (1, 1 + 16, width),
        "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    mlp = {"w12": (2 * hidden, width), "w3": (width, hidden)}
    if not swiglu:
        mlp = {"fc1": (hidden, width), "fc2": (width, hidden)}
    linear |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    for i in range(depth):
        block = f"blocks.{i // (depth // chunks)}.{i}." if chunks else f"blocks.{i}."
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for n in (1, 2):
            shapes |= {f"{block}norm{n}.{part}": (width,) for part in ("weight", "bias")}
            shapes[f"{block}ls{n}.gamma"] = (width,)
    return shapes


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ({}, ""), ({"registers": 4}, ""), ({"swiglu": True}, "backbone."), ({"chunks": 3}, ""),
        ({"chunks": 1}, "student.backbone."), ({"registers": 4, "swiglu": True, "chunks": 2}, ""),
        ({"chunks": 4, "depth": 10}, ""),  # in five chunks of two
    ],
    ids=str,
)  # fmt: skip
def test_dinov2_hub(tmp_path, kind, prefix):
    flat = fill(dinov2_shapes(**kind), layout="torch")
    save_file({prefix + name: x for name, x in flat.items()}, tmp_path / "a.safetensors")
    assert_round_trip(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", "dinov2", load_file, num_heads=2
    )


def test_dinov2_without_a_mask_token(tmp_path):
    flat = fill(dinov2_shapes(registers=4), layout="torch")
    del flat["mask_token"]
    save_file(flat, tmp_path / "a.safetensors")
    assert_round_trip(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", "dinov2", load_file, num_heads=2
    )


def test_a_changed_value_is_noticed(tmp_path):
    """The comparison itself: one ulp in one tensor."""
    flat = fill(dinov2_shapes(), layout="torch")
    save_file(flat, tmp_path / "a.safetensors")
    changed = dict(flat, pos_embed=flat["pos_embed"].copy())
    changed["pos_embed"][0, 3, 7] = np.nextafter(changed["pos_embed"][0, 3, 7], np.float32(9))

    def read(path):
        return load_file(path) if path.name == "a.safetensors" else changed

    with pytest.raises(AssertionError, match="pos_embed"):
        assert_round_trip(
            tmp_path / "a.safetensors", tmp_path / "b.safetensors", "dinov2", read, num_heads=2
        )


def test_scanned_layers_here_change_no_file(tmp_path):
    save_npz(tmp_path / "a.npz", fill(names_and_shapes(GOOGLE["old"], 32)))
    model, params, _ = load_pretrained(tmp_path / "a.npz", say=None, scan=True)
    assert "block" in params["encoder"]
    save_pretrained(model, params, tmp_path / "b.npz", "google")
    before, after = read_npz(tmp_path / "a.npz"), read_npz(tmp_path / "b.npz")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
