"""Which folders and rows are a split, and which trees are refused."""

import zlib
from collections import Counter

import pytest
from made_images import folder_of_images

from vit_jax.data.sources import facts, open_source, split_names
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
            "--config.data.eval.split=Test; on nothing: --config.data.eval.split=; "
            "on a tenth of training: ?val=0.1 behind the source",
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
    for name in names:
        (tmp_path / name).touch()
    rows = [f"{name},{name[0]}" for name in names]
    for place in ("one", "two"):
        (tmp_path / f"{place}.csv").write_text("\n".join(["image,label", *rows]))
        rows.reverse()
    first, second = (open_source(f"csv:{tmp_path}/{p}.csv", "val") for p in ("one", "two"))
    assert sorted(first.name(n) for n in range(4)) == sorted(second.name(n) for n in range(4))
    assert {first.name(n)[0] for n in range(len(first))} == {"0", "1"}


# -- another share -------------------------------------------------------------------------------


def names(spec, split, classes=None):
    """The images of a split, by class and file."""
    source = open_source(spec, split, classes)
    return {"/".join(source.describe(n).rsplit("/", 2)[1:]) for n in range(len(source))}


@pytest.mark.parametrize(("share", "count"), [("0.1", 2), ("0.25", 5), ("0.3", 6), (".999", 19)])
def test_a_share_of_each_class_is_held_out(tmp_path, share, count):
    root = folder_of_images(tmp_path, {"oak": 20, "elm": 20})
    spec = f"folder:{root}?val={share}"
    assert split_names(spec) == ["train", "val"]
    held, rest = names(spec, "val"), names(spec, "train")
    assert Counter(name.partition("/")[0] for name in held) == {"oak": count, "elm": count}
    assert (len(held | rest), held & rest) == (40, set())
    order = sorted((f"elm/{n}.jpg" for n in range(20)), key=lambda name: zlib.crc32(name.encode()))
    assert set(order[:count]) <= held
    if share == "0.1":
        assert held == names(f"folder:{root}", "val")


def test_val_is_taken_out_of_training_where_a_folder_has_only_test(tmp_path):
    root = folder_of_images(tmp_path, {"Train/oak": 9, "Train/elm": 6, "test/oak": 3})
    spec = f"folder:{root}?val=0.34"
    assert split_names(spec) == ["Train", "val", "test"]
    held, rest = names(spec, "val"), names(spec, "train")
    assert Counter(name.partition("/")[0] for name in held) == {"oak": 3, "elm": 2}
    assert held | rest == names(f"folder:{root}", "train")
    assert not held & rest
    assert names(spec, "test") == names(f"folder:{root}", "test")


@pytest.mark.parametrize("share", ["0", "1", "-0.1", "1.5", "nan", "inf", "", "10%", "1e-999", "x"])
def test_a_share_outside_of_0_to_1_is_refused(tmp_path, share):
    (folder_of_images(tmp_path, {"oak": 2, "elm": 2}) / "t.csv").write_text("image,label\n")
    for spec in (f"folder:{tmp_path}?val={share}", f"csv:{tmp_path}/t.csv?val={share}"):
        with pytest.raises(UserError, match=r"a number between 0 and 1, such as val=0\.1"):
            open_source(spec, "train")


@pytest.mark.parametrize(
    ("counts", "options", "split", "says"),
    [
        ({"oak": 2}, "?vall=0.1", "train", "after ? stands val=, not vall="),
        ({"oak": 2}, "?val=0.1&val=0.2", "train", "val= stands there twice"),
        ({"train/a": 2, "Dev/a": 1}, "?val=0.1", "train", "the split 'Dev' already: leave ?val="),
        ({"test/a": 2, "b": 1}, "?val=0.1", "val", "has no split 'train': it has test"),
        ({"train/a": 2}, "?val", "train", "an option is written as ?val=0.1"),
    ],
)
def test_an_option_of_a_folder_that_cannot_be_is_refused(tmp_path, counts, options, split, says):
    root = folder_of_images(tmp_path, counts)
    with pytest.raises(UserError) as error:
        open_source(f"folder:{root}{options}", split)
    assert says in str(error.value)


