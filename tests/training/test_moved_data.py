"""A run goes on where its data has moved, and is refused where the data itself is another."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import rows, tiny_config, told
from vit_jax.errors import UserError
from vit_jax.resolution import with_paths
from vit_jax.training.run import run_of
from vit_jax.training.same_run import check_same_run

pytestmark = pytest.mark.long

ONE = jax.devices()[:1]


def images(root, splits=("train", "val"), each=5):
    rng = np.random.default_rng(1)
    for split in splits:
        for name in ("oak", "elm", "ash"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"leaf{number}.png")
    return root


def table(root):
    """The same images as a table beside them."""
    images(root)
    lines = [
        f"{file.relative_to(root)},{file.parent.name},{file.parent.parent.name}"
        for file in sorted(root.rglob("*.png"))
    ]
    (root / "leaves.csv").write_text("\n".join(["image,label,split", *lines]) + "\n")
    return root


KINDS = {
    "folder": (images, "folder:{}"),
    "table": (table, "csv:{}/leaves.csv"),
    "mixture": (table, "0.4*folder:{} + 0.6*csv:{}/leaves.csv"),
}


def check(config, workdir):
    return check_same_run(run_of(config, devices=ONE), workdir / "checkpoints" / "2")


def of(source, **changes):
    return tiny_config(**{
        "data__train__source": source, "data__train__pipeline": "decode|resize",
        "data__eval__pipeline": "decode|resize", "batch_size": 6, "total_steps": 4,
        "eval_every_steps": 2, "checkpoint__every_steps": 2, "schedule__name": "constant",
        "model__num_layers": 1, "schedule__warmup_steps": 0,
    } | changes)  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """(kind, data, work folder) of a run of two steps."""
    root = tmp_path_factory.mktemp(request.param)
    make, spec = KINDS[request.param]
    data = make(root / "here")
    vit_jax.train(of(spec.replace("{}", str(data)), total_steps=2), root / "run", devices=ONE,
                  quiet=True)  # fmt: skip
    return spec, data, root / "run"


@pytest.fixture
def copied(run, tmp_path):
    """The run's data as it lies in another place, and a copy of its work folder."""
    spec, data, workdir = run
    shutil.copytree(data, tmp_path / "there")
    shutil.copytree(workdir, tmp_path / "run")
    return spec, tmp_path / "there", tmp_path / "run"


def test_a_run_whose_data_has_moved_tells_so_and_gives_the_numbers_of_an_undisturbed_one(
    run, copied, tmp_path, capsys
):
    spec, here, _ = run
    _, there, workdir = copied
    vit_jax.train(of(spec.replace("{}", str(here))), tmp_path / "whole", devices=ONE, quiet=True)
    vit_jax.train(of(spec.replace("{}", str(there))), workdir, devices=ONE)
    old, new = spec.replace("{}", str(here)), spec.replace("{}", str(there))
    assert capsys.readouterr().err.count(f"the data has moved: {old} -> {new}\n") == 1
    assert told(workdir) == told(tmp_path / "whole")
    measured = [[row for row in rows(one) if "eval/val/loss" in row]
                for one in (workdir, tmp_path / "whole")]  # fmt: skip
    assert measured[0] == measured[1]
    assert len(measured[0]) == 2


def rename(data):
    (data / "train" / "oak" / "leaf1.png").rename(data / "train" / "oak" / "leaf9.png")
    rewrite(data, "train/oak/leaf1.png", "train/oak/leaf9.png")


def relabel(data):
    (data / "train" / "oak" / "leaf1.png").rename(data / "train" / "elm" / "leaf9.png")
    rewrite(data, "train/oak/leaf1.png,oak", "train/elm/leaf9.png,elm")


def add(data):
    shutil.copy(data / "train" / "ash" / "leaf0.png", data / "train" / "ash" / "leaf9.png")
    rewrite(data, "train/ash/leaf0.png", "train/ash/leaf9.png,ash,train\ntrain/ash/leaf0.png")


def take_from_val(data):
    (data / "val" / "ash" / "leaf0.png").unlink()
    rewrite(data, "val/ash/leaf0.png,ash,val\n", "")


def rewrite(data, old, new):
    if (file := data / "leaves.csv").exists():
        file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("change", [rename, relabel, add, take_from_val])
