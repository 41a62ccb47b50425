"""Data sets that are prepared: read back by TFDS itself, byte by byte and label by label."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from imagenet_files import (
    SYNSETS,
    devkit,
    downloads,
    extracted,
    picture,
    tar,
    train_files,
    validation_truth,
)  # fmt: skip
from made_images import encoded, folder_of_images, smooth

from vit_jax.data.archives import label_map
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.preparing import prepare as preparing
from vit_jax.preparing.prepare import Options, prepare

COUNTS = {"train/cat": 12, "train/dog": 8, "val/cat": 2, "val/dog": 1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Where data sets go."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "root"))
    before = "tensorflow" in sys.modules
    yield tmp_path / "root"
    assert ("tensorflow" in sys.modules) == before


@pytest.fixture
def photos(tmp_path):
    return folder_of_images(tmp_path / "My Photos", COUNTS)


def made(spec, **options):
    """What prepare said, line by line."""
    said = []
    prepare(spec, Options(**options), said.append)
    return said


def read_back(folder, split):
    """{file name: (class name, bytes)} as TFDS reads it, and the file names in order."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    names = builder.info.features["label"].names
    examples = {e["file_name"].decode(): (names[e["label"]], e["image"]) for e in source}
    assert len(examples) == len(source) == builder.info.splits[split].num_examples
    return examples, list(examples)


