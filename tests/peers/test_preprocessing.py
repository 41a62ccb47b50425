"""Images become the pixels, and their probabilities, of the package that the weights are from."""

import csv
import dataclasses
import json

import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from made_images import encoded, smooth  # noqa: E402
from peer_models import filled, unmade  # noqa: E402
from PIL import Image  # noqa: E402

from vit_jax import cli, create_model, load_pretrained, save_pretrained  # noqa: E402
from vit_jax.data.decode import decode  # noqa: E402
from vit_jax.data.pipeline_text import parse  # noqa: E402
from vit_jax.errors import UserError  # noqa: E402
from vit_jax.models.data_config import DataConfig  # noqa: E402
from vit_jax.pretrained.huggingface_config import preprocessing as of_transformers  # noqa: E402
from vit_jax.pretrained.timm_config import preprocessing as of_timm  # noqa: E402
from vit_jax.pretrained.weights import open_weights  # noqa: E402

# (height, width); with a short side of 35 or 36 their long sides and borders are rounded otherwise
# by every other rule.
SIZES = [(97, 61), (50, 75), (64, 64), (45, 333), (36, 47), (203, 151), (40, 32), (61, 78)]
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5, "patch_size": 8}
HUGGINGFACE = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
    "num_labels": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs with noise in them, so that another pixel would be noticed."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        noise = rng.integers(-40, 40, (height, width, 3))
        pixels = np.clip(smooth(height, width).astype(int) + noise, 0, 255).astype(np.uint8)
        (folder / f"{number}.jpg").write_bytes(encoded(pixels, "JPEG"))
    return sorted(folder.iterdir())


def prepared(data, size, photos):
    """uint8 images as `vit predict` prepares them."""
    prepare = parse(data.pipeline(size), size)
    return [prepare(decode(path.read_bytes()), None) for path in photos]


def opened(photos):
    return [Image.open(path).convert("RGB") for path in photos]


