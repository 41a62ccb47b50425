"""Tables as people have them: names of columns, separators, a column a class, ids, folders."""

import zlib
from collections import Counter

import pytest
from made_images import encoded, smooth

from vit_jax.data.sources import open_source, split_names
from vit_jax.errors import UserError

PICTURE = encoded(smooth(6, 6), "PNG")


@pytest.fixture
def table(tmp_path):
    """Writes `t.csv` beside nine images; returns how a source of it is named."""

    def write(text, options="", files=tuple(f"leaf{n}.png" for n in range(9)), encoding="utf-8"):
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(PICTURE)
        (tmp_path / "t.csv").write_text(text, encoding=encoding)
        return f"csv:{tmp_path}/t.csv{options}"

    return write


def rows(spec, split="train+val"):
    """{file: the names of its classes}, of everything that a table has."""
    source = open_source(spec, split)
    found = {}
    for index in range(len(source)):
        label = source[index]["label"]
        numbers = label if isinstance(label, list) else [label]
        name = source.describe(index).rpartition("/")[2]
        found[name] = [source.classes[number] for number in numbers]
    return found


def refused(spec, split="train"):
    with pytest.raises(UserError) as error:
        open_source(spec, split)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- which column is what --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        "image,label", "filename,class", "File Name,Target", "path,category", "image_id,dx",
        "id,breed", "Image Index,labels", "img,species", "id_code,diagnosis", "foto,art",
    ],
)  # fmt: skip
def test_columns_of_usual_names_are_found(table, head):
    spec = table(f"{head}\nleaf0.png,oak\nleaf1.png,elm\nleaf2.png,oak\n")
    assert rows(spec) == {"leaf0.png": ["oak"], "leaf1.png": ["elm"], "leaf2.png": ["oak"]}
    notes = open_source(spec, "train").notes
    image, label = head.split(",")
    said = f"images from the column {image}, classes from {label}"
    assert any(said in note for note in notes) == (head != "image,label")


def test_of_several_columns_of_images_it_is_the_one_whose_cell_is_there(table):
    spec = table("id,filename,class\n7,leaf0.png,oak\n8,leaf1.png,elm\n")
    assert rows(spec) == {"leaf0.png": ["oak"], "leaf1.png": ["elm"]}


def test_a_column_that_an_option_names_is_no_other(table):
    spec = table("file,name,set,subset\nleaf0.png,oak,train,val\nleaf1.png,elm,train,val\n")
    assert "2 columns that may be its split (set, subset)" in refused(spec)
    spec += "?split=set"
    assert rows(f"{spec}&label=name", "train") == {"leaf0.png": ["oak"], "leaf1.png": ["elm"]}
    assert rows(f"{spec}&label=subset&image=file", "train")["leaf0.png"] == ["val"]


def test_options_name_columns(table):
    spec = table(
        "label,a & b,kind,part\nx,leaf0.png,oak,fit\ny,leaf1.png,elm,exam\n",
        "?image=a %26 b&label=kind&split=part",
    )
    assert split_names(spec) == ["exam", "fit"]
    assert (rows(spec, "fit"), rows(spec, "exam")) == (
        {"leaf0.png": ["oak"]}, {"leaf1.png": ["elm"]},
    )  # fmt: skip
    assert not open_source(spec, "fit").notes


@pytest.mark.parametrize(
    ("head", "options", "says"),
    [
        ("image,label", "?labels=label", "image=, label=, split=, root= or val=, not labels="),
        ("image,label", "?label=kind", "t.csv has no column 'kind': it has image, label"),
        ("image,label", "?label=label&label=image", "label= stands there twice"),
        ("image,label", "?split=", "split= names nothing"),
        ("image,kind,kind", "?label=kind", "has the column 'kind' twice"),
        ("file,class,target", "", "t.csv?label=class or csv:"),
        ("path,filename,class", "", "2 columns that may be its image (path, filename)"),
        ("image,width,height", "", "no column 'label' nor another usual name of it"),
        ("a,b,c", "", "2 columns that may be its image (a, b)"),
        ("b", "?label=b", "t.csv?label=b&image=COLUMN"),
        ("image", "", "t.csv?label=COLUMN, or label=A,B,C if each class has a column"),
    ],
)
def test_a_column_that_is_not_clear_is_refused_with_what_to_write(table, head, options, says):
    width = head.count(",") + 1
    cells = ["leaf0.png"] * min(2, width) + ["3"] * (width - 2) if width > 1 else ["3"]
    text = f"{head}\n{','.join(cells)}\n"
    said = refused(table(text, options))
    assert says in said
    assert "it has" in said or "?" in options


