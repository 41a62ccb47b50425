"""One's own folder of images: classes, splits and counts are inferred."""

import os
import pickle
import sys
import zlib

import pytest
from made_images import encoded, folder_of_images, smooth

from vit_jax.data.decode import decode
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError

SPLITS = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2}


def opened(root, split="train", classes=None):
    return open_source(f"folder:{root}", split, classes)


def files(source):
    """Paths below the source's folder, in order."""
    return [source.path(n).relative_to(source.root).as_posix() for n in range(len(source))]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(smooth()))


# -- SPLIT/CLASS -------------------------------------------------------------------------------


def test_classes_are_the_sorted_folders_of_a_split(tmp_path):
    root = folder_of_images(tmp_path, SPLITS)
    train, val = opened(root), opened(root, "val")
    assert train.classes == val.classes == ["cat", "dog"]
    assert files(train) == ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert [train[n]["label"] for n in range(5)] == [0, 0, 0, 1, 1]
    assert files(val) == ["cat/0.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert train.channels == 3


def test_an_example_is_the_files_bytes(tmp_path):
    root = folder_of_images(tmp_path, SPLITS)
    train = opened(root)
    for number, name in enumerate(files(train)):
        assert train[number]["image"] == (root / "train" / name).read_bytes()
        assert train.describe(number) == str(root / "train" / name)
    assert decode(train[0]["image"]).shape == (40, 48, 3)


def test_labels_of_evaluation_count_in_the_training_splits_classes(tmp_path):
    root = folder_of_images(
        tmp_path, {"train/ant": 1, "train/bee": 1, "train/cat": 1, "val/cat": 2}
    )
    val = opened(root, "val", opened(root).classes)
    assert [val[n]["label"] for n in range(2)] == [2, 2]
    assert val.classes == ["ant", "bee", "cat"]


def test_a_class_that_training_lacks_is_named(tmp_path):
    root = folder_of_images(tmp_path, SPLITS | {"val/emu": 1, "val/fox": 1})
    with pytest.raises(UserError) as error:
        opened(root, "val", opened(root).classes)
    assert str(error.value) == (
        f"{root}/val has the class 'emu' and 1 more, which training does not know (2 classes, "
        "such as cat, dog): add it to the training split or take it out"
    )


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_wrong_split_lists_those_there_are(split, tmp_path):
    root = folder_of_images(tmp_path, SPLITS)
    with pytest.raises(UserError, match=f"has no split '{split}': it has train, val"):
        opened(root, split)


def test_a_split_may_have_any_name(tmp_path):
    root = folder_of_images(tmp_path, {"practice/cat": 2, "exam/cat": 1})
    assert (len(opened(root, "practice")), len(opened(root, "exam"))) == (2, 1)


# -- CLASS alone -------------------------------------------------------------------------------


def test_without_splits_a_tenth_is_held_out_by_name(tmp_path):
    for name in ("cat", "dog"):
        for number in range(400):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number:04d}.jpg").touch()
    train, val = files(opened(tmp_path)), files(opened(tmp_path, "val"))
    assert not set(train) & set(val)
    assert len(train) + len(val) == 800
    assert abs(len(val) - 80) < 4 * (800 * 0.1 * 0.9) ** 0.5  # four standard deviations
    assert {name.split("/")[0] for name in val} == {"cat", "dog"}


def test_what_is_held_out_is_a_function_of_the_set_of_names(tmp_path):
    names = [f"{number}.jpg" for number in range(60)]
    for place in ("here", "there"):
        for name in names:
            picture(tmp_path / place / "cat" / name)
    held_out = files(opened(tmp_path / "here", "val"))
    assert held_out == files(opened(tmp_path / "there", "val"))
    # The six smallest CRC-32 of "cat/0.jpg" and so on: fixed for good, or runs would evaluate on
    # images that their predecessors trained on.
    smallest = sorted((f"cat/{name}" for name in names), key=lambda name: zlib.crc32(name.encode()))
    assert held_out == sorted(smallest[:6])
    assert held_out == [f"cat/{number}.jpg" for number in (1, 10, 19, 43, 56, 8)]


def test_too_few_images_for_a_tenth_say_what_to_do(tmp_path):
    picture(tmp_path / "cat" / "0.jpg")
    assert len(opened(tmp_path)) == 1
    with pytest.raises(UserError, match=r"has 1 images, of which .* none in 'val': make .*train/"):
        opened(tmp_path, "val")


