"""Tables, trees, tars and prepared sets that are none, that lead back, or that have no end."""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import made

HEAD = b"image,label,split\n"
GOOD = b"a.png,cat,train\nb.png,dog,train\na.png,cat,val\n"
TABLES: dict[str, bytes] = {
    "nothing": b"", "zeros": bytes(5000), "no columns": b"x\n1\n",
    "other columns": b"image,u,v\na.png,3,4\n",
    "images that are nowhere": HEAD + b"no.png,cat,train\n",
    "some images that are nowhere": HEAD + GOOD + b"x" * 300 + b".png,cat,train\n",
    "a class column of 7": b"image,u,v\na.png,0,1\nb.png,7,1\n",
    "the head alone": HEAD, "not UTF-8": HEAD + b"\xff\xfe\xfa.png,cat,train\n",
    "NUL": HEAD + b"a\0b.png,cat,train\n" + GOOD, "UTF-16": HEAD.decode().encode("utf-16"),
    "short rows": HEAD + b"a.png\n", "long rows": HEAD + b"a.png,cat,train,x,y\n",
    "a blank label": HEAD + GOOD + b"b.png,,train\n",
    "a blank label in val": HEAD + GOOD + b"b.png,,val\n",
    "a blank image": HEAD + GOOD + b",cat,train\n", "infinity": HEAD + b"a.png,inf,train\n",
    "NaN": HEAD + b"a.png,nan,train\n",
    "a cell of 200 kB": HEAD + b"a.png," + b"x" * 200_000 + b",train\n",
    "an open quote": HEAD + b'"a.png,cat,train\n' * 3,
    "a class that val alone has": HEAD + GOOD + b"b.png,emu,val\n",
    "an image": made.image(), "a web page": b"<!doctype html><html></html>",
}  # fmt: skip
# Rows that name what is no image: a table is read, and each of these is a problem of its own.
PLACES = ("/dev/zero", "/etc/passwd", "{up}/etc/passwd", ".", "pipe")


@pytest.fixture
def place(tmp_path) -> Path:
    for name, seed in (("a", 8), ("b", 9)):
        (tmp_path / f"{name}.png").write_bytes(made.image(size=seed))
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_none_is_refused_in_one_line(vit, place, name):
    (place / "t.csv").write_bytes(TABLES[name])
    vit.refused("data", "check", "csv:t.csv", cwd=place)


def test_images_of_a_table_that_are_none_are_told_one_by_one(vit, place):
    up = os.path.relpath("/", place)
    rows = "".join(f"{name.format(up=up)},cat,train\n" for name in PLACES)
    (place / "t.csv").write_bytes(HEAD + GOOD + rows.encode())
    answer = vit("data", "check", "csv:t.csv", cwd=place)
    assert answer["code"] == 1
    assert answer["out"].count("\n") >= len(PLACES)
    assert "root:" not in answer["out"]


