"""Which files below a folder are images, what is said of the others, and what is never opened."""

import os

import pytest
from made_images import encoded, folder_of_images, smooth

from vit_jax.data.sources import open_source
from vit_jax.data.walking import images_below, left_out_text
from vit_jax.errors import UserError


def test_files_with_unusual_endings_are_judged_by_their_first_bytes(tmp_path):
    for name, kind in {"a.photo": "PNG", "b": "JPEG", "c.jfif": "JPEG", "d.ppm": "PPM"}.items():
        (tmp_path / name).write_bytes(encoded(smooth(), kind))
    (tmp_path / "car.txt").write_text("BMW, and no bitmap")
    (tmp_path / "LICENCE").write_text("free")
    images, left_out = images_below(tmp_path)
    assert images == ["a.photo", "b", "c.jfif", "d.ppm"]
    assert left_out_text(left_out) == "2 files are left out: 1 .txt, 1 without an ending"


def test_pipes_devices_and_broken_links_are_counted_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "broken").symlink_to("nowhere")
    images, left_out = images_below(tmp_path)
    assert images == []
    assert left_out == {"pipe, socket or device": 2, "broken link": 1}


def test_a_folder_is_entered_once_however_links_lead(tmp_path):
    root = folder_of_images(tmp_path, {"one": 2, "two": 3})
    (root / "one" / "to_two").symlink_to(root / "two")
    (root / "two" / "to_one").symlink_to(root / "one")
    (root / "one" / "up").symlink_to("..")
    assert len(images_below(root / "one").images) == 5
    assert len(images_below(root).images) == 5


def test_a_class_of_training_that_holds_no_image_is_named_with_what_it_holds(tmp_path):
    root = folder_of_images(tmp_path, {"train/ant": 2, "train/bee": 1, "val/ant": 1, "val/bee": 1})
    for split in ("train", "val"):
        (root / split / "bee" / "0.jpg").rename(root / split / "bee" / "0.heic")
        (root / split / "bee" / "0.heic").write_text("not read")
    with pytest.raises(UserError, match=r"train/bee is the folder of a class .* 1 \.heic"):
        open_source(f"folder:{root}", "train")
    notes = open_source(f"folder:{root}", "val").notes
    assert any(note.endswith("bee: 1 file is left out: 1 .heic") for note in notes)
