"""Sets of the package `datasets`: read as it reads them, encoded bytes untouched."""

import numpy as np
import pytest
from made_images import encoded, folder_of_images, smooth

from vit_jax.data.decode import decode
from vit_jax.data.sources import facts, open_source
from vit_jax.errors import UserError

datasets = pytest.importorskip("datasets", reason="the package datasets comes with the peers")

FILES = [encoded(np.roll(smooth(), n, axis=1), "JPEG" if n % 2 else "PNG") for n in range(6)]


@pytest.fixture(autouse=True)
def _offline_and_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def saved(root, splits=("train", "test"), image="img", label="fine_label"):
    """A set as `save_to_disk` writes it, with CIFAR-100's names of columns."""
    features = datasets.Features(
        {image: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {image: [{"bytes": file, "path": None} for file in FILES], label: [0, 1] * 3}
    one = datasets.Dataset.from_dict(rows, features=features)
    whole = datasets.DatasetDict({name: one for name in splits}) if splits else one
    whole.save_to_disk(str(root))
    return f"hf:{root}"


def test_a_saved_set_has_its_splits_classes_and_bytes(tmp_path):
    spec = saved(tmp_path / "set")
    for split in ("train", "test"):
        source = open_source(spec, split)
        assert (len(source), source.classes, source.max_labels) == (6, ["cat", "dog"], 1)
        assert [source[n]["image"] for n in range(6)] == FILES
        assert [source[n]["label"] for n in range(6)] == [0, 1] * 3
    assert facts(spec, "train").num_examples == 6
    assert len(open_source(spec, "train+test")) == 12
    theirs = datasets.load_from_disk(str(tmp_path / "set"))["train"]
    for n in range(6):
        ours = decode(open_source(spec, "train")[n]["image"]).astype(int)
        assert np.abs(ours - np.asarray(theirs[n]["img"].convert("RGB"))).mean() <= 1


def test_a_column_is_chosen_where_several_could_be_it(tmp_path):
    two = datasets.ClassLabel(names=["x", "y", "z"])
    features = {"a": datasets.Image(), "fine": two, "coarse": datasets.ClassLabel(names=["x"])}
    rows = {"a": [{"bytes": FILES[0], "path": None}], "fine": [2], "coarse": [0]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.save_to_disk(str(tmp_path))
    assert open_source(f"hf:{tmp_path}?label=fine", "train")[0]["label"] == 2
    assert open_source(f"hf:{tmp_path}?label=coarse&image=a", "train").classes == ["x"]
    for query in ("", "?label=a", "?label=none"):
        with pytest.raises(UserError, match=r"needs \?label=COLUMN, one of fine, coarse"):
            open_source(f"hf:{tmp_path}{query}", "train")
    with pytest.raises(
        UserError, match=r"after \? stand config=, image=, .* or boxes=, not labels="
    ):
        open_source(f"hf:{tmp_path}?labels=fine", "train")


@pytest.mark.parametrize(
    ("values", "classes"), [([9, 10, 9], ["9", "10"]), (["wolf", "ant", "wolf"], ["ant", "wolf"])]
)
def test_plain_values_of_the_column_label_are_the_classes(tmp_path, values, classes):
    kind = datasets.Value("int64" if isinstance(values[0], int) else "string")
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    images = [{"bytes": file, "path": None} for file in FILES[:3]]

    def write(name, labels):
        made = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        made.save_to_disk(str(tmp_path / name))
        return f"hf:{tmp_path / name}"

    source = open_source(write("whole", values), "train")
    assert source.classes == classes
    assert [source.classes[source[n]["label"]] for n in range(3)] == [str(v) for v in values]
    unknown = write("unknown", [values[0], type(values[0])(1), values[0]])
    lacking = open_source(unknown, "train", classes)
    with pytest.raises(UserError, match=r"example 1 has the class .*, which training does not"):
        lacking[1]
    with pytest.raises(UserError, match="example 1 has no label: label it or take it out"):
        open_source(write("blank", [values[0], None, values[0]]), "train", classes)


def test_a_set_without_splits_is_its_training_split(tmp_path):
    spec = saved(tmp_path / "set", splits=())
    assert len(open_source(spec, "train")) == 6
    with pytest.raises(UserError, match="has no split 'val'"):
        open_source(spec, "val")


def test_a_folder_of_images_is_loaded_by_name(tmp_path):
    photos = folder_of_images(tmp_path / "photos", {"train/cat": 3, "train/dog": 2})
    source = open_source(f"hf:{photos}", "train")
    assert (len(source), source.classes) == (5, ["cat", "dog"])
    files = {file.read_bytes() for file in photos.rglob("*.jpg")}
    assert {source[n]["image"] for n in range(5)} == files


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("hf:SET", "has no split 'val': it has train, test"),
        ("hf:nobody/nothing", "hf:nobody/nothing cannot be loaded: "),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, spec, told):
    name = saved(tmp_path / "set")
    with pytest.raises(UserError, match=told) as error:
        open_source(spec.replace("hf:SET", name), "val")
    assert "\n" not in str(error.value)
