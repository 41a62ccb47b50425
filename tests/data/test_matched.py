"""Classes of a data set are found among the outputs of weights, and labels become their numbers."""

import numpy as np
import pytest

from vit_jax.data.archives import label_map
from vit_jax.data.matched import Matched, match
from vit_jax.data.scenes import DigitScenes
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError

NUMBERS = [str(number) for number in range(1000)]


@pytest.mark.parametrize(
    ("classes", "outputs", "found", "how"),
    [
        (["Cat", "big_dog"], ["ant", "big dog", "cat"], [2, 1], "name"),
        (["tabby cat", "goose"], ["goose", "tabby, Tabby Cat"], [1, 0], "name"),
        (["7", "3"], NUMBERS, [7, 3], "number"),
        (["b", "a", "c"], ["0", "1", "2"], [0, 1, 2], "order"),
        (["n02123045", "n01440764"], NUMBERS, [281, 0], "synset"),
        (["n02123045"], ["goose", "n02123045"], [1], "name"),
    ],
)
def test_classes_are_found_by_name_synset_number_or_order(classes, outputs, found, how):
    assert match(classes, outputs) == (found, how)


def test_synsets_of_imagenet_21k_have_its_numbers():
    synsets = label_map("21k")
    names = [synsets[5], synsets[20_000]]
    assert match(names, list(map(str, range(len(synsets))))) == ([5, 20_000], "synset")


@pytest.mark.parametrize(
    ("classes", "outputs", "said"),
    [
        (["cat", "hrose"], ["cat", "horse"], "1 of 2 classes .*hrose; did you mean horse"),
        (["cat", "dog"], ["0", "1", "2"], "2 of 2 classes .*they have no names"),
        (["5000"], NUMBERS, "5000"),
        (["a", "A"], ["a", "b"], "2 of 2 classes|1 of 2|of 2 classes"),
    ],
)
def test_what_is_not_found_is_named(classes, outputs, said):
    with pytest.raises(UserError, match=said):
        match(classes, outputs)


def test_labels_and_boxes_have_the_numbers_of_outputs():
    source = open_source("digits", "val")
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    matched = Matched(source, order, NUMBERS)
    assert len(matched) == len(source)
    for index in range(5):
        assert matched[index]["label"] == order[source[index]["label"]]
        np.testing.assert_array_equal(matched[index]["image"], source[index]["image"])
    scenes = DigitScenes("examples=3", "val", None)
    for index in range(3):
        found = Matched(scenes, order, NUMBERS)[index]["objects"].classes
        assert found.tolist() == [order[label] for label in scenes[index]["objects"].classes]
