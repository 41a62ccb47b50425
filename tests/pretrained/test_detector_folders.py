"""Folders of Transformers that hold a detector: what is written says all that reading needs."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.exporting.tiny_models import DETECTOR, FAMILIES, NAMES, RESNET, VIT, made
from vit_jax.checkpoint.tree import flatten, unstack
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import UserError
from vit_jax.pretrained.layouts import writers
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.save import save_pretrained
from vit_jax.pretrained.weights import open_weights

WIDE = {"image_size": (64, 96), "num_classes": 3}
NAMED = RESNET | DETECTOR | {"resnet_layers": (3, 4, 6, 3)} | WIDE
FOLDERS = {
    "its own resnet": ("detr_resnet50", RESNET | DETECTOR | WIDE, "huggingface-detr"),
    "timm's resnet": ("detr_resnet50_dc5", NAMED, "huggingface-detr"),
    "no encoder": (
        "detr_resnet50", RESNET | DETECTOR | {"detector_encoder": 0}, "huggingface-detr",
    ),
    "yolos": ("yolos_tiny", VIT | WIDE | {"num_queries": 5}, "huggingface-yolos"),
    "yolos, positions between": (
        "yolos_tiny", VIT | WIDE | {"num_layers": 3, "mid_positions": True}, "huggingface-yolos",
    ),
}  # fmt: skip
# Of a run: they change no prediction.
FIT = "decode|fit(how='bilinear', floor=True)|pad"
OF_RUN = ("detector_dropout", "posemb_resize")


def without_metadata(path):
    """The same tensors without this package's metadata: what is left is what Transformers read."""
    save_file(load_file(path), path)


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("shown", ["decode|fit|pad", "decode|resize"])
def test_a_folder_gives_back_the_model(tmp_path, kind, shown):
    name, fields, to = FOLDERS[kind]
    model, params = made(name, fields, written=shown)
    notes = save_pretrained(model, params, tmp_path / "a", to, classes=NAMES)
    grey = ["padding is grey here; Transformers' has the mean colour, and a YOLOS sees it"]
    assert notes == (grey if name == "yolos_tiny" and "pad" in shown else [])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    without_metadata(tmp_path / "a" / "model.safetensors")
    weights = open_weights(tmp_path / "a")
    assert (weights.layout, weights.classes) == (to, NAMES)
    same = {field: getattr(model.config, field) for field in OF_RUN if hasattr(model.config, field)}
    assert dataclasses.replace(weights.model.config, **same) == model.config
    mean, std = weights.model.data_config.per_channel(3)
    assert (mean, std) == (pytest.approx((0.3, 0.5, 0.6)), pytest.approx([0.25] * 3))
    stated = weights.model.data_config.pipeline(model.config.image_size)
    exact = {
        "decode|fit|pad": f"{FIT}(fill=(76, 128, 153))",
        "decode|resize": "decode|resize(how='bilinear')",
    }  # fmt: skip
    assert stated == exact[shown]
    assert (weights.notes, weights.guessed) == ((), ())
    _, again, _ = load_pretrained(tmp_path / "a", say=None)
    before, after = (unstack(flatten(tree)) for tree in (params, again))
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_allclose(after[path], value, rtol=2e-7, err_msg=path)


@pytest.mark.parametrize(
    ("shown", "given"),
    [
        ("decode|resize_small(70)|central_crop", f"{FIT}(fill=(76, 128, 153))"),
        ("decode|fit((16, 16))|pad", f"{FIT}(fill=(76, 128, 153))"),
        ("decode|fit|pad(fill=0)", f"{FIT}(fill=(76, 128, 153))"),
        ("decode|resize(how='bicubic')", "decode|resize(how='bilinear')"),
    ],
)
def test_what_a_processor_cannot_say_is_noted(tmp_path, shown, given):
    name, fields, to = FOLDERS["its own resnet"]
    model, params = made(name, fields, written=shown)
    (note,) = save_pretrained(model, params, tmp_path / "a", to)
    assert note == (
        f"images are shown by {shown!r} here; Transformers are given the like of {given!r}"
    )


def test_a_dilated_resnet_that_timm_does_not_have_is_refused(tmp_path):
    model, params = made("detr_resnet50_dc5", RESNET | DETECTOR)
    with pytest.raises(
        UserError, match=r"timm has no ResNet of \(1, 1\) units that begins with 64"
    ):
        save_pretrained(model, params, tmp_path / "a", "huggingface-detr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pool": "gap"}, "a ViT without a class token"),
        ({"mid_positions": True}, "mid_positions of a single block"),
        ({"prefix_positions": "none"}, "a class token without a position"),
        ({"mlp": "swiglu"}, "mlp 'swiglu'"),
        ({"layer_scale": 1e-5}, "layer_scale"),
    ],
)
def test_what_transformers_yolos_does_not_have_is_refused(tmp_path, fields, says):
    model, params = made("yolos_tiny", VIT | {"num_queries": 5} | fields)
    with pytest.raises(UserError, match=f"has no place for .*{says}"):
        save_pretrained(model, params, tmp_path / "a", "huggingface-yolos")


