"""`vit inspect`, `vit convert` and `vit predict`, as a user calls them."""

import csv
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import vit_jax
from tests.digits_run import tiny_config
from tests.made_images import encoded, smooth
from tests.refusals import refused
from vit_jax.models.registry import name_of
from vit_jax.pretrained.weights import open_weights

NAMES = ["cat", "dog", "eagle, bald", "owl", "newt"]


@pytest.fixture(scope="module")
def model():
    """A tiny ViT of 24 x 24 pixels, its parameters random: no two images look alike to it."""
    model = vit_jax.create_model("vit_mu_patch4_24", num_layers=2, num_classes=5, gelu="exact")
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, model.abstract_params)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """It as a file of Google's layout with names of classes."""
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    vit_jax.save_pretrained(*model, path, "google", classes=NAMES)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The work folder of a short run on the digits."""
    folder = tmp_path_factory.mktemp("run") / "work"
    config = tiny_config(optimizer__lr=1e-2, total_steps=40)
    vit_jax.train(config, folder, devices=jax.devices()[:1], quiet=True)
    return folder


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_shows_layout_model_parameters_images_and_classes(vit, weights, model):
    code, out, err = vit("inspect", weights)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{weights}: google layout, vit"
    assert lines[1].startswith(f"{model[0].num_params:,} parameters in 33 tensors")
    assert "gelu=exact" in lines[2]
    assert "image_size=(24, 24)" in lines[2]
    assert lines[3].endswith(model[0].data_config.pipeline((24, 24)))
    assert lines[4] == "classes    5: " + ", ".join(NAMES)
    assert len(lines) == 5


def test_inspect_lists_every_tensor(vit, weights, model):
    _, out, _ = vit("inspect", weights, "--tensors")
    listed = dict(line.rsplit("  ", 1) for line in out.splitlines()[5:])
    listed = {path.strip(): shape for path, shape in listed.items()}
    assert len(listed) == 33
    assert listed["encoder/block01/attention/qkv/kernel"] == "[32, 3, 2, 16]"
    sizes = [np.prod(json.loads(shape), dtype=int) for shape in listed.values()]
    assert sum(sizes) == model[0].num_params


def test_inspect_as_json_holds_the_whole_config(vit, weights, model):
    code, out, _ = vit("inspect", weights, "--json", "--tensors")
    told = json.loads(out)
    assert code == 0
    assert told["layout"] == "google"
    assert told["classes"] == NAMES
    assert told["parameters"] == model[0].num_params
    assert told["config"] == json.loads(json.dumps(vars(model[0].config)))
    assert told["unused"] == {}
    assert len(told["shapes"]) == told["tensors"] == 33


def test_inspect_takes_a_run_and_tells_what_is_not_used(vit, work, weights, tmp_path):
    code, out, _ = vit("inspect", work)
    assert code == 0
    assert f"{work}/checkpoints/40: orbax layout" in out
    assert "classes    10: 0, 1, 2" in out
    with np.load(weights) as tensors:
        two = {f"img/{name}": tensors[name] for name in tensors.files}
    np.savez(tmp_path / "two.npz", **two, **{"txt/head": np.zeros((2, 3), np.float32)})
    code, out, _ = vit("inspect", tmp_path / "two.npz")
    assert code == 0
    assert "  unused: txt/head (outside of img/)" in out
    assert "classes    5, without names" in out


# -- convert ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "name", "holds"),
    [
        ("timm", "tiny.safetensors", None),
        ("timm", "tiny", {"config.json", "model.safetensors"}),
        ("huggingface", "tiny", {"config.json", "preprocessor_config.json", "model.safetensors"}),
        ("big_vision", "tiny.npz", None),
        ("orbax", "tiny", None),
    ],
)
def test_convert_writes_what_loads_as_the_same_model(
    vit, weights, model, tmp_path, to, name, holds
):
    target = tmp_path / name
    code, out, err = vit("convert", weights, target, f"--to={to}")
    assert code == 0, err
    assert out == f"{weights} (google) -> {target} ({to})\n"
    assert err.startswith("33 loaded\n")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if holds:
        assert {p.name for p in target.iterdir()} == holds
    assert vit("inspect", target)[0] == 0
    assert open_weights(target).classes == NAMES
    images = np.random.default_rng(1).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    again, params, _ = vit_jax.load_pretrained(target, say=None)
    wanted = jax.jit(model[0].apply)(model[1], images)[0]
    np.testing.assert_allclose(jax.jit(again.apply)(params, images)[0], wanted, atol=1e-5)


def test_there_and_back_again_is_the_same_file_to_the_byte(vit, weights, tmp_path):
    assert vit("convert", weights, tmp_path / "tiny", "--to=timm")[0] == 0
    assert vit("convert", tmp_path / "tiny", tmp_path / "back.npz", "--to=google")[0] == 0
    assert (tmp_path / "back.npz").read_bytes() == weights.read_bytes()


def test_convert_says_what_a_reader_of_the_file_computes_otherwise(vit, weights, tmp_path):
    _, _, err = vit("convert", weights, tmp_path / "big.npz", "--to=big_vision")
    assert "note: gelu is 'exact' here; readers of big_vision files compute with 'tanh'" in err


def test_convert_leaves_the_head_out(vit, weights, tmp_path):
    code, _, err = vit("convert", weights, tmp_path / "body", "--to=timm", "--num-classes=0")
    assert code == 0
    assert err.startswith("31 loaded, 2 unused")
    assert open_weights(tmp_path / "body").model.config.num_classes == 0


def test_a_converted_run_evaluates_as_the_run_does(vit, work, tmp_path):
    assert vit("convert", work, tmp_path / "digits.npz", "--to=google")[0] == 0
    assert vit("convert", tmp_path / "digits.npz", tmp_path / "own", "--to=orbax")[0] == 0
    _, wanted, _ = vit("evaluate", f"--workdir={work}", "--json")
    code, out, err = vit(
        "evaluate", f"--checkpoint={tmp_path}/own", "--data=digits", "--split=val",
        "--config.total_steps=1", "--json",
    )  # fmt: skip
    assert code == 0, err
    told, wanted = json.loads(out), json.loads(wanted)
    assert wanted["accuracy"] > 0.15  # it has learned something
    assert (told["accuracy"], told["examples"]) == (wanted["accuracy"], 355)
    assert told["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_convert_refuses_what_is_there_already_and_leaves_it(vit, weights, tmp_path):
    (tmp_path / "a.safetensors").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    for name in ("a.safetensors", "folder"):
        line = refused(vit, "convert", weights, tmp_path / name, "--to=timm")
        assert f"{tmp_path / name} is there already" in line
    assert (tmp_path / "a.safetensors").read_text() == "mine"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["notes"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "to", "says"),
    [
        ("x", "tim", ["unknown layout 'tim'", "did you mean timm?"]),
        ("x", "pytorch", ["unknown layout 'pytorch'", "google", "orbax"]),
        ("x.safetensors", "google", ["x.safetensors", "google", ".npz file"]),
        ("x", "big_vision", ["big_vision", ".npz file"]),
        ("x.npz", "dinov2", ["dinov2", ".safetensors file"]),
        ("no/such/x.npz", "google", ["there is no folder", "no/such"]),
        ("x.safetensors", "dinov2", ["dinov2 layout has no place for", "LayerScale"]),
    ],
)
def test_convert_refuses_what_cannot_be_and_leaves_nothing(vit, weights, tmp_path, name, to, says):
    line = refused(vit, "convert", weights, tmp_path / name, f"--to={to}")
    assert all(text in line for text in says), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["convert", "x.npz", "--to=big_visio"],
         "unknown layout 'big_visio': did you mean big_vision?"),
        (["predict", "."], "no images in .: JPEG, PNG, WebP, BMP, GIF, TIFF, PPM/PGM, AVIF, "
         "JPEG 2000, NumPy are read"),
    ],
)  # fmt: skip
def test_a_process_of_its_own_refuses_with_one_line(weights, tmp_path, command, says):
    name, *rest = command
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", name, str(weights), *rest], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"vit: error: {says}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_is_no_folder(vit):
    assert "the weights are an empty name" in refused(vit, "inspect", "")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "vit_base_patch16_siglip_224", "gelu": "exact"}, "vit_base_patch16_siglip_224"),
        ({"name": "vit_base_r50_s16_224", "gelu": "exact"}, "vit_base_r50_s16_224"),
        ({"name": "vit_base_patch16_224", "gelu": "exact"}, "vit_base_patch16_224"),
        ({"name": "vit_base_patch16_224", "pool": "gap"}, "vit_base_patch16_224"),
        ({"name": "vit_small_patch14_dinov2", "gelu": "tanh"}, "vit_small_patch14_dinov2"),
        ({"name": "vit_base_patch16_224", "registers": 2}, "vit"),
        ({"name": "vit_base_patch16_siglip_224", "hidden_size": 384}, "vit"),
        ({"name": "vit_base_r50_s16_224", "resnet_layers": (3, 4, 6)}, "vit"),
    ],
    ids=str,
)  # fmt: skip
def test_a_name_says_the_parts_of_a_model_and_not_its_nearest_shape(fields, named):
    model = vit_jax.create_model(**fields)
    assert name_of(model.config, "vit") == named


# -- predict ---------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Five images of several kinds and sizes, one of them in a folder of the folder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, (name, kind) in enumerate(
        {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.bmp": "BMP"}.items()
    ):
        pixels = np.roll(smooth(40 + 8 * number, 56), 7 * number, axis=1)
        (folder / name).write_bytes(encoded(pixels, kind))
    (folder / "more" / "e.PNG").write_bytes(encoded(255 - smooth(24, 24), "PNG"))
    (folder / "notes.txt").write_text("no image")
    return folder


def rows_of(file) -> list[dict]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def computed(model, folder) -> dict[str, np.ndarray]:
    """Probabilities by file name, each image decoded, resized, cropped and shown by hand."""
    found = {}
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".txt":
            continue
        with Image.open(path) as image:
            image = image.convert("RGB")
        short = int(24 / 0.875)
        sides = [short * side // min(image.size) for side in image.size]
        if image.size != tuple(sides):
            image = image.resize(sides, Image.Resampling.BILINEAR)
        left, top = (round((side - 24) / 2) for side in sides)
        pixels = np.asarray(image.crop((left, top, left + 24, top + 24)), np.float32)
        logits, _ = jax.jit(model[0].apply)(model[1], pixels[None] / 127.5 - 1)
        found[path.name] = np.asarray(jax.nn.softmax(logits[0]))
    return found


def test_predictions_are_those_of_apply_on_the_images_prepared_by_hand(
    vit, weights, model, photos, tmp_path
):
    code, out, err = vit(
        "predict", weights, photos, "--top=5", f"--output={tmp_path}/p.csv", "--batch-size=2"
    )
    assert (code, err) == (0, f"{photos}: 1 file is left out: 1 .txt\n")
    assert out == f"5 images: {tmp_path}/p.csv\n"
    text = (tmp_path / "p.csv").read_text()
    assert text.startswith("image,rank,class,label,probability\n")
    rows = rows_of(tmp_path / "p.csv")
    wanted = computed(model, photos)
    assert len(rows) == 25
    assert {row["image"] for row in rows} == {str(p) for p in photos.rglob("*.[!t]*")}
    for row in rows:
        probabilities = wanted[os.path.basename(row["image"])]
        assert float(row["probability"]) == pytest.approx(
            probabilities[int(row["class"])], abs=2e-4
        )
        assert row["label"] == NAMES[int(row["class"])]
        assert int(row["class"]) == np.argsort(-probabilities)[int(row["rank"]) - 1]
    assert len({row["class"] for row in rows if row["rank"] == "1"}) > 1  # else any would do
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "photos"]


def test_the_size_of_a_batch_changes_no_prediction(vit, weights, photos, tmp_path):
    tables = []
    for size in (1, 2, 3, 5, 32):
        file = tmp_path / f"{size}.csv"
        assert vit("predict", weights, photos, "--top=3", f"--output={file}",
                   f"--batch-size={size}")[0] == 0  # fmt: skip
        tables.append(rows_of(file))
    for table in tables[1:]:
        for row, first in zip(table, tables[0], strict=True):
            assert row.keys() == first.keys()
            assert float(row["probability"]) == pytest.approx(float(first["probability"]), abs=2e-6)
            assert [row[k] for k in ("image", "rank", "class")] == [
                first[k] for k in ("image", "rank", "class")
            ]


def test_a_run_predicts_images_of_its_data_as_its_model_does(vit, work, tmp_path):
    pixels = np.round(load_digits().images[-20:] * (255 / 16)).astype(np.uint8)
    for number, digit in enumerate(pixels):
        Image.fromarray(digit).save(tmp_path / f"{number:02d}.png")
    model, params, _ = vit_jax.load_pretrained(work, say=None)
    logits, _ = jax.jit(model.apply)(params, pixels[..., None] / np.float32(127.5) - 1)
    chances = np.asarray(jax.nn.softmax(logits))
    code, out, err = vit("predict", work, tmp_path)
    assert (code, err) == (0, "")
    for number, line in enumerate(out.splitlines()):
        image, label, chance = line.split(" ")
        assert image == f"{tmp_path}/{number:02d}.png:"
        assert label == str(chances[number].argmax())
        assert float(chance.rstrip("%")) == pytest.approx(100 * chances[number].max(), abs=0.02)
    assert number == 19
    assert len(set(chances.argmax(axis=1))) > 1  # else any answer would do


def test_top_prints_that_many_classes_best_first(vit, weights, photos):
    code, out, _ = vit("predict", weights, photos / "a.jpg", "--top=3")
    assert code == 0
    first, *others = out.splitlines()
    assert first.startswith(f"{photos}/a.jpg: ")
    assert len(others) == 2
    assert all(line.startswith(" " * len(f"{photos}/a.jpg: ")) for line in others)
    chances = [float(line.rsplit(" ", 1)[1].rstrip("%")) for line in (first, *others)]
    assert chances == sorted(chances, reverse=True)
    assert len(vit("predict", weights, photos / "a.jpg", "--top=99")[1].splitlines()) == 5


def test_a_damaged_image_is_named_and_skipped(vit, weights, photos, tmp_path):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "more" / "e.PNG").write_bytes(b"")  # the last one
    file = tmp_path / "p.csv"
    code, out, err = vit("predict", weights, photos, f"--output={file}")
    assert code == 0
    assert [line.split(" (")[0] for line in err.splitlines()] == [
        f"{photos}: 1 file is left out: 1 .txt",
        f"skipped: {photos}/a.jpg", f"skipped: {photos}/more/e.PNG",
    ]  # fmt: skip
    assert out == f"3 images: {file}\n"
    assert [os.path.basename(row["image"]) for row in rows_of(file)] == [
        "b.png", "c.webp", "d.bmp"
    ]  # fmt: skip


def test_no_image_that_can_be_read_is_refused_and_an_older_table_stays(
    vit, weights, photos, tmp_path
):
    file = tmp_path / "p.csv"
    file.write_text("older")
    line = refused(vit, "predict", weights, photos / "notes.txt", f"--output={file}")
    assert line.startswith(f"vit: error: {photos}/notes.txt cannot be read: cannot identify image")
    assert file.read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "photos"]


def test_predict_refuses_what_it_cannot_do_before_it_reads_weights(vit, weights, photos, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    gone = tmp_path / "gone.npz"
    for arguments, says in (
        ((gone, empty), f"no images in {empty}"),
        ((gone, empty, photos / "none.jpg"), "none.jpg: no such file or folder"),
        ((gone, photos, "--top=0"), "--top and --batch-size are at least 1"),
        ((gone, photos, f"--output={empty}"), "is a folder"),
        ((gone, photos, f"--output={tmp_path}/no/p.csv"), "there is no folder"),
        ((gone, photos), "gone.npz is no file"),
    ):
        assert says in refused(vit, "predict", *arguments)


def test_weights_without_a_head_or_of_other_channels_predict_nothing(vit, model, photos, tmp_path):
    for name, fields in {"headless": {"num_classes": 0}, "deep": {"channels": 6}}.items():
        other = vit_jax.create_model("vit_mu_patch4_24", **fields)
        vit_jax.save_pretrained(other, other.init(), tmp_path / f"{name}.npz", "google")
    assert "has no head" in refused(vit, "predict", tmp_path / "headless.npz", photos)
    line = refused(vit, "predict", tmp_path / "deep.npz", photos / "a.jpg")
    assert "image files have 1 to 4 channels, the model wants 6" in line


@pytest.mark.parametrize("to", ["timm", "orbax"])
def test_a_place_that_takes_nothing_is_named_as_it_was_given(vit, weights, photos, to):
    line = refused(vit, "convert", weights, "/proc/new", f"--to={to}")
    assert line.startswith("vit: error: cannot write /proc/new: ")
    line = refused(vit, "predict", weights, photos / "a.jpg", "--output=/proc/p.csv")
    assert line.startswith("vit: error: cannot write /proc/p.csv: ")


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--tensors"], ["predict"]])
def test_a_reader_that_leaves_ends_the_command_without_a_word(weights, photos, command):
    images = [str(photos / "a.jpg")] if command == ["predict"] else []
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", command[0], str(weights), *images, *command[1:]],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


def test_an_image_that_the_pipeline_does_not_bring_to_size_is_named(vit, work, photos):
    line = refused(vit, "predict", work, photos / "a.jpg")  # digits are not resized
    assert f"{photos}/a.jpg becomes (40, 56, 1), the model takes (8, 8, 1)" in line
