"""Boxes follow what operations do to the pixels: found again by looking at the pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import pipeline_text
from vit_jax.data.annotated import coco_numbers
from vit_jax.data.box_formats import of_fields
from vit_jax.data.declared import DECLARED, OPS
from vit_jax.data.objects import Objects
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError
from vit_jax.tasks.detection import ObjectRows

SIDE = 96
PIPELINES = (
    "canvas_crop((40, 64), 0.5)",
    "flip_lr", "resize", "resize((60, 130))", "central_crop(80)", "random_crop(70)",
    "random_crop(96, 12)", "inception_crop", "inception_crop(None, 0.5)", "shift(9)",
    "resize_small(64)", "resize_small(64)|central_crop(64)", "fit((64, 128))",
    "random_resize((60, 90), 120)", "size_crop(40, 70, 1.0, (90, 100))", "zoom_out(2.0, 1.0)",
    "fit|pad((128, 160))", "flip_lr|inception_crop|flip_lr|fit|pad",
)  # fmt: skip


def scene(height=80, width=112, box=(30, 20, 71, 52)):
    """A black image with a white rectangle, and its box."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image, Objects.of_pixels(np.array([box]), np.array([3]), (height, width))


def bright(image):
    """The edges of what is bright, in pixels; None where nothing is."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return (
        np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if rows.size
        else None
    )  # fmt: skip


def applied(text, seed, image, objects):
    parsed = pipeline_text.parse(f"decode|{text}", (SIDE, SIDE), placed=("objects",))
    example = {"image": parsed.open(image, 3), "objects": objects}
    example = parsed.example(example, np.random.default_rng(seed))
    return example["image"], example["objects"]


@pytest.mark.parametrize("text", PIPELINES)
def test_a_box_lies_where_its_object_is_seen(text):
    seen = 0
    for seed in range(12):
        image, objects = applied(text, seed, *scene())
        edges = bright(np.where(image == 128, 0, image))  # without the padding
        if edges is None or not len(objects):
            continue
        height, width = image.shape[:2]
        scale = np.array([width, height] * 2) * np.tile(objects.content[::-1], 2)
        np.testing.assert_allclose(objects.boxes[0] * scale, edges, atol=1.6)
        seen += 1
    assert seen >= 4


@pytest.mark.parametrize("text", PIPELINES)
def test_the_window_leads_back_to_the_original(text):
    """What evaluation does: shares of what is shown, in pixels of the original."""
    image, objects = scene()
    for seed in range(6):
        _, moved = applied(text, seed, image, objects)
        left, top, right, bottom = moved.window
        start, sides = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
        for box in moved.boxes * sides + start:
            low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
            assert (low >= [30 - 1e-6, 20 - 1e-6]).all()  # a part of the object's box
            assert (high <= [71 + 1e-6, 52 + 1e-6]).all()


def test_a_box_that_a_crop_cuts_off_is_left_out_and_one_at_the_edge_is_cut():
    _, objects = scene()
    assert len(objects.seen((0.7, 0.0, 1.0, 1.0))) == 0
    cut = objects.seen((0.5, 0.0, 1.0, 1.0))
    np.testing.assert_allclose(cut.boxes, [[0, 0.25, (71 - 56) / 56, 0.65]])
    assert (cut.area, cut.classes) == (41 * 32, 3)


def test_every_operation_that_moves_pixels_tells_where_or_is_refused():
    for name, function in OPS.items():
        declared = DECLARED[function]
        if declared.moves and not declared.says_where and "objects" not in declared.changes:
            with pytest.raises(UserError, match=r"moves what the image shows, but not .* objects"):
                pipeline_text.parse(f"decode|{name}", (SIDE, SIDE), placed=("objects",))


def test_nothing_moves_behind_the_padding():
    with pytest.raises(UserError, match="pad in pipeline comes behind all"):
        applied("fit((40, 90))|pad|central_crop(50)", 0, *scene())


def test_a_row_holds_the_objects_and_fills_up():
    rows = ObjectRows(3)
    _, objects = scene()
    row = rows.row({"objects": objects.padded(0.5, 1.0)}, lambda: "it")
    np.testing.assert_allclose(row["boxes"][0], [30 / 112, 0.25, 71 / 112, 0.65], rtol=1e-6)
    np.testing.assert_array_equal(row["class"], [3, -1, -1])
    np.testing.assert_array_equal(row["window"], [0, 0, 112, 80])
    np.testing.assert_array_equal(row["content"], [0.5, 1.0])
    assert {name: (v.shape, v.dtype) for name, v in row.items()} == {
        name: (v.shape, v.dtype) for name, v in rows.filler.items()
    }
    with pytest.raises(UserError, match="it has 1 objects, more than the 0 stated"):
        ObjectRows(0).row({"objects": objects}, lambda: "it")
    with pytest.raises(UserError, match="it gives labels and no boxes"):
        rows.row({"label": 3}, lambda: "it")


# -- sources -------------------------------------------------------------------------------------


def coco(folder: Path, annotations, images=((7, "a.jpg"), (3, "b.jpg")), categories=None):
    """A folder as COCO's: two images of 60 x 40 and a file of annotations."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    for _, name in images:
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "train2017" / name)
    record = {
        "images": [
            {"id": i, "file_name": name, "height": 40, "width": 60} for i, name in images
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": box, "iscrowd": crowd,
             "area": 5.5}
            for n, (image, label, box, crowd) in enumerate(annotations)
        ],
        "categories": categories or [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
    }  # fmt: skip
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(record))
    return f"coco:{folder}"


