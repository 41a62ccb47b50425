"""Sets with boxes of the package `datasets`, with the columns that published ones have."""

import json

import numpy as np
import pytest
from made_images import encoded

from vit_jax import cli
from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError

datasets = pytest.importorskip("datasets", reason="the package datasets comes with the peers")

PICTURE = encoded(np.zeros((40, 60, 3), np.uint8))
SIDES = np.array([60, 40, 60, 40])
# x1, y1, x2, y2 of the objects of each image, and their classes.
BOXES = [[], [(6, 4, 36, 24)], [(20, 10, 60, 40), (30, 20, 50, 39)]]
CLASSES = [[], [1], [0, 1]]
NAMES = datasets.ClassLabel(names=["mask", "glove"])
ORDERS = {
    "xywh": lambda x1, y1, x2, y2: [x1, y1, x2 - x1, y2 - y1],
    "xyxy": lambda x1, y1, x2, y2: [x1, y1, x2, y2],
    "cxcywh": lambda x1, y1, x2, y2: [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
    "yxyx": lambda x1, y1, x2, y2: [y1, x1, y2, x2],
}


@pytest.fixture(autouse=True)
def _offline_and_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def stated(box, how):
    shares = how.startswith("rel_")
    return ORDERS[how.removeprefix("rel_")](*(np.array(box) / SIDES if shares else box))


def like_cppe(how="xywh", boxes=BOXES, classes=CLASSES, kind=NAMES, **others):
    """Features and rows as those of cppe-5 and of keremberke's sets: a list for each field."""
    features = {
        "image_id": datasets.Value("int64"), "image": datasets.Image(),
        "width": datasets.Value("int32"), "height": datasets.Value("int32"),
        "objects": {
            "id": datasets.Sequence(datasets.Value("int64")),
            "area": datasets.Sequence(datasets.Value("int64")),
            "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
            "category": datasets.Sequence(kind),
        },
    }  # fmt: skip
    rows = [
        {
            "image_id": n, "image": {"bytes": PICTURE, "path": None}, "width": 60, "height": 40,
            "objects": {
                "id": list(range(len(own))), "area": [11] * len(own),
                "bbox": [stated(box, how) for box in own], "category": of,
            },
        }
        for n, (own, of) in enumerate(zip(boxes, classes, strict=True))
    ]  # fmt: skip
    for name, (feature, value) in others.items():
        features[name] = feature
        rows = [row | {name: value} for row in rows]
    return features, rows


def saved(root, features, rows, query=""):
    """The name of a set as `save_to_disk` writes it."""
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    datasets.DatasetDict({"train": made}).save_to_disk(str(root))
    return f"hf:{root}{query}"


def check(source, classes=CLASSES, area=(11,)):
    for n, wanted in enumerate(BOXES):
        example = source[n]
        assert example["image"] == PICTURE
        objects = example["objects"]
        pixels = objects.boxes * SIDES
        np.testing.assert_allclose(pixels, np.reshape(wanted, (-1, 4)), atol=1e-4)
        assert objects.classes.tolist() == classes[n]
        assert set(objects.area.tolist()) <= set(area)
        assert not objects.crowd.any()
        assert objects.window == (0, 0, 60, 40)


def test_a_list_for_each_field_as_in_cppe5(tmp_path):
    name = saved(tmp_path, *like_cppe())
    assert split_names(name) == ["train"]
    source = open_source(name, "train")
    assert (source.classes, len(source), source.max_objects) == (["mask", "glove"], 3, 2)
    assert source.notes == ()
    check(source)


def test_a_list_of_objects_and_sizes_from_the_headers(tmp_path):
    features, rows = like_cppe()
    inside = {name: of.feature for name, of in features["objects"].items() if name != "area"}
    features["objects"] = [inside | {"iscrowd": datasets.Value("bool")}]
    for row in rows:
        fields = row["objects"]
        row["objects"] = [
            dict(id=i, bbox=box, category=of, iscrowd=False)
            for i, box, of in zip(*(fields[k] for k in ("id", "bbox", "category")), strict=True)
        ]
        del row["width"]
    del features["width"]
    check(open_source(saved(tmp_path, features, rows), "train"), area=(600, 1200, 380))


@pytest.mark.parametrize("how", [f"{rel}{order}" for rel in ("", "rel_") for order in ORDERS])
def test_boxes_of_every_format_that_is_named(how, tmp_path):
    check(open_source(saved(tmp_path, *like_cppe(how), f"?boxes={how}"), "train"))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "xyxy",
            r"2 of 3 boxes do not fit into their images, read as xywh; .* as xyxy: .*\?boxes=xyxy",
        ),
        ("rel_xywh", r"3 of 3 boxes do not fit .*, read as xywh; all would fit as rel_xywh"),
    ],
)
def test_another_format_than_cocos_is_noticed(how, told, tmp_path):
    name = saved(tmp_path, *like_cppe(how))
    with pytest.raises(UserError, match=told):
        open_source(name, "train")
    check(open_source(f"{name}?boxes={how}", "train"))


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [
        ("string", [[], ["wolf"], ["ant", "wolf"]], ["ant", "wolf"]),
        ("int64", [[], [10], [9, 10]], ["9", "10"]),
    ],
)
def test_plain_values_are_the_classes(kind, values, classes, tmp_path):
    features, rows = like_cppe(classes=values, kind=datasets.Value(kind))
    name = saved(tmp_path, features, rows)
    source = open_source(name, "train")
    assert source.classes == classes
    check(source)
    assert open_source(name, "train", ["0", *classes])[1]["objects"].classes.tolist() == [2]
    with pytest.raises(
        UserError, match=r"example 1: an object has the class .* none of the 1 class"
    ):
        open_source(name, "train", classes[:1])


