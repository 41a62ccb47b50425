"""A TFDS data set on disk, written and read as array_record, without TensorFlow."""

import pickle
import sys

import numpy as np
import pytest
from made_images import encoded

from vit_jax.data.decode import decode
from vit_jax.data.sources import facts, open_source
from vit_jax.errors import UserError

NAMES = ["cat", "dog", "emu"]
COUNTS = {"train": 7, "validation": 4}


def picture(split, number):
    """The encoded image of an example, which tells its split and number."""
    value = [10 * number, 200 if split == "train" else 50, 7]
    return encoded(np.full((6, 9, 3), value, np.uint8), "PNG")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    class TinyPets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png")}
            features |= {"label": tfds.features.ClassLabel(names=NAMES)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for number in range(COUNTS[split]):
                yield number, {"image": picture(split, number), "label": number % 3}

    root = tmp_path_factory.mktemp("tfds")
    builder = TinyPets(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def _found_there_without_tensorflow(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    before = "tensorflow" in sys.modules
    yield
    assert ("tensorflow" in sys.modules) == before


def test_a_prepared_set_has_its_examples_and_classes():
    train = open_source("tfds:tiny_pets", "train")
    assert (len(train), train.classes, train.channels) == (7, NAMES, 3)
    examples = [train[index] for index in range(7)]
    wanted = [{"image": picture("train", n), "label": n % 3} for n in range(7)]
    assert sorted(examples, key=lambda e: e["image"]) == sorted(wanted, key=lambda e: e["image"])


def test_images_stay_encoded_until_the_reader_decodes_them():
    example = open_source("tfds:tiny_pets", "validation")[2]
    assert isinstance(example["image"], bytes)
    pixels = decode(example["image"])
    assert pixels.shape == (6, 9, 3)
    assert set(pixels[..., 1].flat) == {50}


def test_a_slice_of_a_split_is_a_split():
    first, rest = (open_source("tfds:tiny_pets", f"train[{part}]") for part in (":5", "5:"))
    whole = open_source("tfds:tiny_pets", "train")
    both = [first[n] for n in range(5)] + [rest[n] for n in range(2)]
    assert both == [whole[n] for n in range(7)]


def test_facts_come_from_the_files():
    found = facts("tfds:tiny_pets", "validation")
    assert (found.num_examples, found.num_classes) == (4, 3)


def test_a_wrong_split_lists_those_there_are():
    with pytest.raises(UserError, match=r"tfds:tiny_pets, split 'test': it has train, validation"):
        open_source("tfds:tiny_pets", "test")


def test_other_classes_than_those_of_training_are_refused():
    assert len(open_source("tfds:tiny_pets", "validation", NAMES)) == 4
    with pytest.raises(UserError, match=r"tfds:tiny_pets has other classes \(3\) than .* \(2\)"):
        open_source("tfds:tiny_pets", "validation", ["cat", "dog"])


def test_a_prepared_set_travels_to_worker_processes():
    train = open_source("tfds:tiny_pets", "train")
    train[0]  # a reader that is open already
    copy = pickle.loads(pickle.dumps(train))
    assert [copy[n] for n in range(7)] == [train[n] for n in range(7)]


@pytest.mark.parametrize("spec", ["tfds:imagenet21k", "tfds:tiny_pet", "tfds:"])
def test_a_set_that_is_not_here_says_what_to_put_where(spec, data_dir):
    with pytest.raises(UserError) as error:
        open_source(spec, "train")
    place = f"{data_dir / spec.removeprefix('tfds:')}/VERSION/"
    assert f"{spec} is not on this machine" in str(error.value)
    assert f"array_record files and dataset_info.json in {place}" in str(error.value)
    assert "--config.data.train.source=folder:PATH" in str(error.value)
