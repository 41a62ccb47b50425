"""TFDS sets with objects: boxes as COCO's own files state them, read without TensorFlow."""

import json
import pickle
import re
import sys

import numpy as np
import pytest
from PIL import Image
from tfds_sets import PICTURE, F, fields, prepare

from vit_jax import cli
from vit_jax.data.sources import facts, open_source
from vit_jax.errors import UserError
from vit_jax.tasks.detection import ObjectRows

# x1, y1, x2, y2 in an image of 60 x 40 pixels; class; whether it is a crowd; area.
IMAGES = [
    [],
    [((6, 4, 36, 24), "dog", False, 5)],
    [((0, 0, 60, 40), "cat", True, 9), ((30, 20, 33, 22), "dog", False, 6)],
    [((10, 10, 20, 20), "cat", False, 7)] * 3,
]
SIDES = np.array([60, 40, 60, 40])
ORDERS = {
    "XYXY": lambda b: b,
    "YXYX": lambda b: b[[1, 0, 3, 2]],
    "XYWH": lambda b: np.concatenate([b[:2], b[2:] - b[:2]]),
}


def stated(box, bbox_format="REL_YXYX"):
    """A box in a format of TFDS's, which keeps an array as it is."""
    box = np.array(box, np.float64)
    shares = bbox_format.startswith("REL_")
    return ORDERS[bbox_format.removeprefix("REL_")](box / SIDES if shares else box)


