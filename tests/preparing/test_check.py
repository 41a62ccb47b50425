"""What `vit data check` finds where one thing is wrong, and what it tells of a sound set."""

import shutil

import numpy as np
import pytest
from made_images import encoded, folder_of_images, smooth
from PIL import Image

from vit_jax.errors import UserError
from vit_jax.preparing.check import check, lines
from vit_jax.preparing.prepare import Options, prepare


@pytest.fixture
def photos(tmp_path):
    """Nine training and three evaluation images, all different."""
    counts = {"train/cat": 5, "train/dog": 4, "val/cat": 2, "val/dog": 1}
    return folder_of_images(tmp_path / "photos", counts)


def found(photos, **options):
    """{path below the folder: problem}."""
    report = check(f"folder:{photos}", **options)
    assert report["problems"] == len(report["found"])
    return {f["path"].removeprefix(f"{photos}/"): f["problem"] for f in report["found"]}


def test_a_sound_set_has_no_problems_and_is_described(photos):
    report = check(f"folder:{photos}")
    assert (report["problems"], report["found"]) == (0, [])
    assert report["splits"]["train"] == {
        "examples": 9, "classes": 2,
        "images_per_class": {"min": 4, "median": 4.5, "max": 5},
        "short_side": {"min": 40, "median": 40, "max": 40},
        "long_side": {"min": 48, "median": 48, "max": 48},
        "tiny": 0, "huge": 0, "kinds": {"JPEG": 9},
    }  # fmt: skip
    assert report["splits"]["val"]["images_per_class"] == {"min": 1, "median": 1.5, "max": 2}


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def damage_text(file):
    file.write_text("<html>404</html>")


def damage_empty(file):
    file.write_bytes(b"")


def damage_link(file):
    file.unlink()
    file.symlink_to("nowhere.jpg")


