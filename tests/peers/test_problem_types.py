"""`vit predict` says of an image what Transformers' pipeline says, whatever the problem; and logits
of images that patches do not tile are those of the packages that the weights are from."""

import csv
import dataclasses

import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from made_images import encoded, smooth  # noqa: E402
from peer_models import assert_same, computed, filled, run, some_images, unmade  # noqa: E402

from vit_jax import cli, load_pretrained, save_pretrained  # noqa: E402
from vit_jax.errors import UserError  # noqa: E402
from vit_jax.pretrained.weights import open_weights  # noqa: E402

SIZES = [(50, 50), (31, 50)]
HUGGINGFACE = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
}  # fmt: skip


def said_by_transformers(folder, photo):
    show = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    pipe = transformers.pipeline("image-classification", model=model, image_processor=show)
    return {one["label"]: one["score"] for one in pipe(str(photo), top_k=9)}


def said_here(weights, photo, tmp_path, *options):
    table = tmp_path / "p.csv"
    assert cli.main(["predict", str(weights), str(photo), f"--output={table}", *options]) == 0
    with table.open(newline="") as file:
        return {row["label"]: float(row["probability"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, 4), ("single_label_classification", 4), ("multi_label_classification", 4),
        ("regression", 4), (None, 1), ("regression", 1), ("multi_label_classification", 1),
    ],
)  # fmt: skip
def test_predictions_are_those_of_the_pipeline_here_and_converted(tmp_path, problem, labels):
    names = {i: name for i, name in enumerate("wxyz"[:labels])}
    config = transformers.ViTConfig(
        **HUGGINGFACE, image_size=32, patch_size=8, id2label=names, problem_type=problem,
        label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    with unmade():
        theirs = transformers.ViTForImageClassification(config)
    theirs, _ = filled(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.ViTImageProcessor(size=32).save_pretrained(tmp_path / "theirs")
    photo = tmp_path / "a.png"
    photo.write_bytes(encoded(smooth(45, 61), "PNG"))
    wanted = said_by_transformers(tmp_path / "theirs", photo)
    top = [] if problem == "regression" else ["--top=9"]
    assert said_here(tmp_path / "theirs", photo, tmp_path, *top) == pytest.approx(wanted, abs=1e-4)
    assert cli.main(["convert", f"{tmp_path}/theirs", f"{tmp_path}/own.npz", "--to=google"]) == 0
    assert said_here(tmp_path / "own.npz", photo, tmp_path, *top) == pytest.approx(wanted, abs=1e-4)
    back = ["convert", f"{tmp_path}/own.npz", f"{tmp_path}/back", "--to=huggingface"]
    assert cli.main(back) == 0
    assert said_by_transformers(tmp_path / "back", photo) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_logits_of_sizes_that_patches_do_not_tile_are_timms(tmp_path, size):
    arguments = {
        "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5, "patch_size": 12,
        "img_size": list(size),
    }  # fmt: skip
    with unmade():
        theirs = timm.create_model("vit_base_patch16_224", **arguments)
    theirs, _ = filled(theirs)
    timm.models.save_for_hf(theirs, tmp_path / "w", model_args=arguments, safe_serialization=True)
    images = some_images(size, 2)
    wanted = run(theirs, images)
    model, params, _ = load_pretrained(tmp_path / "w", say=None)
    assert model.config.image_size == size
    assert_same(computed(model, params, images), wanted)
    save_pretrained(model, params, tmp_path / "back", "timm")
    again = timm.create_model(f"local-dir:{tmp_path}/back", pretrained=True).eval()
    assert_same(computed(model, params, images), run(again, images))


@pytest.mark.parametrize(
    ("name", "size"),
    [("ViT", SIZES[0]), ("ViT", SIZES[1]), ("DeiT", SIZES[0]), ("Dinov2", SIZES[0])],
)
def test_logits_of_sizes_that_patches_do_not_tile_are_those_of_transformers(tmp_path, name, size):
    kind = getattr(transformers, f"{name}ForImageClassification")
    config = HUGGINGFACE | {"image_size": size if len(set(size)) > 1 else size[0]}
    with unmade():
        theirs = kind(kind.config_class(**config, patch_size=12, num_labels=5))
    theirs, _ = filled(theirs)
    theirs.save_pretrained(tmp_path / "w")
    images = some_images(size, 2)
    logits = {"logits": lambda out: out.logits}
    model, params, _ = load_pretrained(tmp_path / "w", say=None)
    assert model.config.image_size == size
    assert_same(computed(model, params, images), run(theirs, images, **logits))
    squashed = dataclasses.replace(model.data_config, squash=True, crop=1.0)
    model = dataclasses.replace(model, data_config=squashed)
    save_pretrained(model, params, tmp_path / "back", "huggingface")
    assert open_weights(tmp_path / "back").model.config.image_size == size
    again = kind.from_pretrained(tmp_path / "back").eval()
    assert_same(computed(model, params, images), run(again, images, **logits))


def test_a_mixer_at_such_a_size_is_refused_and_not_shown_another(tmp_path):
    with unmade():
        theirs = timm.create_model("mixer_s16_224", img_size=40, num_classes=5)
    theirs, _ = filled(theirs)
    timm.models.save_for_hf(
        theirs, tmp_path / "w", model_args={"img_size": 40}, safe_serialization=True
    )
    with pytest.raises(UserError, match=r"\(40, 40\) is not divisible by patch_size 16"):
        load_pretrained(tmp_path / "w", say=None)
