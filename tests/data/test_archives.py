"""ImageNet's tars as a source: read, split, checked and prepared by the same mechanism."""

import pickle
import shutil
from pathlib import Path

import pytest
from imagenet_files import DEVKIT, SYNSETS, downloads, picture, tar, train_files, validation_truth

from vit_jax.data.archives import label_map
from vit_jax.data.sources import facts, open_source, split_names
from vit_jax.errors import UserError
from vit_jax.preparing.check import check


@pytest.fixture
def ilsvrc(tmp_path):
    return downloads(tmp_path / "d")


def examples(source):
    """{file name: (class, bytes)}."""
    rows = [(source.name(n), source[n]) for n in range(len(source))]
    return {name: (source.classes[row["label"]], row["image"]) for name, row in rows}


def test_tars_are_a_source_of_their_images(ilsvrc):
    spec = f"imagenet2012:{ilsvrc}"
    assert split_names(spec) == ["train", "validation"]
    train, val = open_source(spec, "train"), open_source(spec, "val")
    assert examples(train) == {
        name: (synset, data)
        for synset, files in train_files().items()
        for name, data in files.items()
    }
    assert examples(val) == {n: (synset, picture(n)) for n, synset in validation_truth().items()}
    assert (facts(spec, "val").num_examples, facts(spec, "val").num_classes) == (6, 1000)
    assert val.describe(0) == f"{ilsvrc}/ILSVRC2012_img_val.tar/ILSVRC2012_val_00000001.JPEG"


def test_a_source_travels_to_worker_processes_and_is_known_by_its_names(ilsvrc):
    train = open_source(f"imagenet2012:{ilsvrc}", "train")
    copy = pickle.loads(pickle.dumps(train))
    assert examples(copy) == examples(train)
    moved = shutil.copytree(ilsvrc, ilsvrc.parent / "moved")
    assert open_source(f"imagenet2012:{moved}", "train").names_hash == train.names_hash
    assert open_source(f"imagenet2012:{moved}", "val").names_hash != train.names_hash


def test_an_archive_that_has_changed_is_read_again(ilsvrc):
    assert len(open_source(f"imagenet2012:{ilsvrc}", "train")) == 15
    tars = {f"{synset}.tar": tar(files) for synset, files in train_files(7).items()}
    (ilsvrc / "ILSVRC2012_img_train.tar").write_bytes(tar(tars))
    assert len(open_source(f"imagenet2012:{ilsvrc}", "train")) == 21


def test_the_splits_of_21k_are_disjoint_and_complete(tmp_path):
    for synset, files in train_files(50).items():
        (tmp_path / f"{synset}.tar").write_bytes(tar(files))
    sources = [open_source(f"imagenet21k:{tmp_path}", split, labels="found", val=20)
               for split in ("train", "val")]  # fmt: skip
    train, val = map(examples, sources)
    assert (len(train), len(val), len(train | val)) == (130, 20, 150)
    assert sources[1].classes == sorted(SYNSETS)


def test_an_archive_is_checked_like_any_other_source(ilsvrc):
    names = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    (ilsvrc / "ILSVRC2012_img_val.tar").write_bytes(tar(dict.fromkeys(names, picture("a"))))
    report = check(f"imagenet2012:{ilsvrc}", "validation")
    doubled = next(p for p in report["found"] if p["path"].endswith(names[1]))
    assert "the same bytes as" in doubled["problem"]
    assert report["splits"]["validation"]["kinds"] == {"JPEG": 2}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("imagenet2012:", "there is no folder"),
        ("imagenet21k:{tmp}/none", "there is no folder {tmp}/none"),
        ("imagenet2012:{tmp}", "neither ILSVRC2012_img_val.tar nor val/"),
        ("imagenet2012:{tmp}/d", f"has no {DEVKIT}.tar.gz"),
    ],
)
def test_a_folder_that_is_no_imagenet_is_one_line(tmp_path, ilsvrc, spec, says):
    (ilsvrc / f"{DEVKIT}.tar.gz").unlink()
    with pytest.raises(UserError) as error:
        open_source(spec.format(tmp=tmp_path), "train")
    assert says.format(tmp=tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_thousand_classes_are_numbered_as_tfds_numbers_them():
    import tensorflow_datasets as tfds

    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert label_map("1k") == labels.read_text().split()
    assert [label_map("1k").index(synset) for synset in SYNSETS] == [0, 1, 850]


def test_the_label_maps_have_their_papers_sizes():
    thousand, all_of_it, pruned = (label_map(name) for name in ("1k", "21k", "21k-p"))
    assert [len(thousand), len(all_of_it), len(pruned)] == [1000, 21_843, 11_221]
    assert all(names == sorted(set(names)) for names in (thousand, all_of_it, pruned))
    assert set(pruned) < set(all_of_it)
    assert set(thousand) - set(all_of_it) == {"n04399382"}  # the fall release lacks one
