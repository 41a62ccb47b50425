"""TFDS with TensorFlow makes the same set of the same files, and its TFRecord sets are copied."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from imagenet_files import devkit, downloads, picture, tar

from vit_jax.data.archives import DEVKIT, label_map
from vit_jax.preparing.prepare import Options, prepare

needs_tensorflow = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("tensorflow", "importlib_resources")),
    reason="TFDS's own builders need vit_jax[tf]",
)
VALIDATION = 6


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory):
    """ILSVRC2012 in miniature, whose validation truth is that of the first real images."""
    root = downloads(tmp_path_factory.mktemp("ilsvrc"))
    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "validation_labels.txt"
    real = labels.read_text().split()[:VALIDATION]
    truth = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": synset for n, synset in enumerate(real)}
    ids = {synset: 7 * n + 3 for n, synset in enumerate(sorted(set(real), reverse=True))}
    (root / f"{DEVKIT}.tar.gz").write_bytes(devkit(truth, ids))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar({name: picture(name) for name in truth}))
    return root


def examples(folder, split):
    """{file name: (label, bytes)}, by TFDS's own reader."""
    data = tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return {e["file_name"]: (int(e["label"]), e["image"]) for e in data}


@needs_tensorflow
def test_tfds_own_builder_of_imagenet2012_makes_the_same_examples(ilsvrc, tmp_path):
    ours = prepare("imagenet2012", Options(source=str(ilsvrc), output=str(tmp_path / "ours")))
    theirs = prepare("tfds:imagenet2012", Options(source=str(ilsvrc), output=f"{tmp_path}/theirs"))
    assert theirs == tmp_path / "theirs" / "imagenet2012" / "5.1.0"
    for split, count in (("train", 15), ("validation", VALIDATION)):
        assert examples(ours, split) == examples(theirs, split)
        assert len(examples(ours, split)) == count
    names = [tfds.builder_from_directory(p).info.features["label"].names for p in (ours, theirs)]
    assert names[0] == names[1]


@needs_tensorflow
def test_a_tfrecord_set_of_tfds_is_copied_record_by_record(ilsvrc, tmp_path):
    builder = tfds.builder("imagenet2012", data_dir=f"{tmp_path}/old", file_format="tfrecord")
    config = tfds.download.DownloadConfig(manual_dir=str(ilsvrc), num_shards=3)
    builder.download_and_prepare(download_config=config)
    new = prepare(
        "tfds:imagenet2012", Options(source=f"{tmp_path}/old", output=str(tmp_path / "new"))
    )
    for split in ("train", "validation"):
        decoders = {"image": tfds.decode.SkipDecoding()}
        wanted = {
            e["file_name"].numpy(): (int(e["label"]), e["image"].numpy())
            for e in builder.as_dataset(split=split, decoders=decoders)
        }
        assert examples(new, split) == wanted
    assert len(list(new.glob("*-train.array_record-*-of-00003"))) == 3
    assert not list(new.glob("*tfrecord*"))


def test_the_label_maps_are_timms():
    timm = pytest.importorskip("timm")
    lists = Path(timm.__file__).parent / "data" / "_info"
    for name, file in {
        "1k": "imagenet_synsets.txt",
        "21k": "imagenet21k_goog_synsets.txt",
        "21k-p": "imagenet21k_miil_synsets.txt",
    }.items():
        assert label_map(name) == (lists / file).read_text().split()
