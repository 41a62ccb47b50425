"""TFDS with TensorFlow makes the same set of the same files, and its TFRecord sets are copied."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet_files import devkit, downloads, picture, tar
from made_images import encoded

from vit_jax.data.archives import DEVKIT, label_map
from vit_jax.data.sources import open_source
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


# -- sets with boxes, by TFDS's own builders -----------------------------------------------------

SIDES = {"000001": (60, 40), "000002": (33, 50)}  # width and height of the images
XML = """<annotation><filename>{0}.jpg</filename><size><width>{1}</width><height>{2}</height></size>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult><bndbox>
<xmin>7</xmin><ymin>5</ymin><xmax>26</xmax><ymax>24</ymax></bndbox></object>
<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>1</difficult><bndbox>
<xmin>1</xmin><ymin>1</ymin><xmax>{1}</xmax><ymax>{2}</ymax></bndbox></object></annotation>"""


def build(builder, config, root, **files):
    """A set as TFDS's own builder makes it of files that are here. Nothing is downloaded."""

    class Here(builder, skip_registration=True):
        name = builder.name

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(**files)}

    Here(config=config, data_dir=str(root), file_format="array_record").download_and_prepare()


def by_name(source):
    """{file name: objects}, because TFDS shuffles."""
    names = [Path(source.describe(n).rstrip(")").split("(")[-1]).name for n in range(len(source))]
    return {name: source[n]["objects"] for n, name in enumerate(names)}


def same_objects(ours, theirs, atol):
    assert len(ours) == len(theirs) == len(SIDES)
    for name, objects in by_name(ours).items():
        wanted = by_name(theirs)[name]
        for field in ("boxes", "classes", "crowd", "area", "window"):
            one, other = np.array(getattr(objects, field)), np.array(getattr(wanted, field))
            if field == "classes":
                one, other = np.array(ours.classes)[one], np.array(theirs.classes)[other]
                np.testing.assert_array_equal(one, other)
            else:
                np.testing.assert_allclose(one, other, atol=atol.get(field, 0))


@needs_tensorflow
def test_voc_of_tfds_own_builder_has_the_objects_of_vocs_files(tmp_path, monkeypatch):
    from tensorflow_datasets.object_detection.voc import Voc

    root = tmp_path / "files/VOCdevkit/VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for name, (width, height) in SIDES.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        (root / f"JPEGImages/{name}.jpg").write_bytes(encoded(pixels))
        (root / f"Annotations/{name}.xml").write_text(XML.format(name, width, height))
    (root / "ImageSets/Main/train.txt").write_text("\n".join(SIDES))
    build(Voc, "2007", tmp_path / "tfds", data_path=str(tmp_path / "files"), set_name="train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    ours, theirs = open_source("tfds:voc/2007", "train"), open_source(f"voc:{root}", "train")
    # TFDS leaves the first edges as they are, which count from 1.
    same_objects(ours, theirs, {"boxes": 1 / 33 + 1e-6, "area": 60 + 40})
    assert ours.max_objects == theirs.max_objects == 2
    assert sum("2 boxes are crowds" in note for note in (*ours.notes, *theirs.notes)) == 2
    labelled = open_source("tfds:voc/2007?label=labels_no_difficult", "train")
    assert [labelled.classes[n] for n in labelled[0]["label"]] == ["dog"]


@needs_tensorflow
def test_coco_of_tfds_own_builder_has_the_objects_of_cocos_files(tmp_path, monkeypatch):
    from tensorflow_datasets.object_detection.coco import Coco

    root = tmp_path / "files"
    for part in ("annotations", "train2017"):
        (root / part).mkdir(parents=True)
    images, boxes = [], []
    for number, (name, (width, height)) in enumerate(SIDES.items()):
        pixels = np.zeros((height, width, 3), np.uint8)
        (root / f"train2017/{name}.jpg").write_bytes(encoded(pixels))
        images.append(dict(id=number, file_name=f"{name}.jpg", width=width, height=height))
        boxes += [
            dict(id=2 * number, image_id=number, category_id=35, bbox=[6.25, 4, 20, 20.5], area=300,
                 iscrowd=0),
            dict(id=2 * number + 1, image_id=number, category_id=1, bbox=[0, 0, width, height],
                 area=99, iscrowd=1),
        ]  # fmt: skip
    categories = [dict(id=n, name=f"class {n}") for n in range(1, 160, 2)]  # 80, with gaps
    record = dict(images=images, annotations=boxes, categories=categories)
    (root / "annotations/instances_train2017.json").write_text(json.dumps(record))
    build(
        Coco, "2017", tmp_path / "tfds", image_dir=str(root), annotation_dir=str(root),
        split_name="train2017", annotation_type="bboxes", panoptic_dir=None,
    )  # fmt: skip
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    ours, theirs = open_source("tfds:coco/2017", "train"), open_source(f"coco:{root}", "train")
    same_objects(ours, theirs, {"boxes": 1e-6})
    assert ours.notes[0].partition(": ")[2] == theirs.notes[0].partition(": ")[2]


def test_the_label_maps_are_timms():
    timm = pytest.importorskip("timm")
    lists = Path(timm.__file__).parent / "data" / "_info"
    for name, file in {
        "1k": "imagenet_synsets.txt",
        "21k": "imagenet21k_goog_synsets.txt",
        "21k-p": "imagenet21k_miil_synsets.txt",
    }.items():
        assert label_map(name) == (lists / file).read_text().split()