def test_a_question_mark_may_stand_in_a_path(tmp_path, table):
    (tmp_path / "what?").mkdir()
    (tmp_path / "what?" / "t.csv").write_text("file,class\n../leaf0.png,oak\n")
    table("")
    assert rows(f"csv:{tmp_path}/what?/t.csv?label=class", "train") == {"leaf0.png": ["oak"]}
    assert "an option is written as ?label=COLUMN" in refused(f"csv:{tmp_path}/t.csv?label")


def test_other_names_of_splits_are_taken_where_they_say_splits(table):
    lines = "leaf0.png,oak,training\nleaf1.png,elm,Valid\n"
    assert split_names(table(f"file,class,subset\n{lines}")) == ["training", "Valid"]
    assert split_names(table("file,class,set\nleaf0.png,oak,3\n", "?label=class")) == [
        "train", "val",
    ]  # fmt: skip


def test_a_table_with_image_and_label_is_read_as_ever(table):
    spec = table("image,label,set\nleaf0.png,oak,train\nleaf1.png,elm,test\nleaf2.png,oak,val\n")
    assert split_names(spec) == ["train", "val"]  # held out by a hash, as before there were options
    assert any("?split=set does" in note for note in open_source(spec, "train").notes)
    assert split_names(f"{spec}?split=set") == ["train", "val", "test"]
    both = table("image,label,set,usage\nleaf0.png,oak,train,test\nleaf1.png,elm,val,test\n")
    assert split_names(both) == ["train", "val"]


# Of rows i of 40: from the version that read image, label and split alone. Runs are continued by
# these texts.
HASHES = {
    ("split", "train"): "5a3daf7ee3969143d0a6c28fb1bb0043",
    ("split", "val"): "73d83e6d8f7bc39fff16a2543c7bb85f",
    ("several", "train"): "14ade68328ce303496175882d3e523c5",
    ("several", "val"): "5b3e807ce757a3d6e4220a3fe2345e1c",
    ("twice", "train"): "831e22ca87bb34a420f89de884c3a3af",
    ("twice", "val"): "5f4140798a899e000852ef84b9cc480e",
}
TEXTS = {
    "split": ("image,label,split", lambda n: f"{n % 3},{'val' if n % 5 == 4 else 'train'}"),
    "several": ("image,label", lambda n: "x;y" if n % 2 else "z"),
    "twice": ("image,label,set,label", lambda n: f"q{n % 4},train,k{n % 2}"),
}


@pytest.mark.parametrize(("kind", "split"), HASHES)
def test_the_names_of_a_table_that_was_read_before_have_the_same_hash(table, kind, split):
    head, rest = TEXTS[kind]
    files = [f"p{n}.png" for n in range(40)]
    spec = table("\n".join([head, *(f"p{n}.png,{rest(n)}" for n in range(40))]), "", files)
    assert open_source(spec, split).names_hash == HASHES[kind, split]


# -- separators and characters ---------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_are_noticed_and_labels_have_theirs(table, separator, encoding):
    lines = [["filename", "class"], ["leaf0.png", '"Eiche; Ulme"'], ["leaf1.png", "Bärlauch"]]
    spec = table("\n".join(map(separator.join, lines)), encoding=encoding)
    assert rows(spec) == {"leaf0.png": ["Eiche", "Ulme"], "leaf1.png": ["Bärlauch"]}


def test_a_label_of_many_semicolons_makes_no_table_of_semicolons(table):
    spec = table("image,label\nleaf0.png,a;b;c\nleaf1.png,a\n")
    assert rows(spec) == {"leaf0.png": ["a", "b", "c"], "leaf1.png": ["a"]}


