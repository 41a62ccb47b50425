"""Names, sizes and parameter counts, and what a mistaken name or field is answered with."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax.errors import UserError
from vit_jax.models import create_model, list_models, registry, vit_names
from vit_jax.models.config_table import FURTHER
from vit_jax.models.model import FAMILIES

ROOT = Path(__file__).parents[2]

# Parameters with 1000 classes. Ti, S, B, L, H: as timm and torchvision count them; g and G: 1011M
# and 1843M in arXiv 2106.04560, table 2.
PARAMETERS = {
    "vit_mu_patch16_224": 76_712,
    "vit_nano_patch8_64": 957_288,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch32_224": 306_535_400,
    "vit_huge_patch14_224": 632_045_800,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
}

# Table 1 of the paper (B, L, H), DeiT's table 1 (Ti, S), table 2 of arXiv 2106.04560 (g, G):
# width D, depth L, MLP, heads.
TABLES = {
    "mu": (32, 1, 128, 2),
    "nano": (128, 6, 256, 4),
    "tiny": (192, 12, 768, 3),
    "small": (384, 12, 1536, 6),
    "base": (768, 12, 3072, 12),
    "large": (1024, 24, 4096, 16),
    "huge": (1280, 32, 5120, 16),
    "giant": (1408, 40, 6144, 16),
    "gigantic": (1664, 48, 8192, 16),
}


# Other families with 1000 classes, as timm 1.0.31 counts them; those of DINOv2 without a head.
OTHERS = {
    "vit_tiny_r_s16_p8_224": 6_337_704,
    "vit_small_r26_s32_224": 36_431_912,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_large_r50_s32_224": 328_994_856,
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_50x3_bit": 217_319_080,
    "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_101x3_bit": 387_934_888,
    "resnetv2_152x2_bit": 236_335_208,
    "resnetv2_152x4_bit": 936_533_224,
    "mixer_s32_224": 19_104_624,
    "mixer_s16_224": 18_528_264,
    "mixer_b32_224": 60_293_428,
    "mixer_b16_224": 59_880_472,
    "mixer_l32_224": 206_939_264,
    "mixer_l16_224": 208_196_168,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_base_patch14_dinov2": 86_579_712,
    "vit_large_patch14_dinov2": 304_367_616,
    "vit_giant_patch14_dinov2": 1_136_479_232,
    "vit_base_patch16_siglip_224": 92_884_224,
    "vit_so400m_patch14_siglip_224": 427_680_704,
}


def count(d, depth, mlp, *, patch, side, classes=1000):
    """Parameters of a ViT from its equations: E, class token, positions, L blocks, LN, head."""
    tokens = (side // patch) ** 2 + 1
    embed = patch * patch * 3 * d + d + d + tokens * d
    block = 2 * 2 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * mlp + mlp) + (mlp * d + d)
    return embed + depth * block + 2 * d + d * classes + classes


def parts(name):
    _, size, patch, side = name.split("_")
    return size, int(patch.removeprefix("patch")), int(side)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_parameter_counts_are_met_to_the_last_one(name):
    assert create_model(name, scan=True).num_params == PARAMETERS[name]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_224"])
def test_unrolled_models_have_as_many_parameters(name):
    assert create_model(name).num_params == PARAMETERS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_families_have_their_peers_parameter_counts(name):
    headless = "dinov2" in name or "siglip" in name
    scan = True if registry.takes(name, "scan") else None  # builds one block, not all of them
    model = create_model(name, num_classes=0 if headless else None, scan=scan)
    assert model.num_params == OTHERS[name]


def test_every_listed_model_of_another_family_can_be_made_and_finds_its_own_name():
    for name in list_models():
        assert registry.name_of(create_model(name).config) == name


def plain_vits():
    return [name for name in list_models() if re.fullmatch(r"vit_[a-z]+_patch\d+_\d+", name)]


def test_every_plain_vit_has_the_parameters_of_its_tables_sizes():
    for name in plain_vits():
        size, patch, side = parts(name)
        d, depth, mlp, heads = TABLES[size]
        model = create_model(name, scan=True)
        assert model.num_params == count(d, depth, mlp, patch=patch, side=side), name
        assert model.config.num_heads == heads, name
        assert model.config.image_size == (side, side), name


def test_every_size_is_listed_lettered_and_pinned_here():
    sizes = set(vit_names.SIZES) - {"so400m"}  # SigLIP's, listed with its names
    assert {parts(name)[0] for name in plain_vits()} == sizes
    assert set(vit_names.LETTERS.values()) == sizes
    assert {parts(name)[0] for name in PARAMETERS} == sizes
    assert set(TABLES) == sizes
    assert set(PARAMETERS) <= set(list_models())


@given(
    size=st.sampled_from(sorted(vit_names.SIZES)),
    patch=st.integers(1, 64),
    grid=st.integers(1, 40),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_patch_and_resolution_make_a_name(size, patch, grid):
    model = create_model(f"vit_{size}_patch{patch}_{patch * grid}")
    assert model.config.patch_size == patch
    assert model.config.grid == (grid, grid)


def test_fields_replace_those_of_the_name_and_none_keeps_them():
    model = create_model(
        "vit_nano_patch8_64", image_size=(16, 32), num_classes=7, patch_size=None, pool="gap"
    )
    c = model.config
    assert (c.image_size, c.patch_size, c.num_classes, c.pool) == ((16, 32), 8, 7, "gap")
    with_class_token = count(128, 6, 256, patch=8, side=64, classes=7)
    fewer_positions = 128 * (64 - 2 * 4)
    assert model.num_params == with_class_token - fewer_positions - 2 * 128
    assert create_model("vit_nano_patch8_64", image_size=32).config.image_size == (32, 32)


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("vit_bsae_patch16_224", "vit_base_patch16_224"),
        ("vit_tiny_16_224", "vit_tiny_patch16_224"),
        ("ViT_large_patch16_384", "vit_large_patch16_384"),
        ("vit_nano_patch8", "vit_nano_patch8_64"),
        ("vit_gigantc_patch14_224", "vit_gigantic_patch14_224"),
    ],
)
def test_an_unknown_name_is_answered_with_the_three_nearest(wrong, meant):
    with pytest.raises(UserError) as error:
        create_model(wrong)
    question, _, answer = str(error.value).partition(": did you mean ")
    assert wrong in question
    suggested = answer.rstrip("?").replace(" or ", ", ").split(", ")
    assert meant in suggested
    assert len(suggested) == 3
    assert set(suggested) <= set(list_models())


def test_the_table_of_other_architectures_is_what_the_models_have():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|",
        (ROOT / "docs/models.md").read_text("utf-8"),
        re.M,
    )
    listed = {name for family in FAMILIES.values() if family.config in FURTHER.values()
              for names in family.names for name in names.listed}  # fmt: skip
    assert {name for name, _, _ in rows} == listed
    for name, params, macs in rows:
        model = create_model(name)
        assert f"{model.num_params / 1e6:.2f}" == params
        assert f"{model.macs / 1e9:.2f}" == macs


def test_a_name_near_nothing_is_answered_with_what_there_is():
    with pytest.raises(UserError, match="there are: axial_resnet26, axial_resnet50"):
        create_model("qqqq")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("num_class", "num_classes"), ("dropuot", "dropout"), ("hidden", "hidden_size")],
)
def test_an_unknown_field_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(UserError, match=f"no field '{wrong}': did you mean .*{meant}"):
        create_model("vit_base_patch16_224", **{wrong: 1})


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (225, "(225, 225) is not divisible by patch_size 16; (224, 224) or (240, 240) would work"),
        ((224, 100), "(224, 96) or (224, 112) would work"),
        (7, "(16, 16) would work"),
    ],
)
def test_an_image_size_that_patches_do_not_fill_is_refused_with_what_would_work(size, told):
    with pytest.raises(UserError) as error:
        create_model("vit_base_patch16_224", image_size=size)
    assert told in str(error.value)
    for height, width in [(224, 224), (240, 240), (224, 96), (224, 112), (16, 16)]:
        create_model("vit_base_patch16_224", image_size=(height, width))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("pool", "mean", "cls, gap, map"),
        ("posemb", "rope", "learned, sincos2d"),
        ("gelu", "fast", "tanh, exact, quick"),
        ("remat", "some", "none, full, dots"),
        ("attention", "flash", "auto, xla, cudnn"),
        ("dtype", "int8", "float32, bfloat16"),
        ("dropout", 1.0, "[0, 1)"),
        ("attention_dropout", -0.1, "[0, 1)"),
        ("drop_path", 1.5, "[0, 1)"),
        ("num_heads", 5, "hidden_size 768 is not divisible by num_heads 5"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_those_that_can(field, value, told):
    with pytest.raises(UserError) as error:
        create_model("vit_base_patch16_224", **{field: value})
    assert field in str(error.value)
    assert told in str(error.value)


def test_fused_attention_refuses_dropout_of_its_weights():
    with pytest.raises(UserError, match="attention 'cudnn' has no attention_dropout"):
        create_model("vit_base_patch16_224", attention="cudnn", attention_dropout=0.1)


# Lists and short names


def test_list_models_takes_shell_patterns():
    assert list_models("vit_giant*_224") == ["vit_giant_patch14_224"]
    assert list_models("*_384") == [n for n in list_models() if n.endswith("_384")] != []
    assert list_models("vit_?ase_patch[13]?_224") == [
        "vit_base_patch16_224", "vit_base_patch32_224",
    ]  # fmt: skip
    assert list_models("efficientnet*") == []
    assert list_models() == sorted(set(list_models()))


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("b16", "vit_base_patch16_224"),
        ("B16", "vit_base_patch16_224"),
        ("b_16", "vit_base_patch16_224"),
        ("ti16", "vit_tiny_patch16_224"),
        ("Ti16", "vit_tiny_patch16_224"),
        ("s32", "vit_small_patch32_224"),
        ("l16", "vit_large_patch16_224"),
        ("h14", "vit_huge_patch14_224"),
        ("mu16", "vit_mu_patch16_224"),
        ("nano8", "vit_nano_patch8_224"),
    ],
)
def test_recipes_short_names_stand_for_full_ones(short, name):
    assert registry.full_name(short) == name


def test_small_g_and_capital_G_are_two_sizes():
    assert registry.full_name("g14") == "vit_giant_patch14_224"
    assert registry.full_name("G14") == "vit_gigantic_patch14_224"


def test_a_short_names_resolution_is_224_unless_given():
    assert registry.full_name("b16", 384) == "vit_base_patch16_384"


@pytest.mark.parametrize("wrong", ["B/16", "b", "16", "", "x16", "b16x", "b-16", "b16 "])
def test_other_short_names_are_refused_with_an_example_that_works(wrong):
    with pytest.raises(UserError, match="such as b16") as error:
        registry.full_name(wrong)
    assert repr(wrong) in str(error.value)