def test_cocos_ids_with_gaps_are_classes_in_their_order(tmp_path):
    name = coco(tmp_path, [(3, 90, [6, 4, 30, 20], 0), (3, 2, [0, 0, 60, 40], 1)])
    assert split_names(name) == ["train"]
    source = open_source(name, "train")
    assert (source.classes, len(source), source.max_objects) == (["cat", "dog"], 2, 2)
    assert len(source[0]["objects"]) == 0
    objects = source[1]["objects"]
    np.testing.assert_allclose(objects.boxes, [[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1]])
    assert (objects.classes.tolist(), objects.crowd.tolist()) == ([1, 0], [False, True])
    assert objects.area.tolist() == [5.5, 5.5]
    assert source.describe(1).endswith("train2017/b.jpg")
    assert "1 boxes are crowds" in source.notes[0]


def test_what_cannot_be_learned_is_counted(tmp_path):
    many = [(7, 2, [1, 1, 10, 10], 0)] * 20
    odd = [
        (7, 2, [50, 30, 20, 5], 0), (7, 2, [5, 5, 0, 9], 0), (7, 2, [5, 5, None, 9], 0),
        (7, 2, [70, 5, 4, 9], 0), (5, 2, [1, 1, 2, 2], 0),
    ]  # fmt: skip
    source = open_source(coco(tmp_path, many + odd), "train")
    assert len(source[0]["objects"]) == 21
    np.testing.assert_allclose(source[0]["objects"].boxes[-1], [50 / 60, 0.75, 1, 35 / 40])
    told = "\n".join(source.notes)
    for words in (
        "1 boxes have values that are no numbers", "2 boxes have no area in their image",
        "1 boxes leave their image, and are cut", "1 annotations are of images that the file",
    ):  # fmt: skip
        assert words in told


def test_edges_written_for_sides_are_noticed(tmp_path):
    boxes = [(7, 2, [20, 10, 55, 38], 0), (7, 2, [30, 5, 58, 39], 0), (3, 2, [1, 1, 5, 5], 0)]
    with pytest.raises(UserError, match=r"2 of 3 boxes do not fit .* as xywh; .* fit as xyxy: con"):
        open_source(coco(tmp_path, boxes), "train")


@pytest.mark.parametrize("odd", [[5, 5, 5, 5], [5, 5, float("nan"), 5]])
def test_one_odd_box_does_not_hide_the_format_of_the_others(tmp_path, odd):
    boxes = [(7, 2, [20, 10, 55, 38], 0), (7, 2, [30, 5, 58, 39], 0), (3, 2, [9, 9, 55, 35], 0)]
    with pytest.raises(UserError, match=r"of 4 boxes do not fit .* all but 1 would fit as xyxy:"):
        open_source(coco(tmp_path, [*boxes, (3, 2, odd, 0)]), "train")


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train", "train"), ("train_v2", "train_v2"), ("instances_train2017", "train"),
        ("instances_val_2014", "val"), ("fold1", "fold1"), ("instances_2017", "2017"),
    ],
)  # fmt: skip
def test_a_year_is_no_part_of_a_splits_name(tmp_path, file, split):
    (tmp_path / "annotations").mkdir()
    (tmp_path / f"annotations/{file}.json").write_text("{}")
    assert split_names(f"coco:{tmp_path}") == [split]


@pytest.mark.parametrize("what", ["images", "categories"])
def test_ids_of_images_and_classes_of_one_name_are_refused(tmp_path, what):
    record = {
        "images": [{"id": 1, "file_name": "a/1.jpg"}, {"id": 2, "file_name": "b/2.jpg"}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(record))
    assert coco_numbers(path) == ({"1.jpg": 1, "2.jpg": 2}, {"cat": 5})
    record[what].append(record[what][0] | {"id": 9})
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"val.json has 2 {what} of the name (1.jpg|cat)"):
        coco_numbers(path)