def test_a_table_in_another_encoding_says_how_to_save_it(table):
    assert "save it as UTF-8" in refused(table("image,label\nleaf0.png,Grün\n", encoding="cp1252"))


# -- a column a class ------------------------------------------------------------------------------


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("True", "False")])
def test_a_column_of_each_class_is_one_label_or_several(table, yes, no):
    flags = {"leaf0.png": (0, 1, 0), "leaf1.png": (0, 0, 1), "leaf2.png": (0, 1, 0)}

    def write():
        lines = [",".join([name, *(yes if f else no for f in of)]) for name, of in flags.items()]
        return table("\n".join(["filename, yew, oak, elm", *lines]))

    source = open_source(write(), "train+val")
    assert (source.classes, source.max_labels) == (["yew", "oak", "elm"], 1)
    assert rows(write()) == {"leaf0.png": ["oak"], "leaf1.png": ["elm"], "leaf2.png": ["oak"]}
    assert any("a column for each class: yew, oak, elm" in note for note in source.notes)
    flags["leaf1.png"] = (1, 0, 1)
    assert open_source(write(), "train+val").max_labels == 2
    assert rows(write())["leaf1.png"] == ["yew", "elm"]
    flags["leaf1.png"] = (0, 0, 0)
    assert "line 3 has no label" in refused(write())


def test_columns_of_classes_are_named_beside_others(table):
    spec = table("file,age,oak,elm\nleaf0.png,40,1,0\nleaf1.png,7,0,1\n", "?label=oak,elm")
    assert rows(spec) == {"leaf0.png": ["oak"], "leaf1.png": ["elm"]}


@pytest.mark.parametrize("odd", ["2", "", "-1", "yes"])
def test_a_column_of_a_class_holds_0_or_1(table, odd):
    said = refused(table(f"file,oak,elm\nleaf0.png,1,0\nleaf1.png,0,{odd}\n"))
    assert f"line 3: the column 'elm' holds '{odd}'; a column for each class holds 0 or 1" in said


def test_one_column_of_0_and_1_holds_the_classes_0_and_1(table):
    spec = table("id,has_spots\nleaf0.png,1\nleaf1.png,0\n")
    assert rows(spec) == {"leaf0.png": ["1"], "leaf1.png": ["0"]}


# -- where images are ------------------------------------------------------------------------------


def test_names_without_an_ending_are_those_of_images(table):
    files = ("0a1b.JPEG", "0a1c.png", "sub/0a.1d.webp", "0a1e", "0a1e.png", "0a1f.txt", "0a1f.tif")
    spec = table("id,class\n0a1b,oak\n0a1c,elm\nsub\\0a.1d,elm\n0a1e,oak\n 0a1f ,oak\n", "", files)
    assert sorted(rows(spec)) == ["0a.1d.webp", "0a1b.JPEG", "0a1c.png", "0a1e", "0a1f.tif"]


def test_a_name_that_may_be_two_images_is_refused(table):
    spec = table("id,class,split\n7,oak,a\n9,elm,b\n", "", ("7.png", "9.jpg", "9.png"))
    assert "line 3: the image 9 may be 9.jpg or 9.png: write its ending" in refused(spec, "b")


def test_images_lie_beside_the_table_or_in_its_root(table, tmp_path):
    text = "id,class\nx1,oak\nx2,elm\n"
    spec = table(text, "", ("pictures/x1.png", "pictures/x2.png"))
    assert f"2 of its 2 images are not in {tmp_path}, such as x" in refused(spec, "train+val")
    assert "say where they lie: ?root=pictures" in refused(spec, "train+val")
    for root in ("pictures", f"{tmp_path}/pictures", "./pictures/../pictures"):
        assert sorted(rows(f"{spec}?root={root}")) == ["x1.png", "x2.png"]
    assert f"there is no folder {tmp_path}/pictuers" in refused(f"{spec}?root=pictuers")