@pytest.mark.parametrize("kind", ["its own resnet", "yolos"])
def test_a_detector_of_no_class_has_no_place(tmp_path, kind):
    name, fields, to = FOLDERS[kind]
    model, params = made(name, fields | {"num_classes": 0})
    with pytest.raises(UserError, match="no place for a detector of no class"):
        save_pretrained(model, params, tmp_path / "a", to)


@pytest.mark.parametrize("to", ["detr", "huggingface-detr"])
def test_a_detr_with_group_norm_has_no_place(tmp_path, to):
    model, params = made("detr_resnet50_gn", RESNET | DETECTOR)
    path = tmp_path / ("a.safetensors" if to == "detr" else "a")
    with pytest.raises(UserError, match=f"the {to} layout has no place for norm 'group'"):
        save_pretrained(model, params, path, to)


WHO_HOLDS = {
    "vit": ["google", "big_vision", "timm", "dinov2", "huggingface"],
    "mixer": ["google", "timm"],
    "bit": ["google", "timm"],
    "detr, resnet": ["detr", "huggingface-detr"],
    "yolos": ["huggingface-yolos"],
    "detr": [],
}


@pytest.mark.parametrize("family", WHO_HOLDS)
def test_a_layout_of_other_models_says_which_layouts_there_are(tmp_path, family):
    name, fields = FAMILIES[family]
    model, params = made(name, fields)
    layouts = WHO_HOLDS[family]
    assert [to for to, (_, writer) in writers().items() if writer.takes(model.config)] == layouts
    for to in set(writers()) - set(layouts):
        path = tmp_path / f"{to}{writers()[to][1].suffix}"
        with pytest.raises(UserError, match=f"the {to} layout has no place for") as refused:
            save_pretrained(model, params, path, to)
        assert str(refused.value).endswith(f"models: write {' or '.join([*layouts, 'orbax'])}")
    assert not list(tmp_path.iterdir())


def folder(path, stated=None, **config):
    """A folder of a DETR whose JSON files are changed."""
    name, fields, to = FOLDERS["its own resnet"]
    model, params = made(name, fields, written="decode|fit|pad")
    save_pretrained(model, params, path / "a", to)
    without_metadata(path / "a" / "model.safetensors")
    told = json.loads((path / "a" / "config.json").read_text())
    (path / "a" / "config.json").write_text(json.dumps(told | config))
    processor = path / "a" / "preprocessor_config.json"
    processor.write_text(json.dumps(stated)) if stated is not None else processor.unlink()
    return path / "a"


IMAGENETS = f"{FIT}(fill=(124, 116, 104))"


@pytest.mark.parametrize(
    ("stated", "size", "pipeline"),
    [
        (None, (800, 1333), IMAGENETS),
        ({"feature_extractor_type": "DetrFeatureExtractor", "size": 800, "max_size": 1333},
         (800, 1333), IMAGENETS),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (480, 640), IMAGENETS),
        ({"size": {"max_height": 320, "max_width": 416}}, (320, 416), IMAGENETS),
        ({"size": {"max_height": 320, "max_width": 416}, "pad_size": {"height": 448, "width": 448}},
         (448, 448), IMAGENETS.replace("fit(", "fit((320, 416), ")),
        ({"size": {"height": 320, "width": 416}}, (320, 416), "decode|resize(how='bilinear')"),
        ({"size": {"height": 320, "width": 416}, "pad_size": {"height": 448, "width": 448}},
         (448, 448), "decode|resize((320, 416), how='bilinear')|pad(fill=(124, 116, 104))"),
        ({"size": {"height": 320, "width": 416}, "pad_size": 448, "do_pad": False},
         (320, 416), "decode|resize(how='bilinear')"),
        ({"size": 99, "do_normalize": False}, (99, 1333), f"{FIT}(fill=0)"),
    ],
)  # fmt: skip
def test_a_processor_says_the_canvas(tmp_path, stated, size, pipeline):
    weights = open_weights(folder(tmp_path, stated))
    assert weights.model.config.image_size == size
    assert weights.model.data_config.pipeline(size) == pipeline
    assert weights.guessed == (("mean", "std") if stated is None else ())
    by_short_side = (
        pipeline.startswith("decode|fit(how") and stated and "max_height" not in str(stated)
    )
    assert any("an upright image is larger" in n for n in weights.notes) == bool(by_short_side)