def test_crowds_of_another_number_than_boxes_are_an_error():
    with pytest.raises(ValueError, match="it has 2 boxes, and 1 values of iscrowd"):
        of_fields((9, 9), {"iscrowd": [1]}, np.ones((2, 4)), [0, 0])


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("", "no annotations of COCO"),
        ("[]", "no annotations of COCO"),
        ('{"images": []}', "no 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
        ('{"images": 3, "annotations": 4, "categories": 5}', "no annotations of COCO"),
    ],
)
def test_what_is_no_cocos_file_is_named(tmp_path, broken, said):
    name = coco(tmp_path, [])
    (tmp_path / "annotations/instances_train2017.json").write_text(broken)
    with pytest.raises(UserError, match=said):
        open_source(name, "train")


def test_the_folder_is_found_by_any_of_its_images(tmp_path):
    name = coco(tmp_path, [])
    (tmp_path / "train2017").rename(tmp_path / "images")
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(UserError, match=r"1 annotated images are not in .*/images, such as a.jpg"):
        open_source(name, "train")


def test_missing_images_and_folders_are_named(tmp_path):
    name = coco(tmp_path / "a", [])
    (tmp_path / "a/train2017/b.jpg").unlink()
    with pytest.raises(UserError, match=r"1 annotated images are not in .*, such as b.jpg"):
        open_source(name, "train")
    with pytest.raises(UserError, match=r"no split 'val'"):
        open_source(name, "val")
    with pytest.raises(UserError, match="is no folder"):
        open_source(f"coco:{tmp_path}/b", "train")
    with pytest.raises(UserError, match="has no annotations"):
        open_source(f"coco:{tmp_path}/a/train2017", "train")


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg"])
def test_images_outside_of_the_folder_are_refused(name, tmp_path):
    images = [{"id": 1, "file_name": name, "height": 4, "width": 4}]
    (tmp_path / "train.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": []})
    )
    with pytest.raises(UserError, match="lies outside of the folder"):
        open_source(f"coco:{tmp_path}", "train")


def test_two_years_of_a_split_are_splits_of_their_whole_names(tmp_path):
    name = coco(tmp_path, [])
    file = tmp_path / "annotations/instances_train2017.json"
    file.with_name("instances_train2014.json").write_text(file.read_text())
    (tmp_path / "train2014").symlink_to(tmp_path / "train2017")
    assert split_names(name) == ["train2014", "train2017"]
    assert open_source(name, "train2014").describe(0).endswith("train2014/a.jpg")
    with pytest.raises(UserError, match="has no split 'train'"):
        open_source(name, "train")


def test_a_box_of_other_than_four_numbers_is_left_out(tmp_path):
    boxes = [(7, 2, [], 0), (7, 2, [1] * 8, 0), (7, 2, [1, 1, 9, 9], 0)]
    source = open_source(coco(tmp_path, boxes), "train")
    assert len(source[0]["objects"]) == 1
    assert "2 boxes have values that are no numbers" in source.notes[0]


def test_an_image_of_another_size_than_its_annotation_is_refused(tmp_path):
    name = coco(tmp_path, [(7, 2, [1, 1, 9, 9], 0)])
    turned = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown with its sides exchanged
    turned.save(tmp_path / "train2017/a.jpg", exif=exif)
    parsed = pipeline_text.parse("decode|resize", (SIDE, SIDE), placed=("objects",))
    example = open_source(name, "train")[0]
    with pytest.raises(UserError, match="is of an image of 60 x 40 pixels, the file shows 40 x 60"):
        parsed.example(example | {"image": parsed.open(example["image"], 3)}, None)


def test_splits_of_a_set_with_boxes_are_joined():
    train, val = (open_source("digit_scenes:examples=3", split) for split in ("train", "val"))
    both = open_source("digit_scenes:examples=3", "train+val")
    assert (len(both), both.classes) == (6, train.classes)
    assert both.max_objects == max(train.max_objects, val.max_objects)
    for index, one in enumerate([train[n] for n in range(3)] + [val[n] for n in range(3)]):
        np.testing.assert_array_equal(both[index]["objects"].boxes, one["objects"].boxes)
        np.testing.assert_array_equal(both[index]["objects"].classes, one["objects"].classes)


def own_scenes(split):
    """A source of one's own, as `my_package.my_module:NAME` names it."""
    return open_source("digit_scenes:examples=3", split)


def test_a_source_of_ones_own_may_have_boxes():
    source = open_source("tests.data.test_objects:own_scenes", "train")
    assert source.max_objects == 4
    np.testing.assert_array_equal(
        source[1]["objects"].boxes, own_scenes("train")[1]["objects"].boxes
    )
    with pytest.raises(UserError, match="sources with boxes are not mixed"):
        open_source("digit_scenes + digit_scenes:seed=2", "train")


