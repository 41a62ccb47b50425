"""Folders and files as people have them compute here what their own packages compute: processors of
other models, wrapped models, what training scripts save, a MAE."""

import argparse
import collections
import csv
import json
import pathlib

import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from made_images import encoded, smooth  # noqa: E402
from peer_models import LOGITS, filled, unmade  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from vit_jax import cli, load_pretrained  # noqa: E402
from vit_jax.data.decode import decode  # noqa: E402
from vit_jax.data.pipeline_text import parse  # noqa: E402
from vit_jax.errors import UserError  # noqa: E402
from vit_jax.pretrained.huggingface_config import preprocessing  # noqa: E402
from vit_jax.pretrained.torch_files import UNREAD  # noqa: E402
from vit_jax.pretrained.weights import open_weights  # noqa: E402

SIZES = [(97, 61), (50, 75), (64, 64), (45, 233), (36, 47)]  # (height, width)
SMALL = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TINY = {
    "img_size": 24, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "mlp_ratio": 0.5,
    "num_classes": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos():
    """JPEGs with noise in them, so that another pixel would be noticed."""
    rng, found = np.random.default_rng(1), []
    for height, width in SIZES:
        noise = rng.integers(-40, 40, (height, width, 3))
        pixels = np.clip(smooth(height, width).astype(int) + noise, 0, 255).astype(np.uint8)
        found.append(encoded(pixels, "JPEG"))
    return found


# (processor, its settings, the model's image size)
PROCESSORS = [
    ("CLIP", {"size": {"shortest_edge": 36}, "crop_size": 32}, 32),
    ("CLIP", {"size": 32, "crop_size": {"height": 32, "width": 32}, "do_normalize": False}, 32),
    ("Siglip", {"size": {"height": 32, "width": 32}}, 32),
    ("Siglip", {"size": {"height": 40, "width": 24}, "resample": 2}, (40, 24)),
    ("ConvNext", {"size": {"shortest_edge": 32}}, 32),
    ("ConvNext", {"size": {"shortest_edge": 40}, "crop_pct": 0.95, "resample": 2}, 40),
    ("ConvNext", {"size": {"shortest_edge": 384}}, 384),
    ("EfficientNet", {"size": {"height": 32, "width": 32}}, 32),
    ("EfficientNet", {"size": {"height": 32, "width": 32}, "include_top": False}, 32),
    ("EfficientNet", {"size": 32, "rescale_offset": True, "rescale_factor": 1 / 127.5}, 32),
    ("EfficientNet", {"size": 32, "do_normalize": False}, 32),
    ("EfficientNet", {"size": 39, "do_center_crop": True, "crop_size": 32}, 32),
    ("ViT", {"size": 40, "do_center_crop": True, "crop_size": 32}, 32),
]


def values_of(processor, image):
    return processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


@pytest.mark.parametrize(("kind", "shown", "size"), PROCESSORS, ids=str)
def test_values_are_those_of_the_processor(photos, tmp_path, kind, shown, size):
    getattr(transformers, f"{kind}ImageProcessor")(**shown).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    size = (size, size) if isinstance(size, int) else size
    data, guessed = preprocessing(tmp_path, "vit", size)
    assert guessed == ()
    assert data.image_size is None
    # A file that states these fields alone means the same: its other fields have the defaults.
    short = {"image_processor_type": f"{kind}ImageProcessor"} | shown
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(short))
    assert preprocessing(tmp_path, "vit", size) == (data, ())
    prepare = parse(data.pipeline(size), size)
    for photo in photos:
        ours = np.asarray(data.normalise(prepare(decode(photo), None)))
        theirs = values_of(processor, Image.open(_file(photo)).convert("RGB"))
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-5)


def _file(data: bytes):
    import io

    return io.BytesIO(data)


