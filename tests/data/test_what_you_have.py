"""docs/data.md begins with what people have and what they write for it: each source there is
read."""

import re
from pathlib import Path

import numpy as np
import pytest
from imagenet_files import downloads
from made_images import encoded

from vit_jax import cli
from vit_jax.data.sources import open_source, split_names

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
# Sources whose own tests try them: hugging_face, prepared sets, boxes, and a source by import path.
ELSEWHERE = {
    "hf:NAME", "hf:FOLDER?label=COLUMN", "tfds:NAME", "coco:FOLDER", "voc:FOLDER",
    "my_package.my_module:NAME",
}  # fmt: skip


def pictures(*names, dtype=np.uint8):
    """Writes images, each of them with its own pixels."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 250, (9, 9, 3), np.uint8)
        if dtype != np.uint8:
            pixels = pixels[..., 0].astype(dtype) * 16
        Path(name).write_bytes(encoded(pixels, "PNG"))


def leaves(folder, *splits):
    pictures(*(f"{folder}/{split}/{kind}/{n}.png" for split in splits for kind in ("elm", "oak")
               for n in range(6)))  # fmt: skip


def table(file, head, line, count=10, beside=""):
    """Writes a table of a line for each of its images, which are written, too."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    stem = Path(file).stem
    pictures(*(f"{Path(file).parent}/{beside}{stem}{n}.png" for n in range(count)))
    lines = [line.format(f"{stem}{n}.png", id=f"{stem}{n}", kind=("elm", "oak")[n % 2], one=n % 2,
                         other=1 - n % 2) for n in range(count)]  # fmt: skip
    Path(file).write_text("\n".join([head, *lines]))


# What is there, by what is written; and the splits that are found.
TRIED = {
    "folder:PHOTOS": (lambda: leaves("PHOTOS", "Training", "valid"), ["Training", "valid"]),
    "folder:PHOTOS?val=0.2": (lambda: leaves("PHOTOS", ""), ["train", "val"]),
    "folder:PHOTOS?val=0.1": (lambda: leaves("PHOTOS", "train", "test"), ["train", "val", "test"]),
    "csv:TABLE.csv": (lambda: table("TABLE.csv", "file;class", "{};{kind}"), ["train", "val"]),
    "csv:TABLE.csv?image=PICTURE&label=KIND&split=PART": (
        lambda: table("TABLE.csv", "name,PICTURE,class,KIND,PART", "x,{},y,{kind},fit"), ["fit"],
    ),
    "csv:TABLE.csv?label=RED,GREEN,BLUE": (
        lambda: table("TABLE.csv", "file,age,RED,GREEN,BLUE", "{},33,{one},{other},{one}"),
        ["train", "val"],
    ),
    "csv:TABLE.csv?root=FOLDER": (
        lambda: table("TABLE.csv", "image,label", "{},{kind}", beside="FOLDER/"), ["train", "val"],
    ),
    "csv:KAGGLE/train.csv?root=train": (
        lambda: table("KAGGLE/train.csv", "id,breed", "{id},{kind}", beside="train/"),
        ["train", "val"],
    ),
    "csv:SET": (
        lambda: [table(f"SET/{split}/{split}.csv", "filename, elm, oak", "{},{one},{other}")
                 for split in ("train", "valid")],
        ["train", "valid"],
    ),
    "imagenet2012:FOLDER": (lambda: downloads(Path("FOLDER")), ["train", "validation"]),
    "folder:SCANS": (
        lambda: pictures(*(f"SCANS/{s}/{k}/{n}.png" for s in ("train", "val") for k in "ab"
                           for n in range(3)), dtype=np.uint16),
        ["train", "val"],
    ),
}  # fmt: skip


def written() -> set[str]:
    """The sources in the second column of the document's first table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (.*) \|$", text.partition("\n\nQuote")[0], re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r"`([^` ]+)`", row)}
    return {name for name in shown if re.match(r"[a-z_0-9.]+:", name)}


def test_every_source_of_the_table_is_tried():
    assert written() == {*TRIED, *ELSEWHERE}


@pytest.mark.parametrize("spec", TRIED)
def test_what_people_have_is_read_by_what_the_table_says(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make, splits = TRIED[spec]
    make()
    assert split_names(spec) == splits
    code = cli.main(["data", "check", spec])
    assert code == (1 if "imagenet" in spec else 0)  # whose miniature lacks most of 1,000 classes
    assert "problem" in capsys.readouterr().out
    assert len(open_source(spec, "+".join(splits))) > 8