def tree(*files: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for number, name in enumerate(files):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(made.image(size=8 + number))

    return make


def looped(root: Path) -> None:
    tree("cat/a.png", "dog/b.png")(root)
    (root / "cat" / "again").symlink_to("..")


TREES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda root: root.mkdir(), "files alone": tree("a.png", "b.png"),
    "folds": tree("one/cat/a.png", "one/dog/b.png", "two/cat/c.png", "two/dog/d.png"),
    "splits in classes": tree("cat/left/a.png", "cat/right/b.png", "dog/left/c.png",
                              "dog/right/d.png"),
    "a class of texts": lambda root: (tree("train/cat/a.png", "val/cat/b.png")(root),
                                      (root / "train" / "dog").mkdir(),
                                      (root / "train" / "dog" / "x.txt").write_text("x")),
    "two of a split": tree("Val/cat/a.png", "valid/cat/b.png", "train/cat/c.png",
                           "train/dog/d.png"),
    "a class that val alone has": tree("train/cat/a.png", "train/dog/c.png", "val/emu/b.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_tree_that_is_no_set_is_refused_in_one_line(vit, tmp_path, name):
    TREES[name](tmp_path / "set")
    command = ["train", "--config=folder.py:set", "--workdir=run", "--config.total_steps=1"]
    vit.refused(*command, cwd=tmp_path, says="set")
    assert not (tmp_path / "run").exists()


def test_a_link_that_leads_back_is_not_followed(vit, tmp_path):
    looped(tmp_path / "set")
    out = vit("data", "check", "folder:set", cwd=tmp_path)["out"]
    assert "2 images" in out or "1 images" in out


def test_names_of_classes_and_files_are_escaped(vit, tmp_path):
    for number, name in enumerate(("a\x1b[2J\nb", "<script>alert(1)</script>", "`x`|*y*")):
        for split in ("train", "val"):
            folder = tmp_path / "set" / split / name.replace("/", "\u2215")
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f"{split}{i}\x07.png").write_bytes(made.image(size=9 + 7 * number + i))
    (tmp_path / "set" / "train" / "`x`|*y*" / "broken\x1b]0;z\x07.png").write_bytes(b"")
    answer = vit("data", "check", "folder:set", cwd=tmp_path)
    assert answer["code"] == 1


def tar(path: Path, *members: tuple[str, bytes | str, bytes]) -> None:
    """(name, type, data or link) of each member."""
    with tarfile.open(path, "w") as archive:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(kind, bytes):
                info.type = kind
                info.linkname = data.decode()
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


SYNSET = "n01440764"


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def half(path: Path) -> None:
    tar(path, *[(f"{SYNSET}_{i}.JPEG", "", made.image("JPEG", 32)) for i in range(9)])
    os.truncate(path, 1500)


def forged(path: Path) -> None:
    tar(path, (f"{SYNSET}_1.JPEG", "", made.image("JPEG", 32)))
    data = bytearray(path.read_bytes())
    data[124:136] = b"77777777777\0"
    data[148:156] = b"        "
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    path.write_bytes(data)


TARS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda p: p.write_bytes(b""), "zeros": lambda p: p.write_bytes(bytes(10_240)),
    "a text": lambda p: p.write_bytes(b"x" * 3000), "a pipe": os.mkfifo,
    "a device": lambda p: p.symlink_to("/dev/zero"), "a terabyte": sparse,
    "links alone": lambda p: tar(p, (f"{SYNSET}_1.JPEG", tarfile.SYMTYPE, b"/etc/passwd")),
    "devices": lambda p: tar(p, (f"{SYNSET}_1.JPEG", tarfile.CHRTYPE, b"")),
    "half": half, "a size that lies": forged,
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_is_none_is_refused_in_one_line(vit, tmp_path, name):
    (tmp_path / "tars").mkdir()
    TARS[name](tmp_path / "tars" / f"{SYNSET}.tar")
    vit.refused("data", "prepare", "imagenet21k", "--from=tars", "--output=root", "--labels=found",
                cwd=tmp_path, writes=(tmp_path / "root",))  # fmt: skip


def test_a_folder_of_synsets_that_leads_back_is_counted_once(vit, tmp_path):
    folder = tmp_path / "from" / SYNSET
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{SYNSET}_{i}.JPEG").write_bytes(made.image("JPEG", 8 + i))
    (folder / "again").symlink_to("..")
    answer = vit("data", "prepare", "imagenet21k", "--from=from", "--output=root", "--labels=found",
                 "--val=1", cwd=tmp_path, writes=(tmp_path / "root",))  # fmt: skip
    if answer["code"] == 0:
        info = next((tmp_path / "root").rglob("dataset_info.json"))
        counts = [sum(map(int, split["shardLengths"])) for split in
                  json.loads(info.read_text())["splits"]]  # fmt: skip
        assert sum(counts) == 3
    else:
        assert answer["code"] == 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared set, as `vit data prepare` writes it."""
    from vit_jax import cli

    root = tmp_path_factory.mktemp("prepared")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = made.image(size=8 + i + 4 * (split == "val") + 8 * (name == "dog"))
                (folder / f"{i}.png").write_bytes(pixels)
    assert cli.main(["data", "prepare", f"folder:{root / 'set'}", "--name=pets",
                     f"--output={root / 'tfds'}"]) == 0  # fmt: skip
    return root / "tfds"


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = folder / name
        told = json.loads(file.read_text())
        file.write_text(json.dumps(change(told) or told))

    return make


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*array_record*"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no info": lambda f: (f / "dataset_info.json").write_text("{}"),
    "binary info": lambda f: (f / "dataset_info.json").write_bytes(os.urandom(500)),
    "empty info": lambda f: (f / "dataset_info.json").write_bytes(b""),
    "a list of info": lambda f: (f / "dataset_info.json").write_text("[]"),
    "10**11 examples": edit("dataset_info.json", lambda d: [
        split.update(shardLengths=[str(10**11)]) for split in d["splits"]] and None),
    "no features": lambda f: (f / "features.json").write_text("[]"),
    "half of the features": lambda f: os.truncate(f / "features.json", 40),
    "features that import": edit("features.json", lambda d: d.update(
        pythonClassName="evil.Features")),
    "a feature that imports": lambda f: (f / "features.json").write_text(
        re.sub("tensorflow_datasets[a-z_.]*image_feature", "evil",
               (f / "features.json").read_text())),
    "shards cut": lambda f: [os.truncate(s, 100) for s in shards(f)],
    "shards of zeros": lambda f: [s.write_bytes(bytes(s.stat().st_size)) for s in shards(f)],
    "no shards": lambda f: [s.unlink() for s in shards(f)],
    "shards that are pipes": lambda f: [(s.unlink(), os.mkfifo(s)) for s in shards(f)],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_prepared_set_is_told_in_one_line(vit, prepared, tmp_path, name):
    root = shutil.copytree(prepared, tmp_path / "root")
    folder = next(root.rglob("dataset_info.json")).parent
    DAMAGES[name](folder)
    (tmp_path / "evil.py").write_text("open('PWNED', 'w').close()\nclass Features: pass\n")
    answer = vit("data", "check", "tfds:pets", cwd=tmp_path, TFDS_DATA_DIR=str(root))
    if answer["code"] == 1:  # each example that cannot be had is a problem of its own
        assert answer["out"].count("damaged") + answer["out"].count("cannot be") >= 1
    else:
        assert (answer["code"], answer["err"].count("\n")) == (2, 1), answer["err"]
        assert answer["err"].startswith("vit: error: ")
