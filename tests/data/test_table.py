"""Images named by a table: classes, several labels, splits, and what cannot be read."""

import numpy as np
import pytest
from made_images import encoded, smooth
from numbered import joined, training

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError


@pytest.fixture
def table(tmp_path):
    def write(text, images=8):
        for number in range(images):
            (tmp_path / f"{number}.png").touch()
        for number in range(min(images, 8)):
            pixels = np.full((8, 8, 3), 10 * number, np.uint8)
            (tmp_path / f"{number}.png").write_bytes(encoded(pixels, "PNG"))
        (tmp_path / "t.csv").write_text(text)
        return f"csv:{tmp_path}/t.csv"

    return write


def labels(source):
    return [source[index]["label"] for index in range(len(source))]


def test_rows_are_examples_and_classes_are_the_sorted_names(table):
    spec = table("image,label,split\n0.png,dog,train\n1.png,cat,train\n2.png,dog,val\n")
    train = open_source(spec, "train")
    val = open_source(spec, "val", train.classes)
    assert (train.classes, labels(train), labels(val)) == (["cat", "dog"], [1, 0], [1])
    assert train[1]["image"] == train.path(1).read_bytes()
    assert train.max_labels == 1


def test_numbers_are_sorted_as_numbers(table):
    spec = table("image,label,split\n0.png,10,train\n1.png,9,train\n2.png,0,train\n")
    assert open_source(spec, "train").classes == ["0", "9", "10"]


def test_an_image_may_have_several_labels_or_none(table):
    spec = table("image,label,split\n0.png,a; c,train\n1.png,b,train\n2.png,,train\n")
    source = open_source(spec, "train")
    assert (source.max_labels, source.classes) == (2, ["a", "b", "c"])
    assert labels(source) == [[0, 2], [1], []]
    (batch,) = training(source, text="decode", batch_size=3, steps=1)
    by_id = dict(zip(batch["id"], batch["label"].tolist(), strict=True))
    assert by_id == {0: [0, 2], 1: [1, -2], 2: [-2, -2]}


def test_without_a_column_of_splits_a_tenth_is_held_out(table):
    rows = "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(200))
    spec = table(f"image,label\n{rows}", images=200)
    train, val = open_source(spec, "train"), open_source(spec, "val", ["a", "b"])
    assert len(train) + len(val) == 200
    assert 8 <= len(val) <= 35
    assert not {train.describe(i) for i in range(len(train))} & {
        val.describe(i) for i in range(len(val))
    }


@pytest.mark.parametrize(
    ("text", "split", "told"),
    [
        ("image,u,v\n0.png,5,6\n", "train", "has no column 'label' .*: it has image, u, v"),
        ("", "train", "has no column 'image'"),
        ("image,label,split\n0.png,a,train\n", "test", "has no split 'test': it has train"),
        ("image,label\n0.png,a\n", "test", "has no split 'test': it has train, val"),
        ("image,label,split\n0.png,nan,train\n", "train", "line 2: the label 'nan' is no class"),
        ("image,label,split\n0.png,inf,train\n", "train", "line 2: the label 'inf' is no class"),
    ],
)
def test_what_cannot_be_read_is_one_line(table, text, split, told):
    with pytest.raises(UserError, match=told) as error:
        open_source(table(text), split)
    assert "\n" not in str(error.value)


def test_a_class_that_training_does_not_know_is_named(table):
    spec = table("image,label,split\n0.png,a,train\n1.png,b,val\n")
    with pytest.raises(UserError, match=r"1.png has the class 'b', which training does not know"):
        open_source(spec, "val", ["a"])


def test_a_table_that_is_not_there_says_what_it_should_have(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*the columns image, label"):
        open_source(f"csv:{tmp_path}/none.csv", "train")


def test_an_image_that_goes_away_is_a_damaged_one(table, tmp_path):
    source = open_source(table("image,label,split\n0.png,a,train\n1.png,a,train\n"), "train")
    (tmp_path / "1.png").unlink()
    (batch,) = training(source, text="decode", batch_size=2, steps=1)
    assert sorted(batch["damaged"]) == [-1, 1]


def test_numpy_files_have_the_channels_that_they_have(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 6), np.uint8)
    for number, image in enumerate(pixels):
        np.save(tmp_path / f"{number}.npy", image)
    rows = "".join(f"{n}.npy,{n % 2},train\n" for n in range(4))
    (tmp_path / "t.csv").write_text(f"image,label,split\n{rows}")
    source = open_source(f"csv:{tmp_path}/t.csv", "train")
    assert source.channels == 6
    (batch,) = training(
        source, text="decode|flip_lr|randaug(2,9)|resize(8,'bilinear')", batch_size=4, steps=1,
        shape=(8, 8, 6),
    )  # fmt: skip
    assert batch["image"].shape == (4, 8, 8, 6)
    plain = joined(training(source, text="decode", batch_size=4, steps=1, shape=(8, 8, 6)), "image")
    assert {image.tobytes() for image in plain} == {image.tobytes() for image in pixels}


def test_a_grey_model_reads_colours_as_their_luma(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(smooth(8, 8), "PNG"))
    (tmp_path / "t.csv").write_text("image,label,split\na.png,x,train\n")
    source = open_source(f"csv:{tmp_path}/t.csv", "train")
    (batch,) = training(source, text="decode", batch_size=1, steps=1, shape=(8, 8, 1))
    luma = smooth(8, 8) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(batch["image"][0, ..., 0] - luma).max() <= 1


def test_paths_may_be_absolute(table, tmp_path):
    spec = table(f"image,label,split\n{tmp_path}/0.png,a,train\n1.png,a,train\n")
    source = open_source(spec, "train")
    assert source[0]["image"] == (tmp_path / "0.png").read_bytes()
    assert source[1]["image"] == (tmp_path / "1.png").read_bytes()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("0.png,a\n", "line 2 has no split"),
        ("0.png,a,\n", "line 2 has no split"),
        ("0.png,a,train\n0.png,a,train,more\n", "line 3 has more columns than the first line"),
        (",a,train\n", "line 2 has no image"),
    ],
)
def test_a_row_that_lacks_a_column_is_named(table, rows, told):
    with pytest.raises(UserError, match=told):
        open_source(table(f"image,label,split\n{rows}"), "train")


def test_a_class_of_another_split_alone_is_none_of_trainings(table):
    spec = table("image,label,split\n0.png,a,train\n1.png,b,val\n")
    train = open_source(spec, "train")
    assert train.classes == ["a"]
    with pytest.raises(UserError, match=r"1.png has the class 'b', which training does not know"):
        open_source(spec, "val", train.classes)


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_blank_label_among_single_ones_is_refused_with_its_line(table, where):
    spec = table(f"image,label,split\n0.png,a,train\n1.png,b,train\n2.png, ,{where}\n")
    with pytest.raises(UserError, match="line 4 has no label"):
        open_source(spec, "train")


def test_a_path_with_a_nul_byte_is_refused_with_its_line(table):
    spec = table("image,label,split\n0.png,a,train\n1\0.png,b,train\n")
    with pytest.raises(UserError, match=r"line 3|no table"):
        open_source(spec, "train")


def test_a_line_without_end_is_no_table(table):
    with pytest.raises(UserError, match="line 2 has more than"):
        open_source(table("image,label\n" + "x" * 2**21), "train")