def like_coco(images=IMAGES):
    """Features and examples as those of `coco`."""
    features = fields(id=np.int64, area=np.int64, is_crowd=np.bool_)
    return features, [
        [dict(bbox=stated(box), label=label, is_crowd=crowd, area=area, id=n)
         for n, (box, label, crowd, area) in enumerate(objects)]
        for objects in images
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _below_a_root_of_its_own_and_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    before = "tensorflow" in sys.modules
    yield
    assert ("tensorflow" in sys.modules) == before


@pytest.fixture
def root(tmp_path):
    return tmp_path / "tfds"


def by_name(source):
    """{file name: example}, because TFDS shuffles."""
    return {source.describe(n).split("(")[1][:-1]: source[n] for n in range(len(source))}


def test_a_set_like_coco_is_what_cocos_own_files_are(root, tmp_path):
    name = prepare(root, *like_coco())
    (tmp_path / "train").mkdir()
    for number in range(len(IMAGES)):
        (tmp_path / f"train/{number}.jpg").write_bytes(PICTURE)
    boxes = [(n, *one) for n, objects in enumerate(IMAGES) for one in objects]
    (tmp_path / "train.json").write_text(json.dumps({
        "images": [dict(id=n, file_name=f"{n}.jpg", height=40, width=60) for n in range(4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            dict(image_id=n, bbox=ORDERS["XYWH"](np.array(box)).tolist(), area=area,
                 category_id=1 + (label == "dog"), iscrowd=int(crowd))
            for n, box, label, crowd, area in boxes
        ],
    }))  # fmt: skip
    ours, theirs = open_source(name, "train"), open_source(f"coco:{tmp_path}", "train")
    assert (ours.classes, ours.max_objects, len(ours)) == (theirs.classes, theirs.max_objects, 4)
    found = by_name(ours)
    for n in range(4):
        example, wanted = found[f"{n}.jpg"], theirs[n]
        assert example["image"] == wanted["image"] == PICTURE
        assert example["objects"].window == wanted["objects"].window
        for field in ("boxes", "classes", "crowd", "area"):
            one, other = getattr(example["objects"], field), getattr(wanted["objects"], field)
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=1e-6)
    told = [note.partition(": ")[2] for note in ours.notes]
    assert (
        told[0] == theirs.notes[0].partition(": ")[2] == "1 boxes are crowds, which are no targets"
    )
    assert "all examples were read to count their boxes; tfds:tiny_boxes?most=3 opens" in told[1]


@pytest.mark.parametrize("bbox_format", ["REL_YXYX", "REL_XYXY", "XYXY", "YXYX", "XYWH"])
def test_boxes_are_read_in_the_format_that_their_feature_names(bbox_format, root):
    boxes = [
        [dict(bbox=stated(box, bbox_format), label=0)] for box in ((6, 4, 36, 24), (1, 2, 9, 5))
    ]
    source = open_source(prepare(root, fields(bbox_format), boxes), "train")
    found = by_name(source)
    for n, wanted in enumerate(((6, 4, 36, 24), (1, 2, 9, 5))):
        np.testing.assert_allclose(found[f"{n}.jpg"]["objects"].boxes * SIDES, [wanted], atol=1e-4)


def test_what_cannot_be_learned_is_counted_and_left_out(root):
    good = [[dict(bbox=stated((6, 4, 36, 24)), label=1)]] * 9
    odd = [
        [dict(bbox=np.array(box), label=0)]
        for box in ((0.1, np.nan, 0.2, 0.3), (0.5, 0.5, 0.5, 0.9), (0.5, 0.5, 0.9, 1.5))
    ]
    source = open_source(prepare(root, fields(None), good + odd), "train")
    told = "\n".join(source.notes)
    for words in (
        "1 boxes have values that are no numbers, and are left out",
        "1 boxes have no area in their image, and are left out",
        "1 boxes leave their image, and are cut at its edges",
    ):  # fmt: skip
        assert words in told
    found = by_name(source)
    assert [len(found[f"{n}.jpg"]["objects"]) for n in range(8, 12)] == [1, 0, 0, 1]
    np.testing.assert_allclose(found["11.jpg"]["objects"].boxes, [[0.5, 0.5, 1, 0.9]])


def test_another_format_than_the_stated_one_is_noticed_and_can_be_named(root):
    boxes = [
        [dict(bbox=np.array(box), label=0)] for box in ([0.1, 0.5, 0.2, 0.2], [0.6, 0.7, 0.3, 0.3])
    ]
    name = prepare(root, fields(None), boxes)
    with pytest.raises(
        UserError, match=r"2 of 2 boxes do not fit .* as rel_yxyx; .*\?boxes=rel_xywh$"
    ):
        open_source(name, "train")
    found = by_name(open_source(f"{name}?boxes=rel_xywh", "train"))
    np.testing.assert_allclose(found["1.jpg"]["objects"].boxes, [[0.6, 0.7, 0.9, 1.0]], atol=1e-6)


def like_voc():
    features = fields(
        is_difficult=np.bool_, is_truncated=np.bool_, pose=F.ClassLabel(names=["left"])
    )
    one = dict(
        bbox=stated((6, 4, 36, 24)), label="dog", is_difficult=True, is_truncated=False, pose=0
    )
    several = F.Sequence(F.ClassLabel(names=["cat", "dog"]))
    return features, [[one, one | {"is_difficult": False}]], dict(labels=(several, ["dog"]))


def test_difficult_objects_are_crowds_and_labels_beside_boxes_are_asked_for(root):
    features, images, others = like_voc()
    name = prepare(root, features, images, **others)
    objects = open_source(name, "train")[0]["objects"]
    assert (objects.crowd.tolist(), objects.area.tolist()) == (
        [True, False],
        pytest.approx([600] * 2),
    )
    labelled = open_source(f"{name}?label=labels", "train")
    assert (labelled[0]["label"], labelled.max_objects, labelled.classes) == (
        [1],
        0,
        ["cat", "dog"],
    )


def test_a_set_of_classes_whose_boxes_have_none_keeps_its_labels(root):
    bare = {"bbox": F.BBoxFeature()}
    label = (F.ClassLabel(names=["cat", "dog"]), 1)
    name = prepare(root, bare, [[dict(bbox=stated((6, 4, 36, 24)))]], label=label)
    assert open_source(name, "train")[0]["label"] == 1
    with pytest.raises(UserError, match=r"class of an object is needed.*its objects have none"):
        open_source(f"{name}?objects=objects", "train")
    for wrong in ("?objects=others", "?objects=label"):
        with pytest.raises(
            UserError, match=r"has no feature .* with bbox: it has image, image/filename, l"
        ):
            open_source(name + wrong, "train")


def test_the_class_of_an_object_is_chosen_where_it_has_another_name(root):
    features = fields()
    features["type"] = features.pop("label")
    name = prepare(root, features, [[dict(bbox=stated((6, 4, 36, 24)), type="dog")]])
    with pytest.raises(UserError, match=r"needed, as \?category=FIELD: one of type"):
        open_source(name, "train")
    assert open_source(f"{name}?category=type", "train")[0]["objects"].classes == [1]


def test_with_the_number_of_objects_a_set_opens_without_reading(root):
    name = prepare(root, *like_coco())
    source = open_source(f"{name}?most=2", "train")
    assert source.max_objects == 2
    assert "boxes are taken as they come, because most=2 is given" in source.notes[0]
    rows = ObjectRows(source.max_objects)
    many = next(n for n in range(4) if "(3.jpg)" in source.describe(n))
    with pytest.raises(UserError, match=r"\(3.jpg\) has 3 objects, more than the 2 stated"):
        rows.row(source[many], lambda: source.describe(many))
    for wrong in ("0", "-1", "many", ""):
        with pytest.raises(UserError, match=f"most={wrong} must be a whole number from 1"):
            open_source(f"{name}?most={wrong}", "train")
    with pytest.raises(UserError, match=r"after \? stand label=, .* or most=, not size="):
        open_source(f"{name}?size=2", "train")
    with pytest.raises(UserError, match="boxes=xyz is none of xywh, xyxy"):
        open_source(f"{name}?boxes=xyz", "train")


def test_a_damaged_image_is_counted_and_the_others_are_read(root):
    name = prepare(root, *like_coco(), image=(F.Image(encoding_format="jpeg"), PICTURE[:20]))
    assert "4 images are damaged" in open_source(name, "train").notes[0]


def test_images_that_are_not_encoded_have_a_size_too(root):
    pixels = (F.Tensor(shape=(40, 60, 3), dtype=np.uint8), np.zeros((40, 60, 3), np.uint8))
    source = open_source(prepare(root, *like_coco(IMAGES[1:2]), image=pixels), "train")
    np.testing.assert_allclose(source[0]["objects"].boxes, [[0.1, 0.1, 0.6, 0.6]], atol=1e-6)
    assert source[0]["objects"].window == (0, 0, 60, 40)


def test_a_set_with_boxes_travels_to_worker_processes(root):
    source = open_source(prepare(root, *like_coco()), "train")
    copy = pickle.loads(pickle.dumps(source))
    for n in range(4):
        np.testing.assert_array_equal(copy[n]["objects"].boxes, source[n]["objects"].boxes)


@pytest.mark.parametrize("name", ["tfds:coco/2017", "tfds:coco/2017?most=100"])
def test_coco_is_known_where_it_is_not_here(name):
    found = facts(name, "validation")
    assert (found.num_examples, found.num_classes, found.max_objects) == (5000, 80, 93)
    assert facts(name, "train[:50%]").num_examples == 59_144


def test_check_and_describe_work_on_it(root, tmp_path, capsys):
    name = prepare(root, *like_coco())
    assert cli.main(["data", "check", name]) == 1  # all of its images have the same bytes
    said = capsys.readouterr().out
    assert "train: note: tfds:tiny_boxes train: 1 boxes are crowds" in said
    assert "train: 4 images of 2 classes" in said
    picture = tmp_path / "batch.png"
    command = ["describe", "--config=detr.py:digits", f"--config.data.train.source={name}"]
    command += ["--config.data.train.pipeline=decode|resize", "--config.data.eval.split="]
    command += ["--config.data.eval.source=", "--config.model.channels=3", "--config.batch_size=8"]
    assert cli.main([*command, f"--batch={picture}"]) == 0
    assert np.asarray(Image.open(picture)).max() > 100  # frames on black images


@pytest.mark.parametrize(
    ("task", "query", "told"),
    [
        ("digits.py", "", r"tfds:tiny_boxes gives boxes and no labels: --config.task=detection; a"),
        ("detr.py:digits", "?label=labels", r"tiny_boxes\?label=labels gives labels and no boxes"),
    ],
)
def test_the_wrong_task_is_one_line_that_says_what_works(task, query, told, root, tmp_path, capsys):
    features, images, others = like_voc()
    name = prepare(root, features, images, **others) + query
    command = ["train", f"--config={task}", f"--config.data.train.source={name}"]
    command += ["--config.data.eval.split=", f"--workdir={tmp_path}/run"]
    assert cli.main([*command, "--config.model.channels=3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vit: error: ")
    assert said.count("\n") == 1
    assert re.search(told, said)
    assert not (tmp_path / "run").exists()
