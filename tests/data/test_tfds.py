"""A TFDS data set on disk, written and read as array_record, without TensorFlow."""

import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from made_images import encoded

from vit_jax import cli
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


def test_splits_are_joined_by_their_other_names_too():
    joined = open_source("tfds:tiny_pets", "train+val")
    exact = open_source("tfds:tiny_pets", "train+validation")
    assert len(joined) == len(exact) == 11
    assert joined.names_hash == exact.names_hash == "tiny_pets/1.2.3 train+validation 11"
    assert len(open_source("tfds:tiny_pets", "train[:3]+val[1:]")) == 6
    with pytest.raises(UserError, match=r"split 'train\+test': it has train, validation"):
        open_source("tfds:tiny_pets", "train+test")


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


# -- damaged sets --------------------------------------------------------------------------------


def info_claims(info):
    info["splits"][0]["shardLengths"] = [str(10**11)]


def edit(name, change):
    def damage(folder):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


def shard(change):
    return lambda folder: change(next(folder.glob("*train.array_record*")))


def zeroed(file):
    file.write_bytes(bytes(file.stat().st_size))


def foreign(features):
    features["pythonClassName"] = "foreign_features.module.Thing"


def old_and_foreign(features):
    features.clear()
    features |= {"type": "foreign_features.module.Thing", "content": {}}


DAMAGES = {
    "empty_info": (lambda f: (f / "dataset_info.json").write_text("{}"), "names no set"),
    "binary_info": (lambda f: (f / "dataset_info.json").write_bytes(b"\xff\0"), "is no JSON"),
    "claims": (edit("dataset_info.json", info_claims), "holds 7 examples"),
    "no_features": (lambda f: (f / "features.json").write_text("[]"), "holds no JSON object"),
    "features_gone": (lambda f: (f / "features.json").unlink(), "features.json"),
    "cut": (shard(lambda file: os.truncate(file, file.stat().st_size // 2)), "is cut off"),
    "zeroed": (shard(zeroed), "is cut off or no array_record"),
    "missing": (shard(os.remove), "No such file"),
    "pipe": (shard(lambda file: (file.unlink(), os.mkfifo(file))), "a device or a pipe"),
    "foreign": (edit("features.json", foreign), "Files import nothing"),
    "old_and_foreign": (edit("features.json", old_and_foreign), "Files import nothing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_set_is_one_line_and_imports_nothing(name, data_dir, tmp_path, monkeypatch):
    damage, says = DAMAGES[name]
    package = tmp_path / "foreign_features"
    package.mkdir()
    (package / "module.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(data_dir / "tiny_pets", tmp_path / "root" / "tiny_pets")
    damage(tmp_path / "root" / "tiny_pets" / "1.2.3")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "root"))
    with pytest.raises(UserError) as error:
        open_source("tfds:tiny_pets", "train")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_set_ends_training_before_it_begins(data_dir, tmp_path, monkeypatch, capsys):
    shutil.copytree(data_dir / "tiny_pets", tmp_path / "root" / "tiny_pets")
    DAMAGES["cut"][0](tmp_path / "root" / "tiny_pets" / "1.2.3")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "root"))
    work = tmp_path / "work"
    command = ("train", "--config=digits.py", "--config.data.train.source=tfds:tiny_pets")
    assert cli.main([*command, f"--workdir={work}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vit: error: ")
    assert "is cut off" in said
    assert said.count("\n") == 1
    assert not work.exists()


def test_val_is_the_split_that_means_it():
    assert len(open_source("tfds:tiny_pets", "val")) == COUNTS["validation"]