def test_a_yolos_is_shown_images_of_its_processors_size(tmp_path):
    name, fields, to = FOLDERS["yolos"]
    model, params = made(name, fields, written="decode|fit|pad")
    save_pretrained(model, params, tmp_path / "a", to)
    without_metadata(tmp_path / "a" / "model.safetensors")
    processor = tmp_path / "a" / "preprocessor_config.json"
    size = {"size": {"max_height": 100, "max_width": 170}}
    exact = f"{FIT}(fill=(124, 116, 104))"
    for more, canvas, pipeline in (
        ({}, (96, 160), exact),  # whole patches
        ({"pad_size": {"height": 104, "width": 176}}, (96, 176),
         exact.replace("fit(", "fit((96, 170), ")),
    ):  # fmt: skip
        processor.write_text(json.dumps(size | more))
        weights = open_weights(tmp_path / "a")
        read = weights.model
        assert (read.config.image_size, read.data_config.image_size) == ((64, 96), canvas)
        assert read.data_config.pipeline(canvas) == pipeline
        photo = np.zeros((200, 200, 3), np.uint8)
        assert parse(pipeline, canvas)(photo, None).shape == (*canvas, 3)
        assert [("an image alone has no padding" in n) for n in weights.notes] == [True] * (
            not more
        )
    processor.unlink()
    weights = open_weights(tmp_path / "a")
    assert (weights.model.data_config.image_size, weights.guessed) == (None, ("mean", "std"))


def test_padding_has_the_colour_that_is_asked_for():
    image = np.full((2, 3, 3), 9, np.uint8)
    for fill, wanted in (((1, 2, 6), [1, 2, 6]), (7, [7] * 3), ((3, 5), [4] * 3)):
        made = parse(f"decode|pad((4, 4), fill={fill})", (4, 4))(image, None)
        assert made[3, 3].tolist() == wanted
        assert made[1, 2].tolist() == [9] * 3
    with pytest.raises(UserError, match=r"fill is a value in 0 … 255, or one for each channel"):
        parse("decode|pad((4, 4), fill=(1, 2, 999))", (4, 4))


@pytest.mark.parametrize(
    ("stated", "config", "says"),
    [
        ({"do_resize": False}, {}, "do_resize False, size .* together have no counterpart here"),
        ({"resample": 3}, {}, "resample 3 together have no counterpart here"),
        ({"image_processor_type": "ViTImageProcessor"}, {}, "ViTImageProcessor is no processor of"),
        ({"max_size": -1}, {}, r"max_size is a number of pixels, not -1 \(1 … 16384 pixels\)"),
        ({"size": {"longest_edge": 3}}, {}, r"size {'longest_edge': 3}, .* have no counterpart"),
        ({"size": {"max_height": 9, "max_width": 9}, "pad_size": {"height": 9, "width": 8}}, {},
         r"pad_size {'height': 9, 'width': 8}, resample 2 together have no counterpart here"),
        ({"pad_size": {"height": -1, "width": 8}}, {}, "pad_size is a size, or an object of sizes"),
        ({}, {"backbone_config": [3]}, "backbone_config is an object"),
        ({}, {"backbone_config": {"downsample_in_bottleneck": True}},
         "its backbone has downsample_in_bottleneck True, here False"),
        ({}, {"backbone_config": {"hidden_act": "gelu"}}, "its backbone has hidden_act 'gelu'"),
        ({}, {"encoder_attention_heads": 4}, r"encoder and decoder have \[4, 2\] heads"),
        ({}, {"decoder_attention_heads": "two"}, "decoder_attention_heads is a whole number"),
        ({}, {"activation_function": ["relu"]}, "activation_function is a word"),
        ({}, {"activation_function": "gelu"}, "the activation is relu here"),
        ({}, {"position_embedding_type": "learned"}, "learned positions of Transformers"),
        ({}, {"dilation": 3}, "dilation is true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_folder_is_one_line(tmp_path, stated, config, says):
    path = folder(tmp_path, stated, **config)
    with pytest.raises(UserError, match=says) as refused:
        open_weights(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (200_000, r"detector_\w+ is [01] … 1000, not 200001"),
        (900, r"say 90[12] layers, it holds \d+ tensors"),
    ],
)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_more_layers_than_tensors_are_refused_at_once(tmp_path, stack, number, says):
    path = folder(tmp_path, {}) / "model.safetensors"
    tensors = load_file(path)
    far = f"model.{stack}.layers.{{}}.self_attn_layer_norm.weight"
    tensors[far.format(number)] = tensors[far.format(0)]
    save_file(tensors, path)
    with pytest.raises(UserError, match=says):
        open_weights(path.parent)