def every_file(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Folders


def test_a_folder_is_read_back_byte_by_byte_with_classes_and_names(photos, root):
    said = made(f"folder:{photos}")
    folder = root / "my_photos" / "1.0.0"
    for split in ("train", "val"):
        files = {
            f"{path.parent.name}/{path.name}": (path.parent.name, path.read_bytes())
            for path in (photos / split).rglob("*.jpg")
        }
        assert read_back(folder, split)[0] == files
    assert said[0].startswith("train: 20 images")
    assert said[-1] == f"{folder} is whole: train on tfds:my_photos"
    assert [path.name for path in root.iterdir()] == ["my_photos"]


def test_a_folder_is_prepared_with_the_share_that_it_holds_out(tmp_path, root):
    photos = folder_of_images(tmp_path / "Leaves", {"oak": 8, "elm": 12})
    spec = f"folder:{photos}?val=0.25"
    made(spec)
    for split, count in (("train", 15), ("val", 5)):
        found, _ = read_back(root / "leaves" / "1.0.0", split)
        source = open_source(spec, split)
        assert set(found) == {source.name(n) for n in range(count)}


@pytest.mark.parametrize("several", [False, True])
def test_a_table_is_prepared_with_one_label_of_each_image_or_several(tmp_path, root, several):
    folder_of_images(tmp_path, {"pictures": 9})
    lines = [f"{n},{n % 2},{int(several or n % 2 == 0)},{'val' if n > 6 else 'train'}"
             for n in range(9)]  # fmt: skip
    (tmp_path / "Kinds.csv").write_text("\n".join(["id,oak,elm,split", *lines]))
    spec = f"csv:{tmp_path}/Kinds.csv?root=pictures"
    made(spec)
    for split in ("train", "val"):
        table, written = open_source(spec, split), open_source("tfds:kinds", split)
        assert written.classes == table.classes == ["oak", "elm"]
        both = [sorted((source[n]["image"], source[n]["label"]) for n in range(len(source)))
                for source in (table, written)]  # fmt: skip
        assert both[0] == both[1]


def test_bytes_of_any_format_stay_as_they_are_and_decode(tmp_path, root):
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
    (tmp_path / "mixed" / "train" / "all").mkdir(parents=True)
    for kind in kinds:
        file = tmp_path / "mixed" / "train" / "all" / f"{kind}.{kind.lower()}"
        file.write_bytes(encoded(smooth(), kind))
    shutil.copy(file, file.with_name("named.jpg"))  # a TIFF
    made(f"folder:{tmp_path}/mixed")
    found, _ = read_back(root / "mixed" / "1.0.0", "train")
    assert {name: data for name, (_, data) in found.items()} == {
        f"all/{path.name}": path.read_bytes() for path in file.parent.iterdir()
    }
    source = open_source("tfds:mixed", "train")
    shapes = {decode(source[index]["image"]).shape for index in range(len(source))}
    assert shapes == {(24, 32, 3)}


def test_the_seed_decides_the_order_and_every_part_has_every_class(tmp_path, root):
    photos = folder_of_images(tmp_path / "p", {f"train/{name}": 40 for name in "abcd"})
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        made(f"folder:{photos}", name=name, seed=seed, shards=2)
    orders = {n: read_back(root / n / "1.0.0", "train")[1] for n in ("one", "again", "other")}
    assert orders["one"] == orders["again"]
    assert orders["one"] != orders["other"]
    assert sorted(orders["one"]) == sorted(orders["other"])
    for start in range(0, 160, 40):  # 40 of 160: each class is expected ten times
        counts = [sum(n[0] == c for n in orders["one"][start : start + 40]) for c in "abcd"]
        assert min(counts) >= 3


def test_shards_are_as_many_as_asked_for_or_of_a_size(photos, root, monkeypatch):
    made(f"folder:{photos}", name="asked", shards=3)
    monkeypatch.setattr(preparing, "SHARD_BYTES", 2000)  # of files of some 730 bytes
    made(f"folder:{photos}", name="sized")
    asked, sized = (
        sorted(path.name for path in (root / name / "1.0.0").glob("*train*"))
        for name in ("asked", "sized")
    )
    assert asked == [f"asked-train.array_record-{n:05d}-of-00003" for n in range(3)]
    assert sized == [f"sized-train.array_record-{n:05d}-of-00007" for n in range(7)]
    assert (
        read_back(root / "asked" / "1.0.0", "train")[0]
        == read_back(root / "sized" / "1.0.0", "train")[0]
    )


def test_a_folder_without_splits_holds_out_what_training_from_it_would(tmp_path, root):
    photos = folder_of_images(tmp_path / "flat", {"cat": 30, "dog": 30})
    made(f"folder:{photos}")
    for split in ("train", "val"):
        source = open_source(f"folder:{photos}", split)
        wanted = {source.describe(n).removeprefix(f"{photos}/") for n in range(len(source))}
        assert set(read_back(root / "flat" / "1.0.0", split)[0]) == wanted


def test_a_tiny_folder_holds_nothing_out(tmp_path, root):
    folder_of_images(tmp_path / "two", {"cat": 1, "dog": 1})
    assert made(f"folder:{tmp_path}/two")[0].startswith("train: 2 images")
    assert len(list((root / "two" / "1.0.0").glob("*.array_record*"))) == 1


def test_names_that_are_no_utf_8_are_kept(tmp_path, root):
    photos = folder_of_images(tmp_path / "odd", {"train/cat": 1})
    odd = os.fsencode(photos / "train" / "cat" / "caf") + b"\xe9.jpg"
    shutil.copy(photos / "train" / "cat" / "0.jpg", odd)
    made(f"folder:{photos}")
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(root / "odd" / "1.0.0").as_data_source("train")
    assert {example["file_name"] for example in source} == {b"cat/0.jpg", b"cat/caf\xe9.jpg"}


# ImageNet


def test_imagenet2012_is_read_from_its_tars(tmp_path, root):
    made("imagenet2012", source=str(downloads(tmp_path / "d")))
    found, _ = read_back(root / "imagenet2012" / "1.0.0", "train")
    assert found == {
        name: (synset, data)
        for synset, files in train_files().items()
        for name, data in files.items()
    }
    found, _ = read_back(root / "imagenet2012" / "1.0.0", "validation")
    assert found == {n: (synset, picture(n)) for n, synset in validation_truth().items()}


def test_extracted_folders_and_a_folder_of_tars_give_the_same_files(tmp_path, root):
    made("imagenet2012", source=str(downloads(tmp_path / "d")))
    tars = every_file(root / "imagenet2012")
    loose = extracted(tmp_path / "e")
    made("imagenet2012", source=str(loose), output=str(tmp_path / "other"))
    assert every_file(tmp_path / "other" / "imagenet2012") == tars
    shutil.rmtree(loose / "train")
    for synset, files in train_files().items():
        (loose / f"{synset}.tar").write_bytes(tar(files))
    made("imagenet2012", source=str(loose), output=str(tmp_path / "third"))
    assert every_file(tmp_path / "third" / "imagenet2012") == tars


def test_a_flat_val_folder_takes_the_kits_truth_also_unpacked(tmp_path, root):
    place = downloads(tmp_path / "d")
    made("imagenet2012", source=str(place))
    (place / "val").mkdir()
    for name in validation_truth():
        (place / "val" / name).write_bytes(picture(name))
    (place / "ILSVRC2012_img_val.tar").unlink()
    shutil.unpack_archive(place / "ILSVRC2012_devkit_t12.tar.gz", place)
    (place / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    made("imagenet2012", source=str(place), output=str(tmp_path / "other"))
    assert every_file(tmp_path / "other" / "imagenet2012") == every_file(root / "imagenet2012")


@pytest.fixture
def synset_tars(tmp_path):
    """Three synsets of 70 images; n00004475 (an organism) is in 21k, and too small for 21k-p."""
    place = tmp_path / "21k"
    place.mkdir()
    for synset in ("n00004475", "n01440764", "n01443537"):
        files = {f"{synset}_{n}.JPEG": picture(f"{synset}{n}") for n in range(70)}
        (place / f"{synset}.tar").write_bytes(tar(files))
    return place


def test_imagenet21k_keeps_googles_numbers_and_holds_out_one_in_a_hundred(synset_tars, root):
    said = made("imagenet21k", source=str(synset_tars))
    train, val = (open_source("tfds:imagenet21k", split) for split in ("train", "val"))
    assert (len(train), len(val), len(train.classes)) == (208, 2, 21_843)
    assert {train[n]["label"] for n in range(208)} == {
        label_map("21k").index(path.stem) for path in synset_tars.iterdir()
    }
    assert f"{synset_tars}: 21,840 of the 21,843 classes have no images" in said


def test_images_held_out_depend_on_their_names_alone(synset_tars, tmp_path, root):
    for place, seed in ((root, 0), (tmp_path / "other", 5)):
        made("imagenet21k", source=str(synset_tars), val=21, seed=seed, output=str(place))
    folders = [place / "imagenet21k" / "1.0.0" for place in (root, tmp_path / "other")]
    train, val = ([read_back(folder, split)[0] for folder in folders] for split in ("train", "val"))
    assert val[0] == val[1]
    assert train[0] == train[1]
    assert (len(val[0]), len(train[0]), len(val[0] | train[0])) == (21, 189, 210)
    assert {synset for synset, _ in val[0].values()} == {
        path.stem for path in synset_tars.iterdir()
    }


def test_synsets_outside_of_the_map_are_left_out_and_counted(synset_tars, root):
    said = made("imagenet21k", source=str(synset_tars), labels="21k-p", val=0)
    train = open_source("tfds:imagenet21k", "train")
    assert (len(train), len(train.classes)) == (140, 11_221)
    assert any("left out 70 images of 1 synsets" in line and "n00004475" in line for line in said)
    assert not list((root / "imagenet21k" / "1.0.0").glob("*-val.*"))


def test_classes_are_those_found_or_those_of_a_file(synset_tars, tmp_path, root):
    made("imagenet21k", source=str(synset_tars), labels="found")
    assert open_source("tfds:imagenet21k", "train").classes == [
        "n00004475", "n01440764", "n01443537",
    ]  # fmt: skip
    (tmp_path / "mine.txt").write_text("n01443537 goldfish\nn01440764 tench\n")
    other = tmp_path / "other"
    labels = str(tmp_path / "mine.txt")
    made("imagenet21k", source=str(synset_tars), labels=labels, val=1, output=str(other))
    found, _ = read_back(other / "imagenet21k" / "1.0.0", "train")
    assert len(found) == 139
    names = (other / "imagenet21k" / "1.0.0" / "label.labels.txt").read_text().split()
    assert names == ["n01443537", "n01440764"]


def test_one_tar_of_tars_and_tars_of_folders_give_the_same_files(synset_tars, tmp_path, root):
    made("imagenet21k", source=str(synset_tars))
    (tmp_path / "one").mkdir()
    inside = {f"whole/{path.name}": path.read_bytes() for path in sorted(synset_tars.iterdir())}
    (tmp_path / "one" / "fall11_whole.tar").write_bytes(tar(inside))
    made("imagenet21k", source=f"{tmp_path}/one", output=f"{tmp_path}/b")
    assert every_file(tmp_path / "b" / "imagenet21k") == every_file(root / "imagenet21k")
    (tmp_path / "two").mkdir()
    files = {
        f"{synset}/{synset}_{n}.JPEG": picture(f"{synset}{n}")
        for synset in ("n00004475", "n01440764", "n01443537")
        for n in range(70)
    }
    (tmp_path / "two" / "all.tar").write_bytes(tar(files))
    made("imagenet21k", source=f"{tmp_path}/two", output=f"{tmp_path}/c")
    assert every_file(tmp_path / "c" / "imagenet21k") == every_file(root / "imagenet21k")


# TFDS builders

BUILDER = """
import tensorflow_datasets as tfds

class {name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({{
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=[f"c{{n}}" for n in range({classes})]),
        }}))

    def _split_generators(self, dl_manager):
        return {{split: self._generate_examples(n) for split, n in (("train", 24), ("val", 8))}}

    def _generate_examples(self, count):
        {failing}
        for n in range(count):
            yield n, {{"image": open({image!r}, "rb").read(), "label": n * 701 % {classes}}}
"""


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """Writes a module with a private builder, in the current folder; returns its import path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(encoded(smooth()))

    def write(name="Secret", classes=7, failing=""):
        image = str(tmp_path / "a.jpg")
        text = BUILDER.format(name=name, classes=classes, failing=failing, image=image)
        (tmp_path / f"my_{name.lower()}.py").write_text(text)
        return f"tfds:my_{name.lower()}:{name}"

    return write


def test_a_builder_of_ones_own_is_run_without_tensorflow(builder, tmp_path, root):
    said = made(builder(), shards=2)
    train = open_source("tfds:secret", "train")
    assert (len(train), train.classes) == (24, [f"c{n}" for n in range(7)])
    assert sorted(train[n]["label"] for n in range(24)) == sorted(n * 701 % 7 for n in range(24))
    assert train[0]["image"] == (tmp_path / "a.jpg").read_bytes()
    assert len(list((root / "secret" / "2.1.0").glob("*train*"))) == 2
    assert said[-1].endswith("train on tfds:secret")
    assert not list(root.glob(".*"))


def test_a_builder_that_fails_is_told_with_its_line_and_leaves_nothing(builder, root):
    with pytest.raises(UserError, match=r"ZeroDivisionError.* \(.*my_bad\.py, line 17\)") as error:
        made(builder("Bad", failing="1 / 0"))
    assert "\n" not in str(error.value)
    assert not list(root.glob("**/2.1.0"))
    assert not list(root.glob(".*"))


def as_tfrecord(folder: Path, place: Path) -> None:
    """Rewrites a prepared set as TFRecord: length, checksum, bytes, checksum (zeros here)."""
    from array_record.python.array_record_module import ArrayRecordReader

    place.mkdir(parents=True)
    for file in folder.iterdir():
        if ".array_record" not in file.name:
            text = file.read_text().replace('"array_record"', '"tfrecord"')
            (place / file.name).write_text(text)
            continue
        with open(place / file.name.replace(".array_record", ".tfrecord"), "wb") as out:
            for record in ArrayRecordReader(str(file)).read_all():
                out.write(len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4))


def test_a_set_in_tfrecord_is_copied_without_tensorflow(photos, tmp_path, root):
    made(f"folder:{photos}", shards=3)
    wanted = every_file(root / "my_photos" / "1.0.0")
    as_tfrecord(root / "my_photos" / "1.0.0", tmp_path / "old" / "my_photos" / "1.0.0")
    made("tfds:my_photos", source=str(tmp_path / "old"), output=str(tmp_path / "new"))
    found = every_file(tmp_path / "new" / "my_photos" / "1.0.0")
    del found["dataset_info.json"], wanted["dataset_info.json"]
    assert found == wanted
    for split in ("train", "val"):
        assert read_back(tmp_path / "new" / "my_photos" / "1.0.0", split) == read_back(
            root / "my_photos" / "1.0.0", split
        )


@pytest.mark.parametrize("lost", [1, 100, 3000])
def test_a_tfrecord_file_that_ends_early_is_named(photos, tmp_path, lost, root):
    made(f"folder:{photos}", shards=1)
    old = tmp_path / "old" / "my_photos" / "1.0.0"
    as_tfrecord(root / "my_photos" / "1.0.0", old)
    file = old / "my_photos-train.tfrecord-00000-of-00001"
    os.truncate(file, file.stat().st_size - lost)
    with pytest.raises(UserError, match=f"{file}.*damaged"):
        made("tfds:my_photos", source=str(tmp_path / "old"), output=str(tmp_path / "new"))
    assert not list((tmp_path / "new").iterdir())


def test_a_synset_folder_with_a_link_that_leads_back_counts_each_image_once(tmp_path, root):
    folder = tmp_path / "d" / SYNSETS[0]
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{SYNSETS[0]}_{number}.JPEG").write_bytes(picture(str(number)))
    (folder / "up").symlink_to("..")
    (folder / "notes.txt").write_text("three fish")
    said = made("imagenet21k", source=str(tmp_path / "d"), labels="found", val=0)
    assert any("1 file is left out: 1 .txt" in line for line in said)
    assert any(line.startswith("train: 3 images") for line in said)


def test_a_tar_that_is_a_pipe_is_refused_before_it_is_opened(tmp_path, root):
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / f"{SYNSETS[0]}.tar")
    with pytest.raises(UserError, match="is a device or a pipe, not a tar"):
        made("imagenet21k", source=str(tmp_path / "d"))


def test_splits_of_any_name_are_prepared(tmp_path, root):
    photos = folder_of_images(tmp_path / "p", {"Training/a": 2, "Valid/a": 1})
    made(f"folder:{photos}")
    assert len(open_source("tfds:p", "train")) == 2
    assert len(open_source("tfds:p", "val")) == 1


# Interruptions


def prepare_process(photos, root):
    return subprocess.Popen(
        [sys.executable, "-m", "vit_jax.cli", "data", "prepare", f"folder:{photos}", "--name=x"],
        env=os.environ | {"TFDS_DATA_DIR": str(root), "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def halfway(photos, root):
    """A process that has written a shard of `train` and was stopped while it writes `val`, which is
    long."""
    image = photos / "val" / "dog" / "0.png"
    image.write_bytes(encoded(np.zeros((8, 8, 3), np.uint8), "PNG"))
    for number in range(20_000):
        os.link(image, photos / "val" / "dog" / f"more{number}.png")
    process = prepare_process(photos, root)
    while process.poll() is None:
        if list(root.glob(".x-*/x-train.array_record-00000-of-00001")):
            process.send_signal(signal.SIGSTOP)
            break
        time.sleep(0.001)
    yield process
    process.kill()
    process.wait()


def test_killed_halfway_nothing_is_there_and_the_next_one_tidies_up(halfway, photos, root):
    assert prepare_process(photos, root).communicate(timeout=60)[1] == (
        f"vit: error: another process is writing {root}/x/1.0.0\n"
    )
    halfway.send_signal(signal.SIGKILL)
    halfway.wait()
    assert [path.name for path in root.iterdir()] == [".x-1.0.0.incomplete"]
    with pytest.raises(UserError, match="is not on this machine"):
        open_source("tfds:x", "train")
    for more in (photos / "val" / "dog").glob("more*.png"):
        more.unlink()
    made(f"folder:{photos}", name="x")
    assert [path.name for path in root.iterdir()] == ["x"]
    assert len(read_back(root / "x" / "1.0.0", "train")[0]) == 20


def test_a_failure_halfway_leaves_nothing(photos, root):
    (photos / "val" / "dog" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*/val/dog/gone.jpg: No such file"):
        made(f"folder:{photos}")
    assert not list(root.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "big" / "train" / "noise").mkdir(parents=True)
    for n in range(20):
        pixels = rng.integers(0, 256, (200, 200, 3), np.uint8)
        (tmp_path / "big" / "train" / "noise" / f"{n}.png").write_bytes(encoded(pixels, "PNG"))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("this container may not mount a file system")
    try:
        process = prepare_process(tmp_path / "big", disk)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert len(said.splitlines()) == 1
        assert said.startswith(f"vit: error: cannot write {disk}/")
        assert "No space left on device" in said
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# What cannot be prepared


def cut(file: Path, size: int) -> None:
    os.truncate(file, file.stat().st_size - size)


@pytest.fixture
def bad_places(tmp_path):
    (tmp_path / "empty").mkdir()
    folder_of_images(tmp_path / "p", {"train/cat": 2})
    for name in ("d", "kitless", "badkit", "shortkit", "cut", "cut_inside", "zipped"):
        downloads(tmp_path / name)
    (tmp_path / "kitless" / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    cut(tmp_path / "badkit" / "ILSVRC2012_devkit_t12.tar.gz", 200)
    (tmp_path / "shortkit" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(
        devkit(validation_truth(4))
    )
    train = "ILSVRC2012_img_train.tar"
    cut(tmp_path / "cut" / train, 12_000)
    whole = {f"{s}.tar": tar(files)[: -2 * 10_240] for s, files in train_files(40).items()}
    (tmp_path / "cut_inside" / train).write_bytes(tar(whole))
    import gzip

    (tmp_path / "zipped" / train).write_bytes(gzip.compress(tar({"a": b"b"})))
    for name, file in (("one_zip", "winter21_whole.tar.gz"), ("strange", "photos.tar")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(tar({"cat/1.jpg": b"x"}))
    (tmp_path / "list.txt").write_text("n01440764\ntench\n")
    (tmp_path / "twice.txt").write_text("n01440764\nn01440764\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "paths.csv").write_text("image,label,split\np/train/cat/0.jpg,a,../x\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("folder:{tmp}/none", "there is no folder {tmp}/none"),
        ("folder:{tmp}/empty", "holds no images"),
        ("folder:{tmp}/p --name=My", "'My' is no name for a data set"),
        ("folder:{tmp}/p --labels=1k", "--labels is not for folder, which takes --name, --shards"),
        ("folder:{tmp}/p --shards=0", "--shards=0 must be 1 or more"),
        ("folder:{tmp}/p --output=gs://b", "is no folder of this machine"),
        ("foldr:{tmp}/p", "cannot prepare 'foldr:{tmp}/p': did you mean folder"),
        ("digits", "cannot prepare 'digits'"),
        ("imagenet2012", "imagenet2012 is made from --from=FOLDER"),
        ("imagenet2012 --from={tmp}/none", "there is no folder {tmp}/none"),
        ("imagenet2012:{tmp}/d --from={tmp}/d", "names its folder already: leave --from out"),
        ("imagenet2012 --from={tmp}/empty", "neither ILSVRC2012_img_val.tar nor val/"),
        ("imagenet2012 --from={tmp}/d --val=3", "--val is not for imagenet2012"),
        ("imagenet2012 --from={tmp}/d --labels=2k", "--labels=2k is no file and no label map"),
        ("imagenet2012 --from={tmp}/d --labels={tmp}/list.txt", "'tench' is no synset"),
        ("imagenet2012 --from={tmp}/d --labels={tmp}/twice.txt", "'n01440764' is twice there"),
        ("imagenet2012 --from={tmp}/d --labels={tmp}/none.txt", "'' is no synset"),
        ("csv:{tmp}/paths.csv", "TFDS cannot keep the split '../x': rename it"),
        ("csv:{tmp}/none.csv", "there is no file {tmp}/none.csv"),
        ("imagenet2012 --from={tmp}/kitless", "kitless has no ILSVRC2012_devkit_t12.tar.gz"),
        ("imagenet2012 --from={tmp}/badkit", "ILSVRC2012_devkit_t12.tar.gz cannot be read"),
        ("imagenet2012 --from={tmp}/shortkit", "tells of 4 validation images"),
        ("imagenet2012 --from={tmp}/cut", "cut/ILSVRC2012_img_train.tar is no whole"),
        ("imagenet2012 --from={tmp}/cut_inside", "cut_inside/ILSVRC2012_img_train.tar is no whole"),
        ("imagenet2012 --from={tmp}/zipped", "gunzip it"),
        ("imagenet21k --from={tmp}/one_zip", "winter21_whole.tar.gz is compressed: gunzip it"),
        ("imagenet21k --from={tmp}/empty", "holds no n########.tar, no n########/"),
        ("imagenet21k --from={tmp}/strange", "holds no images of the 21,843 synsets (1 images"),
        ("imagenet21k --from={tmp}/d --val=99", "--val=99 leaves nothing of 10 images"),
        ("tfds:no_such_set", "TFDS has no data set tfds:no_such_set"),
        ("tfds:no_module:Builder", "cannot be imported: No module named 'no_module'"),
        ("tfds:json:Builder", "the module has no 'Builder'"),
        ("tfds:cifar10", "pip install vit_jax[tf]"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(bad_places, root, line, says, capsys, monkeypatch):
    from vit_jax import cli
    from vit_jax.preparing import builders

    monkeypatch.setattr(builders, "NEEDS", ("tensorflow", "a_package_that_is_not_here"))
    code = cli.main(["data", "prepare", *line.format(tmp=bad_places).split()])
    said = capsys.readouterr().err
    assert code == 2, said
    assert says.format(tmp=bad_places) in said
    assert said.startswith("vit: error: ")
    assert len(said.splitlines()) == 1
    assert not root.exists() or not list(root.iterdir())


def test_a_set_that_is_there_is_left_alone(photos, root):
    made(f"folder:{photos}")
    before = every_file(root)
    with pytest.raises(UserError, match=f"{root}/my_photos/1.0.0 is there already: delete it"):
        made(f"folder:{photos}", seed=3)
    with pytest.raises(UserError, match="not as TFRecord: there is nothing to do"):
        made("tfds:my_photos")
    assert every_file(root) == before


def test_a_tfrecord_set_is_not_written_over(photos, tmp_path, root):
    made(f"folder:{photos}")
    as_tfrecord(root / "my_photos" / "1.0.0", tmp_path / "old" / "my_photos" / "1.0.0")
    with pytest.raises(UserError, match=r"as TFRecord: give another root .* --output=ROOT"):
        made("tfds:my_photos", output=str(tmp_path / "old"))


def test_class_names_that_tfds_would_change_are_refused(tmp_path, root):
    folder_of_images(tmp_path / "p", {"train/cat": 1, "train/ cat": 1})
    with pytest.raises(UserError, match="cannot keep the class name ' cat'"):
        made(f"folder:{tmp_path}/p")
    assert not list(root.iterdir())