def test_scenes_and_crops_say_what_they_take():
    with pytest.raises(UserError, match="a side of 16 pixels at least"):
        open_source("digit_scenes:size=4", "train")
    for wrong in ("size_crop(8, 9, 0.5, 5)", "random_resize(())", "size_crop(9, 8)"):
        with pytest.raises(UserError, match=r"pipeline: (size_crop|random_resize) takes"):
            pipeline_text.parse(f"decode|{wrong}", (SIDE, SIDE))


OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def voc(folder: Path, objects, size=(60, 40)):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "JPEGImages/one.jpg")
    inside = "".join(OBJECT.format(*one) for one in objects)
    (folder / "Annotations/one.xml").write_text(
        f"<annotation><filename>one.jpg</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height></size>{inside}</annotation>"
    )
    (folder / "ImageSets/Main/train.txt").write_text("one\n")
    return f"voc:{folder}"


def test_vocs_pixels_count_from_one_and_difficult_objects_are_crowds(tmp_path):
    name = voc(tmp_path / "VOC2012", [("dog", 1, 1, 1, 60, 40), ("cat", 0, 7, 5, 36, 24)])
    assert name == f"voc:{tmp_path}/VOC2012"
    source = open_source(f"voc:{tmp_path}", "train")
    assert source.classes == ["cat", "dog"]
    objects = source[0]["objects"]
    np.testing.assert_allclose(objects.boxes, [[0, 0, 1, 1], [0.1, 0.1, 0.6, 0.6]])
    assert (objects.classes.tolist(), objects.crowd.tolist()) == ([1, 0], [True, False])


def test_names_with_spaces_and_lists_of_one_class(tmp_path):
    name = voc(tmp_path, [("dog", 0, 1, 1, 60, 40)])
    (tmp_path / "Annotations/one.xml").rename(tmp_path / "Annotations/my one.xml")
    (tmp_path / "ImageSets/Main/train.txt").write_text("my one\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("my one  -1\n")
    assert len(open_source(name, "train")) == len(open_source(name, "val")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<?xml version="1.0" encoding="foo"?><annotation/>', "unknown encoding"),
        ("<annotation>", "no element found"),
        ("<annotation/>", "it has no size/height"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "declares a document type"),
        (
            "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>".encode("utf-16"),
            "declares a document type",
        ),
    ],
)
def test_what_is_no_vocs_file_is_named(tmp_path, text, said):
    name = voc(tmp_path, [])
    (tmp_path / "Annotations/one.xml").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(UserError, match=rf"one.xml is no annotation of VOC: .*{said}"):
        open_source(name, "train")


def test_scenes_are_a_function_of_their_number_and_their_boxes_hold_their_digits():
    train, again = (open_source("digit_scenes:examples=50", "train") for _ in range(2))
    val = open_source("digit_scenes:examples=50", "val")
    counts = set()
    for index in range(50):
        example = train[index]
        np.testing.assert_array_equal(example["image"], again[index]["image"])
        objects = example["objects"]
        counts.add(len(objects))
        assert example["image"].shape == (64, 64, 1)
        outside = example["image"][..., 0].copy()
        for x1, y1, x2, y2 in np.round(objects.boxes * 64).astype(int):
            assert outside[y1:y2, x1:x2].max() >= 100  # ink
            assert 14 <= y2 - y1 <= 30
            outside[y1:y2, x1:x2] = 0
        assert outside.max() < 60
    assert counts == {1, 2, 3, 4}
    assert not np.array_equal(train[0]["image"], val[0]["image"])
    with pytest.raises(UserError, match="write it as digit_scenes:examples=4096"):
        open_source("digit_scenes:most=0", "train")


def test_a_crop_for_a_canvas_keeps_the_shape_of_objects():
    image, objects = scene(height=90, width=160)
    parsed = pipeline_text.parse("decode|canvas_crop(stretch=1.0)", (60, 120), placed=("objects",))
    areas = []
    for seed in range(40):
        example = {"image": parsed.open(image, 3), "objects": objects}
        moved = parsed.example(example, np.random.default_rng(seed))
        assert moved["image"].shape == (60, 120, 3)
        left, top, right, bottom = moved["objects"].window
        assert (right - left) / (bottom - top) == pytest.approx(2, rel=0.05)
        areas.append((right - left) * (bottom - top) / (160 * 80))  # 160 x 80 is the largest
    assert 0.28 < min(areas) < 0.4
    assert 0.9 < max(areas) <= 1