@pytest.mark.parametrize("how", ["bicubic", "bilinear", "lanczos", "box", "nearest"])
@pytest.mark.parametrize(
    ("size", "crop", "mode"),
    [
        ((32, 32), 0.9, "center"), ((32, 32), 0.875, None), ((32, 32), 1.0, "center"),
        ((24, 24), 0.95, "center"), ((32, 32), 1.0, "squash"), ((32, 32), 0.9, "squash"),
        ((16, 48), 0.9, "center"), ((48, 16), 0.8, "center"), ((16, 48), 0.9, "squash"),
    ],
    ids=str,
)  # fmt: skip
def test_pixels_are_timms(photos, size, crop, mode, how):
    shown = {"crop_pct": crop, "crop_mode": mode, "interpolation": how}
    data, _ = of_timm({"pretrained_cfg": shown | {"input_size": [3, *size]}}, DataConfig())
    theirs = timm.data.create_transform((3, *size), **shown, normalize=False)
    for ours, image in zip(prepared(data, size, photos), opened(photos), strict=True):
        np.testing.assert_array_equal(ours, theirs(image).numpy().transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("kind", "shown", "size"),
    [
        ("ViT", {"size": {"height": 32, "width": 32}}, (32, 32)),
        ("ViT", {"size": 32, "resample": 1}, (32, 32)),
        ("ViT", {"size": {"height": 16, "width": 48}, "resample": 4}, (16, 48)),
        ("ViT", {"size": {"height": 32, "width": 32}, "do_normalize": False}, (32, 32)),
        ("ViT", {"size": {"height": 32, "width": 32}, "do_rescale": False}, (32, 32)),
        (
            "ViT",
            {"size": {"height": 32, "width": 32}, "do_rescale": False, "do_normalize": False},
            (32, 32),
        ),
        ("ViT", {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5}, (32, 32)),
        (
            "DeiT",
            {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}},
            (32, 32),
        ),
        ("DeiT", {"size": 37, "crop_size": 32}, (32, 32)),
        (
            "DeiT",
            {"size": {"height": 18, "width": 54}, "crop_size": {"height": 16, "width": 48}},
            (16, 48),
        ),
        ("Bit", {"size": {"shortest_edge": 36}, "crop_size": 32}, (32, 32)),
        ("Bit", {"size": 35, "crop_size": 32, "resample": 2}, (32, 32)),
        ("Bit", {"size": {"shortest_edge": 41}, "crop_size": 33, "resample": 5}, (33, 33)),
    ],
    ids=str,
)  # fmt: skip
def test_values_are_those_of_transformers(photos, tmp_path, kind, shown, size):
    """Of its processors that work with Pillow; those of torchvision resize otherwise."""
    getattr(transformers, f"{kind}ImageProcessor")(**shown).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    models = {"ViT": "vit", "DeiT": "deit", "Bit": "dinov2"}
    data, _ = of_transformers(tmp_path, models[kind], size)
    assert data.image_size is None
    for ours, image in zip(prepared(data, size, photos), opened(photos), strict=True):
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        ours = np.asarray(data.normalise(ours))
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("written", [{}, {"size": 40}, {"size": 37, "do_center_crop": True}])
@pytest.mark.parametrize("model", ["vit", "deit", "dinov2"])
def test_what_an_old_preprocessor_leaves_out_is_the_processors_own(tmp_path, model, written):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    kind = {"vit": "ViT", "deit": "DeiT", "dinov2": "Bit"}[model]
    old = written | {"image_processor_type": f"{kind}ImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    if model == "vit" and "do_center_crop" in written:
        return  # ViT's has no size of a crop of its own
    image = Image.fromarray(smooth(250, 301))
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    if model != "vit" and "size" in written:  # theirs has a border, which nothing here makes
        with pytest.raises(UserError, match="no counterpart here"):
            of_transformers(tmp_path, model, theirs.shape[:2])
        return
    data, _ = of_transformers(tmp_path, model, theirs.shape[:2])
    assert data.image_size is None
    ours = parse(data.pipeline(theirs.shape[:2]), theirs.shape[:2])(np.asarray(image), None)
    np.testing.assert_allclose(np.asarray(data.normalise(ours)), theirs, atol=2e-5)


def predicted(folder, photos, tmp_path):
    """Probabilities [photos, classes] by the command."""
    table = tmp_path / "p.csv"
    assert (
        cli.main(["predict", str(folder), *map(str, photos), "--top=5", f"--output={table}"]) == 0
    )
    found = np.zeros((len(photos), 5))
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            found[[str(p) for p in photos].index(row["image"]), int(row["class"])] = float(
                row["probability"]
            )
    return found


def assert_same_probabilities(ours, theirs):
    theirs = theirs.numpy()
    assert np.ptp(theirs, axis=0).max() > 5e-3  # else any image would do
    assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (43, 43), (21, 50)])
def test_predictions_are_timms(photos, tmp_path, size):
    arguments = TINY | {"img_size": list(size)}
    with unmade():
        theirs = timm.create_model("vit_base_patch16_224", **arguments)
    theirs, _ = filled(theirs)
    timm.models.save_for_hf(
        theirs, tmp_path / "model", model_args=arguments, safe_serialization=True,
        data_config={
            "input_size": [3, *size], "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25),
            "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center",
        },
    )  # fmt: skip
    show = timm.data.create_transform(
        **timm.data.resolve_data_config(
            pretrained_cfg=json.loads((tmp_path / "model/config.json").read_text())[
                "pretrained_cfg"
            ]
        )
    )
    with torch.no_grad():
        chances = theirs(torch.stack([show(image) for image in opened(photos)])).softmax(-1)
    assert_same_probabilities(predicted(tmp_path / "model", photos, tmp_path), chances)