def test_images_that_are_not_there_are_counted_and_the_first_is_named(table, tmp_path):
    lines = "leaf0.png,oak,fit\nleaf77.png,elm,fit\nleaf78.png,elm,fit\nleaf79.png,oak,exam\n"
    spec = table(f"image,label,split\n{lines}")
    assert refused(spec, "fit") == (
        f"{tmp_path}/t.csv: 2 of its 3 images are not in {tmp_path}, such as leaf77.png: put them "
        "there, or take their rows out"
    )
    assert f"1 of its 1 images is not in {tmp_path}: leaf79.png: say where" in refused(spec, "exam")


# -- a table a split -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{}.csv", "{}/_classes.csv"])
def test_a_folder_has_a_table_for_each_split(tmp_path, place):
    for split, count in (("train", 6), ("valid", 3)):
        file = tmp_path / place.format(split)
        file.parent.mkdir(exist_ok=True)
        names = [f"{split}{n}.png" for n in range(count)]
        for name in names:
            (file.parent / name).write_bytes(PICTURE)
        lines = [f"{name},{n % 2},{1 - n % 2}" for n, name in enumerate(names)]
        file.write_text("\n".join(["filename, oak, elm", *lines]))
    spec = f"csv:{tmp_path}"
    assert split_names(spec) == ["train", "valid"]
    train, val = open_source(spec, "train"), open_source(spec, "val", ["oak", "elm"])
    assert (len(train), len(val), train.classes) == (6, 3, ["oak", "elm"])
    assert rows(spec, "val") == {
        "valid0.png": ["elm"],
        "valid1.png": ["oak"],
        "valid2.png": ["elm"],
    }
    assert len(open_source(spec, "train+val")) == 9
    assert "valid, which" not in refused(f"{spec}?val=0.5")
    assert "has the split 'valid' already: leave ?val= out" in refused(f"{spec}?val=0.5")
    (tmp_path / place.format("valid")).unlink()
    assert split_names(f"{spec}?val=0.34") == ["train", "val"]
    held = [len(open_source(f"{spec}?val=0.34", split)) for split in ("train", "val")]
    assert held == [4, 2]  # a third of each class


def test_a_folder_without_tables_of_splits_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n")
    assert "is a folder without train.csv, val.csv" in refused(f"csv:{tmp_path}")


# -- what is held out ------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "counts"), [("0.3", (6, 3)), ("0.05", (1, 1)), ("1e-1", (2, 1))])
def test_a_share_of_each_class_is_held_out_by_its_hash(table, share, counts):
    files = [f"{n}.png" for n in range(30)]
    kinds = ["oak" if n < 20 else "elm" for n in range(30)]
    lines = [f"{name},{kind}" for name, kind in zip(files, kinds, strict=True)]
    spec = table("\n".join(["file,class", *lines]), f"?val={share}", files)
    held = rows(spec, "val")
    assert Counter(of for (of,) in held.values()) == dict(zip(("oak", "elm"), counts, strict=True))
    of_class = {kind: [f for f, k in zip(files, kinds, strict=True) if k == kind] for kind in kinds}
    for kind, count in zip(("oak", "elm"), counts, strict=True):
        smallest = sorted(of_class[kind], key=lambda name: zlib.crc32(name.encode()))[:count]
        assert set(smallest) <= set(held)
    assert set(held) | set(rows(spec, "train")) == set(files)
    assert not set(held) & set(rows(spec, "train"))


def test_val_is_taken_out_of_training_where_a_table_has_other_splits(table):
    lines = [f"leaf{n}.png,{'oak' if n % 2 else 'elm'},{'TEST' if n > 5 else 'Train'}"
             for n in range(9)]  # fmt: skip
    spec = table("\n".join(["image,label,split", *lines]), "?val=0.4")
    assert split_names(spec) == ["Train", "val", "TEST"]
    sizes = {split: set(rows(spec, split)) for split in ("train", "val", "test")}
    assert {split: len(of) for split, of in sizes.items()} == {"train": 4, "val": 2, "test": 3}
    assert sizes["train"] | sizes["val"] == {f"leaf{n}.png" for n in range(6)}
