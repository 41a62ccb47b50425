"""`vit predict`, `vit look`, `vit_jax.predict` and `model.prepare` take the same names."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.exporting.tiny_models import noise, saved
from tests.made_images import encoded
from tests.refusals import refused
from tests.served import served
from vit_jax.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(path, model, parameters) of a classifier."""
    return saved(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def shown(weights):
    """Seven images, uint8 [7, height, width, 3]."""
    return noise(weights[1], 7)


@pytest.fixture
def here(tmp_path, monkeypatch, shown):
    """The current folder, with the images in every form, and a server that has the last one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encoded(shown[number], "PNG"))
    pages = [Image.fromarray(one) for one in shown[2:4]]
    pages[0].save("stack.tif", save_all=True, append_images=pages[1:])
    np.save("batch.npy", shown[4:6])
    with served() as server:
        server.pages["/6.png"] = encoded(shown[6], "PNG")
        (tmp_path / "list.txt").write_text(f"stack.tif\nbatch.npy\n{server.url}/6.png\n")
        yield server


GIVEN = ("photos/*.png", "@list.txt")


def names(server):
    return ["photos/0.png", "photos/1.png", "stack.tif[0]", "stack.tif[1]", "batch.npy[0]",
            "batch.npy[1]", f"{server.url}/6.png"]  # fmt: skip


def chances(weights, shown):
    """The shares of the classes, in NumPy from the logits."""
    _, model, params = weights
    images = model.data_config.normalise(jax.numpy.asarray(shown))
    logits = np.asarray(jax.jit(model.apply)(params, images)[0], np.float64)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_every_kind_of_name_is_a_row_by_its_name_in_order(vit, weights, shown, here, batch_size):
    code, out, err = vit("predict", weights[0], *GIVEN, "--json", "--top=3",
                         f"--batch-size={batch_size}")  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [row["image"] for row in found] == names(here)
    for row, wanted in zip(found, chances(weights, shown), strict=True):
        for one in row["predictions"]:
            assert one["value"] == pytest.approx(wanted[one["number"]], abs=2e-5)


def test_tables_features_and_lines_have_the_same_names(vit, weights, here):
    assert vit("predict", weights[0], *GIVEN, "--output=t.csv")[0] == 0
    with open("t.csv", newline="", encoding="utf-8") as lines:
        assert [row["image"] for row in csv.DictReader(lines)] == names(here)
    assert vit("predict", weights[0], *GIVEN, "--features=f.npz")[0] == 0
    features = np.load("f.npz")
    assert features["images"].tolist() == names(here)
    assert features["features"].shape == (7, 16)
    lines = vit("predict", weights[0], *GIVEN)[1].splitlines()
    assert [line.rpartition(": ")[0] for line in lines] == names(here)


def test_from_python_the_same_names_are_taken_alone_or_with_arrays(weights, shown, here):
    found = vit_jax.predict(weights[0], [*GIVEN, shown[0]], top=3, names=True)
    assert [name for name, _ in found] == [*names(here), "an image"]
    assert found[0][1] == found[-1][1]
    rows = vit_jax.predict(weights[0], [*GIVEN, shown[0]], top=3)
    assert rows == [row for _, row in found]
    assert vit_jax.predict(weights[0], "stack.tif[1]", top=3) == [found[3][1]]
    prepared = weights[1].prepare(list(GIVEN))
    np.testing.assert_array_equal(prepared, weights[1].prepare(list(shown)))
    np.testing.assert_array_equal(weights[1].prepare("batch.npy"), prepared[4:6])


def test_one_broken_image_of_several_is_told_and_counts_for_nothing(vit, weights, here):
    here.pages["/broken.png"] = here.pages["/6.png"][:-100]
    given = ["photos", f"{here.url}/broken.png", f"{here.url}/gone.png", f"{here.url}/6.png"]
    code, out, err = vit("predict", weights[0], *given, "--output=t.csv")
    assert (code, out) == (0, "3 images: t.csv\n")
    assert [line.split(" (")[0] for line in err.splitlines()] == [
        f"skipped: {here.url}/broken.png", f"skipped: {here.url}/gone.png"
    ]  # fmt: skip
    for call in (vit_jax.predict, lambda _, images: weights[1].prepare(images)):
        with pytest.raises(UserError, match=r"broken\.png cannot be read: "):
            call(weights[0], given)


def test_a_name_that_is_nothing_ends_a_command_before_the_weights_are_opened(vit, here):
    for name, said in (
        ("photos/*.jpg", "photos/*.jpg: no file or folder matches"),
        ("@none.txt", "the list none.txt cannot be read: No such file or directory"),
        ("photos/2.png", "photos/2.png: no such file or folder"),
        ("ftp://example.org/a.png", "images are read from http://, https://"),
    ):
        for command in (["predict"], ["look", "--output=page.html"]):
            assert said in refused(vit, command[0], "gone.npz", name, *command[1:])


def test_the_only_image_that_cannot_be_had_is_one_line(vit, weights, here):
    here.pages["/text"] = b"no image"
    for path, said in (
        (f"{here.url}/gone.png", "nothing is there (HTTP 404"),
        (f"{here.url}/text", "cannot identify image file"),
        ("stack.tif[2]", "the file holds 2 images, from 0 on"),
    ):
        line = refused(vit, "predict", weights[0], path, "--output=t.csv")
        assert line.startswith(f"vit: error: {path} cannot be read: {said}")
        assert "cannot be read" in refused(vit, "look", weights[0], path, "--output=page.html")
    assert not list(Path().glob("*.csv")) + list(Path().glob("*.html"))


def test_none_of_several_that_can_be_read_is_an_error(vit, weights, here):
    code, out, err = vit("predict", weights[0], f"{here.url}/a.png", f"{here.url}/b.png")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "vit: error: none of the 2 images can be read"
    assert len(err.splitlines()) == 3


def test_look_shows_pages_and_addresses_and_no_more_than_fit(vit, weights, here):
    code, _, err = vit("look", weights[0], *GIVEN, "--output=page.html", "--arrays=numbers.npz")
    assert code == 0, err
    page = Path("page.html").read_text(encoding="utf-8")
    for name in ("0.png", "stack.tif[1]", "batch.npy[0]", "6.png"):
        assert f">{name}</h" in page
    assert len(np.load("numbers.npz")["logits"]) == 7
    pages = [Image.new("RGB", (8, 8)) for _ in range(17)]
    pages[0].save("many.tif", save_all=True, append_images=pages[1:])
    line = refused(vit, "look", weights[0], "many.tif", "--output=other.html")
    assert "more than 16 images: a page shows 16 at most" in line


def test_a_detectors_boxes_pictures_and_coco_results_are_those_of_each_image(
    vit, here, shown, tmp_path_factory
):
    path, _, _ = saved(tmp_path_factory.mktemp("detector"), "detr")
    options = ["--threshold=0.01", "--pictures=found"]
    given = ["stack.tif", f"{here.url}/6.png"]
    assert vit("predict", path, *given, *options, "--output=boxes.csv")[0] == 0
    with open("boxes.csv", newline="", encoding="utf-8") as lines:
        assert {row["image"] for row in csv.DictReader(lines)} == {
            "stack.tif[0]", "stack.tif[1]", f"{here.url}/6.png"
        }  # fmt: skip
    for name, image in (("0001-stack.png", shown[3]), ("0002-6.png", shown[6])):
        with Image.open(f"found/{name}") as picture:  # where no box is drawn, it is the image
            assert (np.asarray(picture) == image).all(axis=-1).mean() > 0.1
    assert vit("predict", path, *given, "--output=boxes.json")[0] == 0
    with open("boxes.json", encoding="utf-8") as file:
        assert {row["image_id"] for row in json.load(file)} == {"stack.tif[0]", "stack.tif[1]", 6}
    ((first, *_),) = vit_jax.predict(path, "stack.tif[1]")
    found = dict(vit_jax.predict(path, given, names=True))
    assert first.box == pytest.approx(found["stack.tif[1]"][0].box, abs=1e-2)


@pytest.mark.parametrize(("channels", "kind"), [(6, "npy"), (4, "tif"), (4, "png")])
def test_images_of_more_channels_are_shown_everywhere_as_training_reads_them(
    vit, tmp_path, channels, kind
):
    fields = {"channels": channels, "image_size": 8, "patch_size": 4}
    path, *_ = saved(tmp_path, fields=fields)
    model = vit_jax.load_pretrained(path, say=None)[0]
    images = noise(model, 2)
    if kind == "npy":
        np.save(tmp_path / "a.npy", images)
    else:
        pages = [Image.fromarray(one) for one in images]
        more = {"save_all": True, "append_images": pages[1:]} if kind == "tif" else {}
        pages[0].save(tmp_path / f"a.{kind}", **more)
    count = 1 if kind == "png" else 2
    np.testing.assert_array_equal(
        model.prepare(tmp_path / f"a.{kind}"), model.prepare(list(images[:count]))
    )
    found = vit_jax.predict(path, tmp_path / f"a.{kind}", top=3)
    assert found == vit_jax.predict(path, list(images[:count]), top=3)
    code, _, err = vit("look", path, tmp_path / f"a.{kind}", f"--output={tmp_path}/page.html")
    assert code == 0, err


def test_an_image_of_other_channels_is_named(vit, weights, here):
    np.save("six.npy", np.zeros((8, 8, 6), np.uint8))
    line = refused(vit, "predict", weights[0], "photos/0.png", "six.npy", "--output=t.csv")
    assert "six.npy: a NumPy file has 6 channels, the model wants 3" in line