@pytest.mark.parametrize(
    ("name", "config", "processor"),
    [
        ("ViTForImageClassification", {"image_size": 32, "patch_size": 8}, ("ViT", {"size": 32})),
        (
            "ViTForImageClassification", {"image_size": (16, 48), "patch_size": 8},
            ("ViT", {"size": {"height": 16, "width": 48}}),
        ),
        (
            "ViTForImageClassification", {"image_size": 32, "patch_size": 8},
            ("ViT", {"size": 32, "do_normalize": False}),
        ),
        # Of sizes that patches do not tile, the rest is shown and not read.
        ("ViTForImageClassification", {"image_size": 50, "patch_size": 12}, ("ViT", {"size": 50})),
        (
            "ViTForImageClassification", {"image_size": (31, 50), "patch_size": 12},
            ("ViT", {"size": {"height": 31, "width": 50}}),
        ),
        (
            "Dinov2ForImageClassification", {"image_size": 50, "patch_size": 12},
            ("Bit", {"size": {"shortest_edge": 48}, "crop_size": 43}),
        ),
        (
            "DeiTForImageClassificationWithTeacher", {"image_size": 32, "patch_size": 8},
            ("DeiT", {"size": 37, "crop_size": 32}),
        ),
        # The published ones: trained at 518, shown at 224 with interpolated positions.
        (
            "Dinov2ForImageClassification", {"image_size": 98, "patch_size": 14},
            ("Bit", {"size": {"shortest_edge": 48}, "crop_size": 42}),
        ),
        (
            "Dinov2WithRegistersForImageClassification", {"image_size": 98, "patch_size": 14},
            ("Bit", {"size": {"shortest_edge": 48}, "crop_size": 42}),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_predictions_are_those_of_transformers(photos, tmp_path, name, config, processor):
    kind, shown = getattr(transformers, name), processor[1]
    with unmade():
        theirs = kind(kind.config_class(**HUGGINGFACE | config))
    theirs, _ = filled(theirs)
    theirs.save_pretrained(tmp_path / "model")
    getattr(transformers, f"{processor[0]}ImageProcessor")(**shown).save_pretrained(
        tmp_path / "model"
    )
    pil = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    with torch.no_grad():
        chances = theirs(**pil(opened(photos), return_tensors="pt")).logits.softmax(-1)
    assert_same_probabilities(predicted(tmp_path / "model", photos, tmp_path), chances)
    # By way of a checkpoint of our own, and of a folder written from that.
    own, back = tmp_path / "own", tmp_path / "back"
    assert cli.main(["convert", f"{tmp_path}/model", str(own), "--to=orbax"]) == 0
    assert_same_probabilities(predicted(own, photos, tmp_path), chances)
    assert cli.main(["convert", str(own), str(back), "--to=huggingface"]) == 0
    assert open_weights(back).model.data_config == open_weights(own).model.data_config
    again = kind.from_pretrained(back).eval()
    pil = transformers.AutoImageProcessor.from_pretrained(back, backend="pil")
    with torch.no_grad():
        chances = again(**pil(opened(photos), return_tensors="pt")).logits.softmax(-1)
    assert_same_probabilities(predicted(tmp_path / "model", photos, tmp_path), chances)


@pytest.mark.parametrize("crop", [0.9, 0.875, 0.95, 0.965, 1.0])
@pytest.mark.parametrize("squash", [False, True])
def test_how_images_are_shown_survives_every_layout_that_tells_it(tmp_path, crop, squash):
    model = create_model("vit_mu_patch16_224", num_classes=5)
    shown = DataConfig((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", crop, squash)
    model, params = dataclasses.replace(model, data_config=shown), model.init()
    source = tmp_path / "a"
    save_pretrained(model, params, source, "timm")
    for number, to in enumerate(["orbax", "timm", "huggingface", "orbax", "huggingface", "timm"]):
        model, params, _ = load_pretrained(source, say=None)
        source = tmp_path / f"{number}"
        save_pretrained(model, params, source, to)
        found = open_weights(source).model.data_config
        assert found.resized((224, 224)) == shown.resized((224, 224))
        assert (found.mean, found.std, found.interpolation, found.squash) == (
            shown.mean, shown.std, "bicubic", squash
        )  # fmt: skip
        if crop in (0.9, 0.875, 0.95, 1.0):
            assert found.crop == crop
        if crop == 0.9 and to == "huggingface" and not squash:
            written = json.loads((source / "preprocessor_config.json").read_text())
            assert written["size"] == {"shortest_edge": 248}
