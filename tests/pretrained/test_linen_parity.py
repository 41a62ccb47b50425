"""Files of Google's code bases compute here what their models compute.

Each file has the names, shapes and containers of the published ones and made values; the models
that it is held to are the re-statements in Linen, which share nothing with the package.
"""

import jax
import numpy as np
import pytest
from linen_big_vision import BigVisionViT
from linen_google import BiTResNet, GoogleMixer, GoogleViT
from made_weights import fill, forward, names_and_shapes, save_npz

import vit_jax
from vit_jax.checkpoint.tree import flatten

TINY = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48, "num_classes": 5}
SIDES = (16, 24)  # of images that are no squares: a transposed grid would be noticed


def some_images(sides=SIDES):
    return np.random.default_rng(1).uniform(-1, 1, (2, *sides, 3)).astype(np.float32)


def load(path, **arguments):
    return vit_jax.load_pretrained(path, say=None, **arguments)


def renamed(name: str) -> str:
    """A Linen model's intermediate as it is called here: `block1/unit2` is `stage1_unit02`."""
    stage, _, unit = name.partition("/unit")
    return f"stage{stage.removeprefix('block')}_unit{int(unit):02d}" if unit else name


def assert_computes(path, module, flat, sides=SIDES, scale=1.0, **arguments):
    """Logits and every block of the loaded file are the Linen model's; returns model and report."""
    model, params, report = load(path, **arguments)
    images = scale * some_images(sides)
    logits, out = jax.jit(model.apply)(params, images)
    their_logits, theirs = forward(module, flat, images)
    pairs = {"logits": (logits, their_logits)}
    for name, value in theirs.items():
        pairs[name] = (out["root" if name == "stem" else renamed(name)], value)
    for name, (a, b) in pairs.items():
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0, err_msg=name)
    assert sum(name.startswith("block") for name in pairs) >= 2
    assert report.counts()["loaded"] == len(flatten(model.abstract_params))
    assert report.warnings == []
    return model, report


def made(tmp_path, module, sides=SIDES, **how):
    """A file of the module's names and shapes; returns its path and values."""
    flat = fill(names_and_shapes(module, sides))
    save_npz(tmp_path / "made.npz", flat, **how)
    return tmp_path / "made.npz", flat


@pytest.mark.parametrize("numbering", ["old", "linen"])
@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_googles_vit_under_either_numbering_and_any_prefix(tmp_path, numbering, prefix):
    module = GoogleViT(8, **TINY, numbering=numbering)
    path, flat = made(tmp_path, module, prefix=prefix)
    model, report = assert_computes(path, module, flat, source_image_size=SIDES)
    assert (model.config.gelu, model.config.layernorm_eps) == ("tanh", 1e-6)
    assert (model.config.image_size, model.config.num_heads) == (SIDES, 2)
    assert set(report.fates.values()) == {"loaded"}


@pytest.mark.parametrize("tower", ["", "params/"])
def test_the_image_tower_loads_and_the_text_tower_beside_it_is_told_unused(tmp_path, tower):
    module = BigVisionViT(8, **TINY, pool="map")
    flat = fill(names_and_shapes(module, SIDES))
    text = {"txt/Embed_0/embedding": np.ones((7, 32), np.float32), "t": np.ones(1, np.float32)}
    both = {f"{tower}img/{name}": x for name, x in flat.items()}
    both |= {f"{tower}{name}": x for name, x in text.items()}
    save_npz(tmp_path / "two.npz", both)
    _, report = assert_computes(tmp_path / "two.npz", module, flat, source_image_size=SIDES)
    assert {name: fate for name, fate in report.fates.items() if fate != "loaded"} == {
        f"{tower}{name}": f"unused (outside of {tower}img/)" for name in text
    }


def test_pre_logits_of_google_are_a_tanh_layer_before_the_head(tmp_path):
    module = GoogleViT(8, **TINY, rep_size=32)
    path, flat = made(tmp_path, module)
    model, _ = assert_computes(path, module, flat, source_image_size=SIDES)
    assert model.config.pre_logits


def test_googles_gap_has_no_class_token(tmp_path):
    module = GoogleViT(8, **TINY, pool="gap")
    path, flat = made(tmp_path, module)
    model, _ = assert_computes(path, module, flat, source_image_size=SIDES)
    assert (model.config.pool, model.config.class_token) == ("gap", False)


# In faint images the epsilons of the group norms count.
FAINT = pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["clear", "faint"])