@pytest.mark.parametrize(
    ("shown", "images"),
    [
        ({"size": {"height": 32, "width": 32}}, [(32, 32)]),
        ({"do_center_crop": True, "crop_size": 32}, [(32, 32), (41, 32), (50, 33), (97, 61)]),
    ],
    ids=str,
)
def test_images_that_are_not_resized_are_those_of_the_processor(tmp_path, shown, images):
    transformers.ViTImageProcessor(do_resize=False, **shown).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    data, _ = preprocessing(tmp_path, "vit", (32, 32))
    prepare = parse(data.pipeline((32, 32)), (32, 32))
    for height, width in images:
        pixels = smooth(height, width)
        ours = np.asarray(data.normalise(prepare(pixels, None)))
        np.testing.assert_allclose(ours, values_of(processor, Image.fromarray(pixels)), atol=3e-5)


def test_a_folder_whose_images_are_not_resized_predicts_those_of_its_size_alone(tmp_path, capsys):
    with unmade():
        theirs = transformers.ViTForImageClassification(
            transformers.ViTConfig(**SMALL, num_labels=4)
        )
    theirs, _ = filled(theirs)
    theirs.save_pretrained(tmp_path / "w")
    shown = transformers.ViTImageProcessor(do_resize=False, size={"height": 32, "width": 32})
    shown.save_pretrained(tmp_path / "w")
    pixels = smooth(32, 32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(smooth(40, 32)).save(tmp_path / "b.png")
    command = ["predict", str(tmp_path / "w"), str(tmp_path / "a.png"), "--top=4"]
    assert cli.main([*command, f"--output={tmp_path}/p.csv"]) == 0
    rows = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    pil = transformers.AutoImageProcessor.from_pretrained(tmp_path / "w", backend="pil")
    with torch.no_grad():
        chances = theirs(**pil(Image.fromarray(pixels), return_tensors="pt")).logits.softmax(-1)
    by_class = {row["class"]: float(row["probability"]) for row in rows}
    for name, chance in enumerate(chances[0].tolist()):
        assert abs(by_class[str(name)] - chance) < 1e-3
    assert cli.main(["predict", str(tmp_path / "w"), str(tmp_path / "b.png")]) == 2
    assert "b.png becomes (40, 32, 3), the model takes (32, 32, 3)" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "w"), f"{tmp_path}/again", "--to=huggingface"]) == 0
    again = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert again["do_resize"] is False


def loaded(path, **fields):
    model, params, report = load_pretrained(path, say=None, **fields)
    return model, params, report


def pictures(size, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def as_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def test_the_class_token_of_a_mae_is_that_of_transformers(tmp_path):
    sizes = {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1}
    more = {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}
    config = transformers.ViTMAEConfig(**SMALL | {"mask_ratio": 0.0} | sizes | more)
    theirs, _ = filled(transformers.ViTMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path / "mae")
    images = pictures(32)
    with torch.no_grad():
        wanted = theirs.vit(as_torch(images)).last_hidden_state[:, 0].numpy()
    model, params, report = loaded(tmp_path / "mae")
    _, out = model.apply(params, images)
    np.testing.assert_allclose(out["pre_logits"], wanted, atol=LOGITS)
    assert model.data_config.mean == (0.485, 0.456, 0.406)
    unused = {name.split(".")[0] for name, fate in report.fates.items() if "unused" in fate}
    assert unused == {"decoder"}
    assert cli.main(["convert", f"{tmp_path}/mae", f"{tmp_path}/vit", "--to=huggingface"]) == 0
    again = transformers.ViTModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False).eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            again(as_torch(images)).last_hidden_state[:, 0].numpy(), wanted, atol=LOGITS
        )


@pytest.fixture(scope="module")
def of_timm():
    """A ViT of timm with made values, and its logits for two images."""
    with unmade():
        model = timm.models.vision_transformer.VisionTransformer(**TINY)
    model, _ = filled(model)
    with torch.no_grad():
        return model, model(as_torch(pictures(24))).numpy()


def logits(path):
    model, params, report = loaded(path)
    return np.asarray(model.apply(params, pictures(24))[0]), report


