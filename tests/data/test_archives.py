"""ImageNet's tars as a source: read, split, checked and prepared by the same mechanism."""

import pickle
import re
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


# -- as Kaggle hands it out ------------------------------------------------------------------------

BELOW = ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC")


@pytest.fixture
def kaggle(tmp_path):
    """ILSVRC/Data/CLS-LOC with train/n########/ and a flat val/ and test/; tables beside ILSVRC."""
    images = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    for synset, files in train_files(4).items():
        (images / "train" / synset).mkdir(parents=True)
        for name, data in files.items():
            (images / "train" / synset / name).write_bytes(data)
    lines = ["ImageId,PredictionString"]
    for place in ("val", "test"):
        (images / place).mkdir()
    for name, synset in reversed(validation_truth(5).items()):
        (images / "val" / name).write_bytes(picture(name))
        lines.append(f"{name.removesuffix('.JPEG')},{synset} 85 1 499 272 {synset} 9 9 20 20 ")
    (images / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(picture("t"))
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    mapping = "".join(f"{synset} some, words\n" for synset in SYNSETS)
    (tmp_path / "kaggle" / "LOC_synset_mapping.txt").write_text(mapping)
    return tmp_path / "kaggle"


@pytest.mark.parametrize("below", BELOW)
def test_kaggles_imagenet_is_read_with_the_labels_of_its_table(kaggle, below):
    spec = f"imagenet2012:{kaggle / below}"
    train, val = open_source(spec, "train"), open_source(spec, "val")
    assert examples(train) == {
        name: (synset, data)
        for synset, files in train_files(4).items()
        for name, data in files.items()
    }
    truth = validation_truth(5)
    assert examples(val) == {name: (synset, picture(name)) for name, synset in truth.items()}
    assert len(open_source(spec, "train+validation")) == 12 + 5
    mapping = str(kaggle / "LOC_synset_mapping.txt")
    assert open_source(spec, "val", labels=mapping).classes == list(SYNSETS)


@pytest.mark.parametrize("below", BELOW)
def test_a_folder_that_is_kaggles_imagenet_says_what_to_write(kaggle, below):
    root = kaggle / below
    with pytest.raises(UserError, match=re.escape(f"write imagenet2012:{root}")):
        open_source(f"folder:{root}", "val")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (None, f"has no {DEVKIT}.tar.gz and no LOC_val_solution.csv: either says"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1\n", "is not stated"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,tench 1\n", "line 2 is not ILSVRC2012"),
        ("ILSVRC2012_val_00000001\n", "is not stated"),
        ("\xff\xfe", "LOC_val_solution.csv cannot be read"),
    ],
)
def test_labels_that_are_missing_are_one_line(kaggle, table, says):
    file = kaggle / "LOC_val_solution.csv"
    file.unlink()
    if table is not None:
        file.write_bytes(table.encode("latin-1"))
    with pytest.raises(UserError) as error:
        open_source(f"imagenet2012:{kaggle}", "train")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