@FAINT
@pytest.mark.parametrize("old_norms", [False, True], ids=["norms (C,)", "norms (1,1,1,C)"])
def test_a_hybrid_on_features_of_odd_sides(tmp_path, old_norms, scale):
    """Images of 40 x 56 give 10 x 14 features and then 5 x 7: SAME pads them unevenly."""
    module = GoogleViT(1, **TINY, resnet=(2, 1))
    flat = fill(names_and_shapes(module, (40, 56)))
    if old_norms:
        flat = {name: x[None, None, None] if "gn" in name else x for name, x in flat.items()}
    save_npz(tmp_path / "made.npz", flat)
    model, _ = assert_computes(
        tmp_path / "made.npz", module, flat, (40, 56), scale, source_image_size=(40, 56)
    )
    assert (model.config.resnet_layers, model.config.patch_size) == ((2, 1), 8)
    assert model.config.standardization == "google"


def test_a_hybrid_of_the_stem_alone(tmp_path):
    module = GoogleViT(2, **TINY, resnet=())
    path, flat = made(tmp_path, module, (40, 56))
    model, _ = assert_computes(path, module, flat, (40, 56), source_image_size=(40, 56))
    assert (model.config.resnet_layers, model.config.patch_size) == ((), 8)


def test_a_mixer(tmp_path):
    module = GoogleMixer(8, 32, 2, 20, 48, 5)
    path, flat = made(tmp_path, module)
    assert_computes(path, module, flat, source_image_size=SIDES)


@FAINT
@pytest.mark.parametrize("width_factor", [1, 2])
def test_a_bit_resnet_at_any_resolution(tmp_path, width_factor, scale):
    module = BiTResNet(5, (1, 2), width_factor)
    path, flat = made(tmp_path, module, (40, 56))
    model, _ = assert_computes(path, module, flat, (40, 56), scale, image_size=(40, 56))
    assert (model.config.resnet_layers, model.config.width_factor) == ((1, 2), width_factor)
    assert model.config.standardization == "bit"  # whose epsilon of 1e-10 is too small to be seen


@pytest.mark.parametrize("scan", [False, True], ids=["listed", "scanned"])
@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_big_vision_with_learned_positions(tmp_path, pool, scan):
    module = BigVisionViT(8, **TINY, pool=pool, scan=scan)
    path, flat = made(tmp_path, module, prefix="params/")
    model, _ = assert_computes(path, module, flat, source_image_size=SIDES)
    assert model.config.pool == {"tok": "cls"}.get(pool, pool)
    assert (model.config.prefix_positions, model.config.scan) == ("none", False)


@pytest.mark.parametrize("pool", ["tok", "gap"])
def test_big_vision_with_sines_and_cosines_at_any_resolution(tmp_path, pool):
    module = BigVisionViT(8, **TINY, pool=pool, posemb="sincos2d")
    path, flat = made(tmp_path, module)
    model, _ = assert_computes(path, module, flat, image_size=SIDES)
    assert model.config.posemb == "sincos2d"


def test_big_visions_hidden_layer_before_the_head(tmp_path):
    module = BigVisionViT(8, **TINY, rep_size=32)
    path, flat = made(tmp_path, module)
    assert_computes(path, module, flat, source_image_size=SIDES)


def test_a_square_grid_needs_no_word(tmp_path):
    module = BigVisionViT(8, **TINY)
    path, flat = made(tmp_path, module, (24, 24))
    model, _ = assert_computes(path, module, flat, (24, 24))
    assert model.config.image_size == (24, 24)


@pytest.mark.parametrize("scan", [False, True], ids=["listed", "scanned"])
def test_bfloat16_written_as_two_byte_voids_is_read_exactly(tmp_path, scan):
    module = BigVisionViT(8, **TINY, scan=scan)
    flat = fill(names_and_shapes(module, SIDES))
    save_npz(tmp_path / "made.npz", flat, bfloat16_as_void=True)
    rounded = {name: np.asarray(x.astype("bfloat16"), np.float32) for name, x in flat.items()}
    assert_computes(tmp_path / "made.npz", module, rounded, source_image_size=SIDES)


def test_a_compressed_file_in_either_order_of_axes_is_read(tmp_path):
    module = GoogleViT(8, **TINY)
    flat = fill(names_and_shapes(module, SIDES))
    np.savez_compressed(tmp_path / "made.npz", **flat)
    assert_computes(tmp_path / "made.npz", module, flat, source_image_size=SIDES)
    columns = {name: np.asfortranarray(x) for name, x in flat.items()}
    assert any(not x.flags.c_contiguous for x in columns.values())
    np.savez(tmp_path / "columns.npz", **columns)
    params, same = (load(tmp_path / f"{name}.npz", source_image_size=SIDES)[1]
                    for name in ("made", "columns"))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_float64_and_float16_become_float32(tmp_path):
    module = GoogleMixer(8, 32, 1, 20, 48, 5)
    flat = fill(names_and_shapes(module, 16))
    for dtype in (np.float64, np.float16):
        save_npz(tmp_path / "made.npz", {name: x.astype(dtype) for name, x in flat.items()})
        _, params, _ = load(tmp_path / "made.npz")
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
        wanted = flat["stem/kernel"].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(params["embed"]["kernel"], wanted)