def test_columns_are_named_and_a_column_of_labels_is_asked_for(tmp_path):
    features, rows = like_cppe(label=(datasets.ClassLabel(names=["x", "y"]), 1))
    features["things"] = features.pop("objects")
    features["things"]["kind"] = features["things"].pop("category")
    for row in rows:
        row["things"] = row.pop("objects")
        row["things"]["kind"] = row["things"].pop("category")
    name = saved(tmp_path, features, rows)
    check(open_source(f"{name}?objects=things&category=kind", "train"))
    labelled = open_source(name, "train")
    assert (labelled[0]["label"], labelled.max_objects) == (1, 0)
    with pytest.raises(UserError, match=r"needed, as \?category=FIELD: one of id, area, kind"):
        open_source(f"{name}?objects=things", "train")
    for column in ("objects", "label"):
        with pytest.raises(UserError, match=f"has no column '{column}' of objects with bbox"):
            open_source(f"{name}?objects={column}", "train")
    with pytest.raises(UserError, match="boxes=xy is none of xywh, xyxy"):
        open_source(f"{name}?objects=things&category=kind&boxes=xy", "train")


def test_a_set_with_both_has_boxes_unless_its_labels_are_named(tmp_path):
    features, rows = like_cppe(label=(datasets.ClassLabel(names=["x", "y"]), 1))
    name = saved(tmp_path, features, rows)
    assert open_source(name, "train").max_objects == 2
    assert open_source(f"{name}?label=label", "train")[0]["label"] == 1


def test_what_cannot_be_learned_is_counted(tmp_path):
    boxes = [*[[(6, 4, 36, 24)]] * 9, [(5, 5, 5, 9)], [(float("nan"), 5, 6, 9)], [(50, 30, 70, 35)]]
    name = saved(tmp_path, *like_cppe(boxes=boxes, classes=[[0]] * 12))
    source = open_source(name, "train")
    assert [len(source[n]["objects"]) for n in range(8, 12)] == [1, 0, 0, 1]
    told = "\n".join(source.notes)
    for words in ("1 boxes have values", "1 boxes have no area", "1 boxes leave their image"):
        assert words in told


def broken(change):
    features, rows = like_cppe()
    change(features, rows)
    return features, rows


def no_boxes(features, rows):
    rows[2]["objects"] = {"id": None, "area": None, "bbox": None, "category": None}


def test_an_image_without_a_list_has_no_objects(tmp_path):
    source = open_source(saved(tmp_path, *broken(no_boxes)), "train")
    assert [len(source[n]["objects"]) for n in range(3)] == [0, 1, 0]


def one_class_less(_, rows):
    rows[2]["objects"]["category"] = [0]


def no_class(_, rows):
    rows[2]["objects"]["category"] = [0, None]


def no_size(_, rows):
    rows[2]["width"] = None


def no_pixels(_, rows):
    rows[2]["width"] = 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (one_class_less, "example 2: it has 2 boxes, 1 classes and 2 areas"),
        (no_class, "example 2: an object has the class None, which is none of the 2 classes"),
        (no_size, "example 2: int"),
        (no_pixels, "example 2: its size is 0 x 40"),
    ],
)
def test_what_does_not_fit_together_is_one_line_with_its_example(change, told, tmp_path):
    name = saved(tmp_path, *broken(change))
    with pytest.raises(UserError, match=told) as error:
        open_source(name, "train")
    assert "\n" not in str(error.value)


def test_a_run_is_another_one_when_a_box_has_moved(tmp_path):
    one, same = (open_source(saved(tmp_path / n, *like_cppe()), "train") for n in "ab")
    boxes = [[], [(7, 4, 36, 24)], BOXES[2]]
    other = open_source(saved(tmp_path / "c", *like_cppe(boxes=boxes)), "train")
    assert one.names_hash == same.names_hash != other.names_hash


def test_check_works_on_it_and_the_wrong_task_is_one_line(tmp_path, capsys):
    crowd = [[(6, 4, 36, 24), (70, 4, 90, 9)]] + [[(6, 4, 36, 24)]] * 2
    name = saved(tmp_path / "set", *like_cppe(boxes=crowd, classes=[[0, 1], [1], [1]]))
    assert cli.main(["data", "check", name, f"--json={tmp_path}/report.json"]) == 1  # equal bytes
    report = json.loads((tmp_path / "report.json").read_text())
    assert "1 boxes have no area in their image" in report["notes"][0]["note"]
    assert report["splits"]["train"]["classes"] == 2
    capsys.readouterr()
    command = ["train", "--config=digits.py", f"--config.data.train.source={name}"]
    assert cli.main([*command, f"--workdir={tmp_path}/run", "--config.data.eval.split="]) == 2
    said = capsys.readouterr().err
    assert "gives boxes and no labels: --config.task=detection; a set of tfds: or hf: that" in said
    assert said.count("\n") == 1