def damage_name(file):
    file.write_bytes(encoded(smooth(), "PNG"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_cut, "damaged: image file is truncated"),
        (damage_text, "damaged: cannot identify image file"),
        (damage_empty, "the file is empty"),
        (damage_link, "cannot be read: No such file or directory"),
        (damage_name, "it is a PNG by another name"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(photos, damage, says):
    damage(photos / "train" / "dog" / "2.jpg")
    assert list(found(photos)) == ["train/dog/2.jpg"]
    assert found(photos)["train/dog/2.jpg"].startswith(says)


def test_the_same_bytes_are_found_in_a_class_in_two_and_across_splits(photos):
    original = photos / "train" / "cat" / "0.jpg"
    for copy in ("train/cat/copy.jpg", "train/dog/copy.jpg", "val/cat/copy.jpg"):
        shutil.copy(original, photos / copy)
    same = f"the same bytes as {original}"
    assert found(photos) == {
        "train/cat/copy.jpg": same,
        "train/dog/copy.jpg": f"{same}, which is labelled 'cat'",
        "val/cat/copy.jpg": f"{same}, which is in 'train'",
    }


def test_two_damaged_files_are_no_duplicates(photos):
    for name in ("0.jpg", "1.jpg"):
        (photos / "train" / "cat" / name).write_bytes(b"")
    assert set(found(photos).values()) == {"the file is empty"}


def test_duplicates_are_those_that_a_plain_comparison_finds(tmp_path):
    rng = np.random.default_rng(0)
    contents = [encoded(np.full((8, 8, 3), n, np.uint8), "PNG") for n in range(12)]
    files = {}
    for number, pick in enumerate(rng.integers(0, 12, 40)):
        file = tmp_path / "p" / ("train" if number % 3 else "val") / f"{pick % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents[pick])
        files[file] = contents[pick]
    report = check(f"folder:{tmp_path}/p")
    assert report["problems"] == len(files) - len(set(files.values()))
    for problem in report["found"]:
        this = next(file for file in files if str(file) == problem["path"])
        other = next(f for f in files if f"bytes as {f}" in problem["problem"].partition(",")[0])
        assert files[this] == files[other]


def test_a_class_without_images_is_a_problem_of_training_alone(photos):
    for name in ("bird", "emu"):
        (photos / "train" / name).mkdir()
    shutil.rmtree(photos / "val" / "dog")
    assert found(photos) == {f"folder:{photos} train": "no images of 'bird', 'emu'"}
    assert check(f"folder:{photos}")["splits"]["train"]["images_per_class"]["min"] == 0


def test_one_split_is_checked_alone(photos):
    damage_empty(photos / "train" / "cat" / "0.jpg")
    assert found(photos, split="val") == {}
    assert list(check(f"folder:{photos}", "val")["splits"]) == ["val"]


def test_kinds_of_images_are_counted(tmp_path):
    folder = tmp_path / "p" / "train" / "all"
    folder.mkdir(parents=True)
    upright = Image.fromarray(smooth())
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(folder / "plain.jpg")
    upright.save(folder / "turned.jpg", exif=exif)
    upright.convert("L").save(folder / "grey.jpg")
    upright.convert("CMYK").save(folder / "cmyk.jpg")
    upright.convert("P").save(folder / "palette.png")
    upright.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(folder / "deep.png")
    report = check(f"folder:{tmp_path}/p")
    assert report["problems"] == 0
    assert report["splits"]["train"]["kinds"] == {
        "JPEG": 4, "PNG": 3, "EXIF-rotated": 1, "grey": 1, "CMYK": 1, "palette": 1, "alpha": 1,
        "16-bit": 1,
    }  # fmt: skip


def test_sizes_are_told_with_the_tiny_and_the_huge(tmp_path):
    folder = tmp_path / "p" / "train" / "all"
    folder.mkdir(parents=True)
    for number, (height, width) in enumerate([(20, 90), (31, 31), (32, 40), (1, 10_001)]):
        pixels = np.full((height, width, 3), number, np.uint8)
        (folder / f"{number}.png").write_bytes(encoded(pixels, "PNG"))
    facts = check(f"folder:{tmp_path}/p")["splits"]["train"]
    assert facts["short_side"] == {"min": 1, "median": 25.5, "max": 32}
    assert facts["long_side"] == {"min": 31, "median": 65.0, "max": 10_001}
    assert (facts["tiny"], facts["huge"]) == (3, 1)


def test_a_prepared_set_is_checked_as_its_folder_is(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "root"))
    shutil.copy(photos / "train" / "cat" / "0.jpg", photos / "val" / "cat" / "copy.jpg")
    damage_cut(photos / "train" / "dog" / "2.jpg")
    prepare(f"folder:{photos}", Options(), lambda line: None)
    folder, prepared = check(f"folder:{photos}"), check("tfds:photos")
    assert prepared["problems"] == folder["problems"] == 2
    assert prepared["splits"] == folder["splits"]


def test_arrays_are_checked_too():
    report = check("digits")
    assert [report["splits"][split]["examples"] for split in ("train", "val")] == [1442, 355]
    assert report["splits"]["train"]["tiny"] == 1442


def test_people_read_a_line_a_problem_and_then_what_there_is(photos):
    damage_empty(photos / "train" / "cat" / "0.jpg")
    said = list(lines(check(f"folder:{photos}")))
    assert said[0] == f"{photos}/train/cat/0.jpg: the file is empty"
    assert said[1].startswith("train: 9 images of 2 classes, 4–5 (median 4) a class; short side 40")
    assert said[-1] == "1 problem(s)"


@pytest.mark.parametrize("spec", ["folder:/not/there", "tfds:not_there", "nothing", "folder:"])
def test_a_source_that_is_not_there(spec):
    with pytest.raises(UserError):
        check(spec)


def test_tables_with_several_labels_and_numpy_files_are_checked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 6), np.uint8)
    for number, image in enumerate(pixels):
        np.save(tmp_path / f"{number}.npy", image)
    np.save(tmp_path / "3.npy", pixels[0])
    np.save(tmp_path / "4.npy", pixels[0][..., :3])
    rows = ["0.npy,a;b,train", "1.npy,b,train", "2.npy,,train", "3.npy,a,test", "4.npy,b,test"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split", *rows]))
    report = check(f"csv:{tmp_path}/t.csv")
    assert list(report["splits"]) == ["train", "test"]
    train = report["splits"]["train"]
    assert train["images_per_class"] == {"min": 1, "median": 1.5, "max": 2}
    assert (train["short_side"]["max"], train["long_side"]["max"]) == (40, 50)
    assert [(p["path"], p["problem"]) for p in report["found"]] == [
        (f"{tmp_path}/4.npy", "damaged: a NumPy file has 3 channels, the model wants 6 "
         "(--config.model.channels=3)"),
        (f"{tmp_path}/3.npy", f"the same bytes as {tmp_path}/0.npy, which is labelled 'a', 'b', "
         "which is in 'train'"),
    ]  # fmt: skip
