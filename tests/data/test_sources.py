"""Sources by name: what is held out of the digits, made noise, and what is known of absent sets."""

import pickle

import numpy as np
import pytest
from made_images import folder_of_images
from sklearn.datasets import load_digits

from vit_jax.data.memory import Arrays
from vit_jax.data.sources import facts, open_source
from vit_jax.errors import UserError


def pixels(source):
    return [source[index]["image"].tobytes() for index in range(len(source))]


def labels(source):
    return np.array([source[index]["label"] for index in range(len(source))])


# -- digits ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", "train"), open_source("digits", "val")


def test_training_and_held_out_digits_make_up_all_1797(digits):
    whole = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    both = sorted(pixels(digits[0]) + pixels(digits[1]))
    assert both == sorted(image.tobytes() for image in whole)
    assert len(set(both)) == 1797  # no digit is there twice, so the two parts are disjoint


def test_a_fifth_of_every_digit_is_held_out(digits):
    train, val = (np.bincount(labels(part), minlength=10) for part in digits)
    assert (np.abs(val - (train + val) / 5) <= 1).all()


def test_the_held_out_digits_are_every_fifth_of_their_class(digits):
    data = load_digits()
    wanted = [
        (data.images[np.flatnonzero(data.target == label)[4::5]] * 255 / 16).round()
        for label in range(10)
    ]
    of_the_class = digits[1].images[..., 0][np.argsort(labels(digits[1]), kind="stable")]
    np.testing.assert_array_equal(of_the_class, np.concatenate(wanted))


def test_digits_are_gray_images_of_8_pixels_with_their_names(digits):
    for part in digits:
        assert (part.channels, part.classes) == (1, [str(n) for n in range(10)])
        assert part[0]["image"].shape == (8, 8, 1)
        assert part[0]["image"].dtype == np.uint8
        assert (part.images.min(), part.images.max()) == (0, 255)
    assert digits[1].describe(3) == "digits example 3"


# -- made noise --------------------------------------------------------------------------------

SPEC = "synthetic:examples=50,classes=4,size=6,channels=1"


def test_made_examples_are_a_function_of_their_number():
    one, two = open_source(SPEC, "train"), open_source(SPEC, "train")
    assert pixels(one) == pixels(two)
    np.testing.assert_array_equal(labels(one), labels(two))
    assert len(set(pixels(one))) == 50
    assert not set(pixels(one)) & set(pixels(open_source(SPEC, "val")))


def test_made_examples_have_the_sizes_asked_for():
    source = open_source(SPEC, "train")
    assert (len(source), source.classes, source.channels) == (50, ["0", "1", "2", "3"], 1)
    assert source[7]["image"].shape == (6, 6, 1)
    assert set(labels(source)) == {0, 1, 2, 3}
    assert facts("synthetic", "train").num_examples == 1024


def test_a_made_image_is_brighter_the_higher_its_label():
    source = open_source("synthetic:examples=40,classes=2,size=16", "train")
    means = np.array([source[index]["image"].mean() for index in range(40)])
    assert means[labels(source) == 1].min() > means[labels(source) == 0].max()


@pytest.mark.parametrize("rest", ["sizes=3", "size", "size=", "size=big", "size=0", "size=-4"])
def test_a_misspelt_size_is_answered_with_how_to_write_it(rest):
    with pytest.raises(UserError, match=r"write it as synthetic:examples=1024,classes=10,size="):
        open_source(f"synthetic:{rest}", "train")


# -- names, splits and classes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("digit", "unknown data source 'digit': did you mean digits"),
        ("folders:/a", "did you mean folder"),
        ("cifar10", "unknown data source 'cifar10': .*tfds"),
        ("", "there are: digits, folder, csv, synthetic, tfds, hf"),
    ],
)
def test_an_unknown_source_is_answered_with_those_there_are(spec, told):
    with pytest.raises(UserError, match=told):
        open_source(spec, "train")


@pytest.mark.parametrize("spec", ["digits", "synthetic"])
def test_an_unknown_split_is_answered_with_those_there_are(spec):
    with pytest.raises(UserError, match=f"{spec} has no split 'test': it has train, val"):
        open_source(spec, "test")


def test_evaluation_data_with_other_classes_than_training_is_refused():
    ten = [str(n) for n in range(10)]
    assert len(open_source("digits", "val", ten)) == len(open_source("digits", "val"))
    with pytest.raises(UserError, match=r"synthetic:classes=3 has other classes \(3\) than"):
        open_source("synthetic:classes=3", "val", ten)
    with pytest.raises(UserError, match=r"digits has other classes \(10\) than .* \(2\)"):
        open_source("digits", "val", ["cat", "dog"])


def test_facts_of_data_that_is_here_come_from_it(tmp_path):
    root = folder_of_images(tmp_path, {"train/cat": 3, "train/dog": 2, "val/cat": 1})
    found = facts(f"folder:{root}", "train")
    assert (found.num_examples, found.num_classes, found.channels) == (5, 2, 3)
    found = facts("digits", "val")
    assert (found.num_examples, found.num_classes, found.channels) == (355, 10, 1)


@pytest.mark.parametrize(
    ("name", "split", "examples", "classes"),
    [
        ("imagenet21k", "train", 14_197_122, 21_843),
        ("imagenet2012", "validation", 50_000, 1000),
        ("cifar100", "test", 10_000, 100),
        ("oxford_iiit_pet", "train", 3680, 37),
    ],
)
def test_facts_of_well_known_sets_need_no_data(name, split, examples, classes, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    found = facts(f"tfds:{name}", split)
    assert (found.num_examples, found.num_classes) == (examples, classes)
    with pytest.raises(UserError, match=f"tfds:{name} has no split 'dev': it has train"):
        facts(f"tfds:{name}", "dev")


def test_sources_travel_to_worker_processes():
    arrays = Arrays("mine", np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), [0, 1, 1, 0], ["a"])
    for source in (arrays, open_source("digits", "val"), open_source(SPEC, "train")):
        copy = pickle.loads(pickle.dumps(source))
        assert pixels(copy) == pixels(source)
        assert copy.classes == source.classes


@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 50_000), ("train[:99%]", 49_500), ("train[99%:]", 500), ("train[:1000]", 1000),
     ("train[10:20]", 10), ("train[-5:]", 5), ("test[25%:75%]", 5000), ("train+test", 60_000),
     ("train[:10] + test[-10%:]", 1010)],
)  # fmt: skip
def test_parts_of_a_known_set_are_counted_without_its_data(split, count, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert facts("tfds:cifar10", split).num_examples == count


@pytest.mark.parametrize("split", ["trian", "train[", "train[1]", "train[:x%]", "[:5]"])
def test_a_part_of_a_known_set_that_cannot_be_is_refused(split, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"has no split|is no part of a split"):
        facts("tfds:cifar10", split)