def test_a_run_whose_images_are_others_is_refused_with_their_number(copied, change):
    spec, there, workdir = copied
    change(there)
    before = sorted(workdir.rglob("*"))
    sets = spec.count("{}")  # a mixture holds all twice
    other = f"has as many images, {15 * sets}, but other names or labels"
    difference = {
        rename: other, relabel: other,
        add: f"has {16 * sets} images instead of {15 * sets} ({sets} more)",
        take_from_val: f"has {14 * sets} images instead of {15 * sets} ({sets} fewer)",
    }[change]  # fmt: skip
    part = "eval" if change is take_from_val else "train"
    with pytest.raises(UserError) as refused:
        check(of(spec.replace("{}", str(there))), workdir)
    said = str(refused.value)
    assert f"data.{part}.source {spec.replace('{}', str(there))} {difference}" in said
    assert f"start a new run from this one: --workdir=NEW --config.init={workdir}" in said
    assert "\n" not in said
    assert sorted(workdir.rglob("*")) == before


def without_record(workdir):
    """A checkpoint as it was before checkpoints kept what their data held."""
    file = workdir / "checkpoints" / "2" / "about" / "metadata"
    about = json.loads(file.read_text())
    del about["sources"]
    file.write_text(json.dumps(about))


def test_an_old_checkpoint_goes_on_with_as_many_images_and_tells_what_was_not_compared(copied):
    spec, there, workdir = copied
    without_record(workdir)
    rename(there)
    (line,) = check(of(spec.replace("{}", str(there))), workdir)
    assert line.startswith("the data has moved: ")
    assert line.endswith("so their number and classes alone were compared")
    add(there)
    with pytest.raises(UserError, match="images instead of"):
        check(of(spec.replace("{}", str(there))), workdir)


def test_another_kind_of_source_or_another_key_is_named_as_such(copied):
    spec, there, workdir = copied
    source = spec.replace("{}", str(there))
    with pytest.raises(UserError, match=r"belongs to another run; what differs:\s+seed: 0 -> 5\n"):
        check(of(source, seed=5), workdir)
    other = f"folder:{there} + folder:{there}"
    with pytest.raises(UserError, match=r"differs:\s+data.eval.source: .*\s+data.train.source: "):
        check(of(other), workdir)


class Named:
    """A source of the user's own."""

    classes = ("no", "yes")

    def __init__(self, names_hash):
        if names_hash is not None:
            self.names_hash = names_hash

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"image": np.full((8, 8, 3), index, np.uint8), "label": index % 2}


def make(split, names_hash=None):
    return Named(names_hash if names_hash != "number" else 3)


def test_a_source_of_ones_own_is_compared_by_its_names_hash_if_it_has_one():
    place = "tests.training.test_moved_data:make"
    held = [run_of(of(place + rest), devices=ONE).held["data.train.source"]
            for rest in ("", ":abc")]  # fmt: skip
    assert held == [{"examples": 12, "names": None}, {"examples": 12, "names": "abc"}]
    with pytest.raises(UserError, match="its names_hash is 3, not a text or None"):
        run_of(of(f"{place}:number"), devices=ONE)


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("folder:a b", "folder:<a b>"),
        ("csv:~/t.csv", "csv:<~/t.csv>"),
        ("0.25*folder:x?y + csv:z", "0.25*folder:<x?y> + csv:<z>"),
        ("folder:~/a?val=0.1", "folder:<~/a>?val=0.1"),
        ("csv:t.csv?label=kind&root=photos", "csv:<t.csv>?label=kind&root=photos"),
        (
            "csv:t.csv?root=/a%26b&val=0.2 + folder:z",
            "csv:<t.csv>?root=</a%26b>&val=0.2 + folder:<z>",
        ),
        ("hf:/sets/leaves?label=kind", "hf:</sets/leaves>?label=kind"),
        ("hf:someone/leaves?label=kind", "hf:someone/leaves?label=kind"),
        ("tfds:leaves:1.0.0", "tfds:leaves:1.0.0"),
        ("digits", "digits"),
        ("own.module:Source:folder:x", "own.module:Source:folder:x"),
    ],
)
def test_the_paths_of_a_source_are_those_of_its_files_and_nothing_else(source, changed):
    assert with_paths(source, lambda path: f"<{path}>") == changed
