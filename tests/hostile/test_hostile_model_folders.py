"""Folders of Hugging Face and timm whose JSON files lie."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import made

HUGE = 10**9
HUGGINGFACE: list[tuple[str, str, Any]] = [
    *[("config.json", key, value) for key, value in [
        ("hidden_size", HUGE), ("hidden_size", "x"), ("num_hidden_layers", HUGE),
        ("num_hidden_layers", -1), ("num_hidden_layers", 2.5), ("num_attention_heads", 0),
        ("num_attention_heads", 7), ("intermediate_size", 10**12), ("image_size", 10**7),
        ("image_size", [8]), ("image_size", -8), ("patch_size", 0), ("num_channels", HUGE),
        ("layer_norm_eps", -1), ("layer_norm_eps", float("nan")), ("hidden_act", "evil:act"),
        ("hidden_act", 5), ("model_type", "evil"), ("model_type", ["vit"]), ("qkv_bias", "no"),
        ("id2label", {"0": {}}), ("id2label", {"0": "a"}), ("id2label", ["a", "b"]),
        ("id2label", {"x": "a", "y": "b"}), ("id2label", {str(i): "a" for i in range(10**5)}),
        ("problem_type", "evil"), ("problem_type", 5), ("auto_map", {"AutoModel": "evil.Model"}),
    ]],
    *[("preprocessor_config.json", key, value) for key, value in [
        ("image_std", [0, 0, 0]), ("image_std", "x"), ("image_std", [0.5, -0.5, 0.5]),
        ("image_mean", [float("nan")] * 3), ("image_mean", [0.5] * 7), ("image_mean", {}),
        ("size", 10**7), ("size", {"height": 10**7, "width": 8}), ("size", {"height": -1}),
        ("size", {}), ("size", "big"), ("resample", "x"), ("resample", 99),
        ("rescale_factor", 0), ("rescale_factor", float("inf")), ("do_resize", "x"),
        ("image_processor_type", "evil:Processor"), ("image_processor_type", 5),
    ]],
]  # fmt: skip
TIMM: list[tuple[str, str, Any]] = [
    ("config.json", key, value) for key, value in [
        ("architecture", "evil"), ("architecture", 5), ("num_classes", HUGE), ("num_classes", "x"),
        ("pretrained_cfg.std", [0, 0, 0]), ("pretrained_cfg.std", float("nan")),
        ("pretrained_cfg.mean", "x"), ("pretrained_cfg.mean", [0.5, 0.5]),
        ("pretrained_cfg.input_size", [3, 10**7, 10**7]), ("pretrained_cfg.input_size", [3, 0, 0]),
        ("pretrained_cfg.input_size", "x"), ("pretrained_cfg.crop_pct", 0),
        ("pretrained_cfg.crop_pct", 1e-300), ("pretrained_cfg.crop_pct", "x"),
        ("pretrained_cfg.interpolation", "evil"), ("pretrained_cfg.crop_mode", "evil"),
        ("pretrained_cfg.label_names", [1, 2]), ("pretrained_cfg.label_names", {"a": 1}),
        ("label_names", "ab"), ("model_args", {"depth": HUGE}), ("model_args", {"embed_dim": HUGE}),
        ("model_args", {"num_heads": 0}), ("model_args", {"img_size": 10**7}),
        ("model_args", {"patch_size": 0}), ("model_args", {"act_layer": "evil:act"}),
        ("model_args", {"global_pool": 5}), ("model_args", []), ("pretrained_cfg", "x"),
    ]
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {kind: made.weights(folder / kind, kind) for kind in ("huggingface", "timm")}


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "cat.png").write_bytes(made.image(size=11))  # resized, and cropped
    (tmp_path / "evil.py").write_text("open('PWNED', 'w').close()\nModel = act = None\n")
    return tmp_path


def lying(source: Path, place: Path, name: str, key: str, value: Any) -> Path:
    folder = shutil.copytree(source, place / "w")
    file = folder / name
    config = json.loads(file.read_text())
    inside, (*outer, last) = config, key.split(".")
    for one in outer:
        inside = inside.setdefault(one, {})
    inside[last] = value
    file.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("name", "key", "value"), HUGGINGFACE, ids=lambda one: str(one)[:30])
def test_a_folder_of_hugging_face_that_lies(vit, whole, place, name, key, value):
    folder = lying(whole["huggingface"], place, name, key, value)
    tried(vit, folder, whole["huggingface"], place)


@pytest.mark.parametrize(("name", "key", "value"), TIMM, ids=lambda one: str(one)[:30])
def test_a_folder_of_timm_that_lies(vit, whole, place, name, key, value):
    tried(vit, lying(whole["timm"], place, name, key, value), whole["timm"], place)


def tried(vit, folder: Path, whole: Path, place: Path) -> None:
    """Refused in one line; or what the file lies about is not read, because the tensors say it."""
    answer = vit("predict", folder, "cat.png", cwd=place)
    if answer["code"] == 0:
        expected = vit.read("predict", whole, "cat.png", cwd=place)
        assert sorted(re.findall(r"[\d.]+%", answer["out"])) == re.findall(r"[\d.]+%", expected)
    else:
        vit.refused("predict", folder, "cat.png", cwd=place, says="w")


TEXTS = {
    "nothing": b"", "a list": b"[]", "a number": b"5", "null": b"null", "half": b'{"model',
    "nested": b"[" * 100_000, "nested objects": b'{"a":' * 100_000, "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"model_type": "vit"}'.encode("utf-16"),
    "endless digits": b'{"a": ' + b"1" * 10**6 + b"}",
    "zeros": bytes(1000), "a web page": b"<!doctype html><title>Sign in</title>",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["huggingface", "timm"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_config_that_is_no_object(vit, whole, place, kind, name):
    folder = shutil.copytree(whole[kind], place / "w")
    (folder / "config.json").write_bytes(TEXTS[name])
    vit.refused("inspect", folder, cwd=place, says="config.json")


INDICES: dict[str, Any] = {
    "no map": {}, "a list": {"weight_map": []}, "numbers": {"weight_map": {"a": 5}},
    "empty": {"weight_map": {}}, "an empty name": {"weight_map": {"a": ""}},
    "itself": {"weight_map": {"a": "model.safetensors.index.json"}},
    "the folder": {"weight_map": {"a": "."}}, "above": {"weight_map": {"a": ".."}},
    "elsewhere": {"weight_map": {"a": "../other.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}}, "NUL": {"weight_map": {"a": "a\0b"}},
    "a long name": {"weight_map": {"a": "x" * 5000}},
    "missing": {"weight_map": {"a": "no.safetensors"}},
    "a surrogate": {"weight_map": {"a": "\ud800.safetensors"}},
    "100,000 files": {"weight_map": {str(i): f"{i}.safetensors" for i in range(10**5)}},
}  # fmt: skip


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_lies(vit, whole, place, name):
    folder = shutil.copytree(whole["huggingface"], place / "w")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (place / "other.safetensors").write_bytes((folder / "other.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDICES[name]))
    vit.refused("inspect", folder, cwd=place)


def test_folders_are_not_left_by_links_that_lead_back(vit, place):
    (place / "w").mkdir()
    (place / "w" / "model.safetensors").symlink_to("..")
    vit.refused("inspect", "w", cwd=place)