# -- several together ----------------------------------------------------------------------------


def test_splits_are_joined_wherever_one_is_named(tmp_path):
    counts = {"train/oak": 3, "train/elm": 2, "valid/elm": 1, "valid/yew": 2, "test/oak": 4}
    root = folder_of_images(tmp_path, counts)
    spec = f"folder:{root}"
    source = open_source(spec, "train + val")
    assert source.classes == ["elm", "oak", "yew"]
    found = {source.describe(n): source.classes[source[n]["label"]] for n in range(len(source))}
    assert Counter(found.values()) == {"oak": 3, "elm": 3, "yew": 2}
    assert all(f"/{name}/" in file for file, name in found.items())
    assert facts(spec, "train+valid+test").num_examples == 12
    assert len(open_source(spec, "val+test", source.classes)) == 7
    assert open_source(spec, "train+val").names_hash != open_source(spec, "train+test").names_hash
    with pytest.raises(UserError, match="has the class 'yew', which training does not know"):
        open_source(spec, "test+val", ["elm", "oak"])


@pytest.mark.parametrize(
    ("spec", "split", "count"),
    [
        ("digits", "train+val", 1797), ("synthetic:examples=7", "val+train", 14),
        ("folder:{}/set", "train+val", 12), ("csv:{}/t.csv", "val+train", 12),
        ("folder:{}/folds", "part1+part2", 4), ("folder:{}/set + folder:{}/set", "train+val", 24),
    ],
)  # fmt: skip
def test_every_source_joins_its_splits(tmp_path, spec, split, count):
    folder_of_images(tmp_path / "set", {"oak": 6, "elm": 5, "yew": 1})
    folder_of_images(tmp_path / "folds", {"part1/a": 1, "part1/b": 2, "part2/a": 1, "part3/b": 1})
    rows = [f"set/{k}/{n}.jpg,{k}" for k, c in (("oak", 6), ("elm", 5), ("yew", 1))
            for n in range(c)]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    source = open_source(spec.replace("{}", str(tmp_path)), split)
    assert len(source) == count
    assert not any("held out" in note for note in source.notes)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("train+vall", "has no split 'vall': it has train, valid"),
        ("train+", "has no split ''"),
        ("valid+val", "the split 'valid+val' has 'valid' twice"),
    ],
)
def test_splits_that_cannot_be_joined_are_refused(tmp_path, split, says):
    root = folder_of_images(tmp_path, {"train/oak": 2, "valid/oak": 1})
    with pytest.raises(UserError, match=says.replace("+", r"\+")):
        open_source(f"folder:{root}", split)


def test_a_split_may_have_a_plus_in_its_name(tmp_path):
    root = folder_of_images(tmp_path, {"train/oak": 2})
    (root / "t.csv").write_text("image,label,split\ntrain/oak/0.jpg,a,train+val\n")
    assert len(open_source(f"csv:{root}/t.csv", "train+val")) == 1


# -- flat splits ---------------------------------------------------------------------------------


def test_a_split_without_folders_of_classes_says_which_table_to_read(tmp_path):
    root = folder_of_images(tmp_path / "set", {"train/oak": 2, "train/elm": 2, "val": 3})
    assert len(open_source(f"folder:{root}", "train")) == 4
    with pytest.raises(
        UserError, match=f"{root}/val holds images directly, .*csv:TABLE.root={root}/val"
    ):
        open_source(f"folder:{root}", "val")
    (root / "answers.csv").touch()
    with pytest.raises(UserError, match=rf"csv:{root}/answers.csv\?root=val"):
        open_source(f"folder:{root}", "val")
    flat = folder_of_images(tmp_path / "flat", {"train": 2, "valid": 2})
    for split in ("train", "valid"):
        (flat / split / "_classes.csv").write_text("filename,a,b\n0.jpg,0,1\n1.jpg,1,0\n")
    with pytest.raises(UserError, match=f"labels of a table are read by csv:{flat}$"):
        open_source(f"folder:{flat}", "train")
    assert len(open_source(f"csv:{flat}", "val")) == 2