def test_without_splits_there_are_train_and_val(tmp_path):
    picture(tmp_path / "cat" / "0.jpg")
    with pytest.raises(UserError, match=r"\(CLASS/\* without splits\) has no split 'test'"):
        opened(tmp_path, "test")


# -- what is there -------------------------------------------------------------------------------


def test_a_missing_folder_says_what_it_should_hold(tmp_path):
    with pytest.raises(UserError) as error:
        opened(tmp_path / "gone")
    assert f"there is no folder {tmp_path}/gone" in str(error.value)
    assert "SPLIT/CLASS/*.jpg or CLASS/*.jpg" in str(error.value)


def test_a_source_without_its_folder_is_refused():
    with pytest.raises(UserError, match=r"folder:: there is no folder"):
        open_source("folder:", "train")


@pytest.mark.parametrize("empty", ["", "cat", "train/cat", "train"])
def test_a_folder_without_images_says_which_and_what_it_looked_for(empty, tmp_path):
    (tmp_path / "data" / empty).mkdir(parents=True)
    (tmp_path / "data" / empty / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no images \(.jpg, .jpeg, .png, .bmp …\)"):
        opened(tmp_path / "data")


def test_images_may_lie_deeper_than_their_class(tmp_path):
    picture(tmp_path / "train" / "cat" / "2020" / "may" / "a.jpg")
    picture(tmp_path / "train" / "cat" / "b.JPG")
    train = opened(tmp_path)
    assert files(train) == ["cat/2020/may/a.jpg", "cat/b.JPG"]
    assert train[0]["label"] == train[1]["label"] == 0


def test_what_is_hidden_and_what_is_no_image_is_left_out(tmp_path):
    for name in ("cat/a.png", "cat/.b.png", "cat/.trash/d.png", ".cache/e.png"):
        picture(tmp_path / "train" / name)
    (tmp_path / "train" / "cat" / "c.txt").write_text("a cat")
    train = opened(tmp_path)
    assert train.classes == ["cat"]
    assert files(train) == ["cat/a.png"]


def test_links_to_folders_and_files_are_followed(tmp_path):
    picture(tmp_path / "store" / "a.jpg")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "cat").symlink_to(tmp_path / "store")
    assert files(opened(tmp_path / "data")) == ["cat/a.jpg"]


ODD = ["with space", "Grüße", "猫", "a'b\"c", "100%", "comma,and:colon", "emoji 🐈"]


def test_odd_names_are_names(tmp_path):
    for name in ODD:
        picture(tmp_path / "train" / name / f"{name}.jpg")
    train = opened(tmp_path)
    assert train.classes == sorted(ODD)
    for number, name in enumerate(train.classes):
        assert train.path(number).name == f"{name}.jpg"
        assert decode(train[number]["image"]).shape == smooth().shape


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
@pytest.mark.parametrize("below", [b"train/cat", b"cat"])
def test_names_that_are_no_utf8_are_names_too(below, tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), below)
    os.makedirs(folder)
    for number in range(30):
        with open(os.path.join(folder, b"caf\xe9%d.jpg" % number), "wb") as file:
            file.write(encoded(smooth()))
    train = opened(tmp_path)
    assert decode(train[0]["image"]).shape == smooth().shape


def test_a_folder_travels_to_worker_processes(tmp_path):
    train = opened(folder_of_images(tmp_path, SPLITS))
    copy = pickle.loads(pickle.dumps(train))
    assert files(copy) == files(train)
    assert [copy[n] for n in range(len(copy))] == [train[n] for n in range(len(train))]


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of_images(tmp_path / "pets", SPLITS)
    assert len(opened("~/pets")) == 5


def test_a_link_that_leads_back_is_not_followed_and_others_are(tmp_path):
    photos = folder_of_images(tmp_path / "photos", {"train/a": 2, "elsewhere/more": 3})
    (photos / "train" / "a" / "up").symlink_to("..")
    (photos / "train" / "a" / "self").symlink_to(".")
    (photos / "train" / "a" / "more").symlink_to(photos / "elsewhere" / "more")
    assert len(open_source(f"folder:{photos}", "train")) == 5


def test_a_file_name_does_not_reach_the_terminal_raw(tmp_path):
    photos = folder_of_images(tmp_path / "photos", {"train/a": 1})
    (photos / "train" / "a" / "0.jpg").rename(photos / "train" / "a" / "x\n\x1b[31m.jpg")
    source = open_source(f"folder:{photos}", "train")
    assert source.describe(0).endswith(r"/train/a/x\n\x1b[31m.jpg")
    assert source[0]["image"]
