"""Which folders and rows are a split, and which trees are refused."""

import pytest
from made_images import folder_of_images

from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError


@pytest.mark.parametrize(
    ("names", "asked", "taken"),
    [
        (["TRAIN", "TEST"], "train", "TRAIN"),
        (["Training", "Testing"], "test", "Testing"),
        (["train", "Valid", "test"], "val", "Valid"),
        (["train", "dev"], "val", "dev"),
        (["train", "Evaluation"], "val", "Evaluation"),
        (["train", "val", "validation"], "val", "val"),
    ],
)
def test_a_split_is_the_folder_that_means_it(tmp_path, names, asked, taken):
    counts = {f"{name}/{kind}": 2 for name in names for kind in ("oak", "elm")}
    root = folder_of_images(tmp_path, counts)
    assert open_source(f"folder:{root}", asked).root == root / taken
    assert sorted(split_names(f"folder:{root}")) == sorted(names)
    rows = [f"{n}/oak/{i}.jpg,oak,{n}" for n in names for i in range(2)]
    (root / "t.csv").write_text("\n".join(["image,label,split", *rows]))
    table = open_source(f"csv:{root}/t.csv", asked)
    assert {table.name(i).partition("/")[0] for i in range(len(table))} == {taken}


@pytest.mark.parametrize(
    ("counts", "split", "says"),
    [
        ({"train/a": 1, "valid/a": 1, "Dev/a": 1}, "val", "Dev and valid all mean the split 'val'"),
        (
            {"train/a": 1, "Test/a": 1}, "val",
            "has no split 'val': it has train, Test; evaluate on Test: "
            "--config.data.eval.split=Test; on nothing: --config.data.eval.split=",
        ),
        ({"Test/a": 1}, "train", "train on Test: --config.data.train.split=Test"),
        (
            {"part1/a": 1, "part1/b": 1, "part2/a": 1, "part2/b": 1}, "train",
            "--config.data.train.split=part1 --config.data.eval.split=part2",
        ),
        ({"a/train": 1, "a/test": 1, "b/train": 1}, "train", "/train/a and "),
        ({"set/train/a": 1, "set/val/a": 1}, "train", "/set"),
        ({"train": 2, "test": 1}, "train", "test, train are splits by their names"),
    ],
)  # fmt: skip
def test_a_tree_or_a_split_that_cannot_be_read_says_what_to_write(tmp_path, counts, split, says):
    root = folder_of_images(tmp_path, counts)
    with pytest.raises(UserError) as error:
        open_source(f"folder:{root}", split)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_may_be_called_train(tmp_path):
    root = folder_of_images(tmp_path, {"bus": 3, "train": 3, "tram": 3})
    assert open_source(f"folder:{root}", "train").classes == ["bus", "train", "tram"]


def test_a_stray_image_makes_no_class_of_a_split(tmp_path):
    root = folder_of_images(tmp_path, {"train": 1, "train/a": 2, "train/b": 2, "val/a": 1})
    train = open_source(f"folder:{root}", "train")
    assert train.classes == ["a", "b"]
    assert any("beside the folders of classes: 1 file is left out" in n for n in train.notes)


def test_a_part_of_folds_is_read_where_it_is_named(tmp_path):
    root = folder_of_images(tmp_path, {"part1/a": 1, "part1/b": 1, "part2/a": 1, "part2/b": 1})
    assert open_source(f"folder:{root}", "part1").classes == ["a", "b"]


def test_every_class_is_held_out_from_and_the_note_says_that_it_is_few(tmp_path):
    root = folder_of_images(tmp_path, {"a": 25, "b": 3, "c": 1})
    val = open_source(f"folder:{root}", "val")
    assert [val[n]["label"] for n in range(len(val))] == [0, 0, 1]
    assert any("3 images are held out" in n and "29 points" in n for n in val.notes)
    names = [f"{n % 2}.{n}.jpg" for n in range(40)]
    rows = [f"{name},{name[0]}" for name in names]
    for place in ("one", "two"):
        (tmp_path / f"{place}.csv").write_text("\n".join(["image,label", *rows]))
        rows.reverse()
    first, second = (open_source(f"csv:{tmp_path}/{p}.csv", "val") for p in ("one", "two"))
    assert sorted(first.name(n) for n in range(4)) == sorted(second.name(n) for n in range(4))
    assert {first.name(n)[0] for n in range(len(first))} == {"0", "1"}