def test_a_compiled_and_parallel_model_computes_what_the_bare_one_does(of_timm, tmp_path):
    model, wanted = of_timm

    class Lit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(collections.OrderedDict(vit=model))
            self.compiled = torch.compile(self.net)

    state = Lit().compiled.state_dict()
    assert all(name.startswith("_orig_mod.vit.") for name in state)
    save_file({name: x.contiguous() for name, x in state.items()}, tmp_path / "a.safetensors")
    np.testing.assert_allclose(logits(tmp_path / "a.safetensors")[0], wanted, atol=LOGITS)


def test_what_training_scripts_save_is_read_and_nothing_of_it_is_made(of_timm, tmp_path):
    model, wanted = of_timm
    optimizer = torch.optim.AdamW(model.parameters())
    rate = np.float64(0.5)
    tree = {
        "state_dict": {f"module.{name}": x for name, x in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=rate, data=pathlib.Path("/data"), sizes=np.arange(3)),
        "best": np.float32(3), "when": {"path": pathlib.PureWindowsPath("c:/x")},
        "history": collections.OrderedDict(loss=[rate, 1.0]), "epoch": 3,
    }  # fmt: skip
    for number, zipped in enumerate((True, False)):
        path = tmp_path / f"{number}.pth.tar"
        torch.save(tree, path, _use_new_zipfile_serialization=zipped)
        ours, report = logits(path)
        np.testing.assert_allclose(ours, wanted, atol=LOGITS)
        assert report.fates["optimizer"] == "unused (the state of an optimiser)"
    unread = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "0.pth.tar")
    assert "argparse.Namespace" in unread  # nothing stays allowed
    assert set(unread) <= set(UNREAD)


class Writes:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_inside_of_what_is_not_read_is_refused_too(of_timm, tmp_path):
    ran = tmp_path / "ran"
    tree = {"model": of_timm[0].state_dict(), "args": argparse.Namespace(x=Writes(ran))}
    torch.save(tree, tmp_path / "a.pth")
    with pytest.raises(UserError, match="could run code"):
        open_weights(tmp_path / "a.pth")
    assert not ran.exists()


def test_a_timm_folder_without_pooling_gives_its_tokens(tmp_path):
    arguments = TINY | {"num_classes": 0, "global_pool": "", "init_values": 1e-5}
    with unmade():
        theirs = timm.create_model("vit_tiny_patch16_224", **arguments)
    theirs, _ = filled(theirs)
    timm.models.save_for_hf(
        theirs, tmp_path / "w", model_args=arguments, safe_serialization=True,
        data_config={"input_size": [3, 24, 24], "mean": (0.5,) * 3, "std": (0.5,) * 3},
    )  # fmt: skip
    images = pictures(24)
    with torch.no_grad():
        tokens = theirs(as_torch(images)).numpy()
    assert tokens.shape == (2, 10, 192)
    model, params, report = loaded(tmp_path / "w")
    _, out = model.apply(params, images)
    np.testing.assert_allclose(out["pre_logits"], tokens[:, 0], atol=LOGITS)
    np.testing.assert_allclose(out["encoded"], tokens, atol=LOGITS)
    assert any("global_pool ''" in line for line in report.warnings)


def test_gated_models_of_timm_state_silu(tmp_path):
    from timm.layers import SwiGLUPacked

    arguments = TINY | {"num_classes": 0, "mlp_ratio": 2.0}
    with unmade():
        theirs = timm.create_model(
            "vit_tiny_patch16_224", **arguments, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU
        )
    theirs, _ = filled(theirs)
    (tmp_path / "w").mkdir()
    save_file(theirs.state_dict(), tmp_path / "w" / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    config["model_args"] |= {"act_layer": "silu"}
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    images = pictures(24)
    with torch.no_grad():
        wanted = theirs(as_torch(images)).numpy()
    model, params, _ = loaded(tmp_path / "w")
    assert model.config.mlp == "swiglu"
    np.testing.assert_allclose(model.apply(params, images)[1]["pre_logits"], wanted, atol=LOGITS)
    assert load_file(tmp_path / "w" / "model.safetensors")
