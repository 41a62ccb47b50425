"""The table of published weights: well-formed, findable, and as timm has it."""

import re
from urllib.parse import urlsplit

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained.catalog import CATALOG, Entry, _entries, find, list_pretrained

ENTRIES = list(_entries())  # of which no name may stand twice
BY_NAME = {"argvalues": ENTRIES, "ids": [entry.name for entry in ENTRIES]}


def test_names_and_addresses_are_unique():
    assert len(CATALOG) == len(ENTRIES)
    # A size's file of timm's choice may be the recommended one too.
    others = [entry for entry in ENTRIES if not entry.name.startswith("augreg/recommended/")]
    assert len({entry.address for entry in others}) == len(others)


@pytest.mark.parametrize("entry", **BY_NAME)
def test_each_entry_is_well_formed(entry):
    url = urlsplit(entry.address)
    if url.scheme == "hf":
        assert re.fullmatch(r"hf://[\w-]+/[\w.-]+", entry.address)
    else:
        assert url.scheme == "https"
        assert "." in url.netloc
        assert re.fullmatch(r"[\w./+-]+\.(npz|pth)", url.path)
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.num_classes in (0, 1000, 21843)
    assert entry.image_size in (224, 256, 378, 384, 448, 480, 512, 518)
    assert re.fullmatch(r"(vit|deit|mixer|resnetv2)_\w+", entry.model)
    assert entry.source
    # A number comes with who measured it.
    assert not entry.expected or re.fullmatch(r".*\d% \(.+\)", entry.expected)


def test_a_pattern_lists_names_in_order():
    assert list_pretrained() == sorted(CATALOG)
    assert list_pretrained("dinov2_vit?14") == [f"dinov2_vit{size}14" for size in "bgls"]
    assert list_pretrained("augreg/Ti_16*") == [
        "augreg/Ti_16_in21k", "augreg/Ti_16_in21k_ft_in1k_224", "augreg/Ti_16_in21k_ft_in1k_384",
    ]  # fmt: skip
    assert list_pretrained("nothing*") == []


def test_an_entry_is_found_by_its_name():
    assert find("augreg/recommended/B_16_in21k_ft_in1k_384") == Entry(
        "augreg/recommended/B_16_in21k_ft_in1k_384",
        "https://storage.googleapis.com/vit_models/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-"
        "wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz",
        None,
        "vit_base_patch16_384",
        1000,
        384,
        "ImageNet-1k top-1 85.49% (google-research/vision_transformer, README)",
        "arXiv 2106.10270",
    )
    assert find("google/vit-base-patch16-224").address == "hf://google/vit-base-patch16-224"
    assert find("bit/R152x4_in21k_ft_in1k").image_size == 480
    assert find("dinov2_vitl14_reg").model == "vit_large_patch14_reg4_dinov2"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_base_patch16_224.augreg_in21k_ft_in1", "vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("paper/ViT-B16_in21k", "paper/ViT-B_16_in21k"),
        ("facebook/dinov2-bse", "facebook/dinov2-base"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown weights '{name}': did you mean .*{near}"):
        find(name)


def timm_entries():
    return [entry for entry in ENTRIES if entry.address.startswith("hf://timm/")]


def test_timms_entries_are_as_timm_has_them():
    timm = pytest.importorskip("timm", reason="timm is not installed (the peers extra)")
    for entry in timm_entries():
        config = timm.get_pretrained_cfg(entry.name)
        assert config is not None, entry.name
        assert config.hf_hub_id == entry.address.removeprefix("hf://")
        assert (config.architecture, config.num_classes) == (entry.model, entry.num_classes)
        assert config.input_size[1:] == (entry.image_size,) * 2


def test_googles_and_metas_files_are_those_that_timm_converts():
    timm = pytest.importorskip("timm", reason="timm is not installed (the peers extra)")
    urls = {timm.get_pretrained_cfg(entry.name).url for entry in timm_entries()}
    urls = {url for url in urls if url and re.search(r"vit_models|dinov2", url)}
    assert len(urls) == 45  # 35 of AugReg, 2 of SAM, 8 of DINOv2
    assert urls <= {entry.address for entry in ENTRIES}
