"""Whatever a user gives wrong ends in one clear line and exit code 2, and leaves nothing behind."""

import fcntl
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.xla_flags import xla_flags
from vit_jax import cli
from vit_jax.errors import UserError

TINY = """
from tests.digits_run import tiny_config
def get_config():
    return tiny_config()
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(TINY)
    return file


@pytest.fixture
def train(recipe, tmp_path, capsys):
    """Runs `vit train` on the recipe and returns (exit code, what it said)."""

    def run(*options, workdir=tmp_path / "work"):
        code = cli.main(["train", f"--config={recipe}", f"--workdir={workdir}", *options])
        return code, capsys.readouterr().err

    return run


def image_folder(root: Path, classes=("cat", "dog"), splits=("train", "val"), count=4) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    return root


FOLDER_KEYS = (
    "--config.data.train.pipeline=decode|resize", "--config.data.eval.pipeline=decode|resize",
    "--config.batch_size=8", "--config.eval_batch_size=8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--config.optimizer.lrr=1", ["optimizer.lrr", "optimizer.lr"]),
        ("--config.optimizer.momentum=0.5", ["optimizer.momentum", "adamw", "sgd"]),
        ("--config.batch_size=many", ["batch_size", "whole number", "many"]),
        ("--config.model.qk_norm=perhaps", ["model.qk_norm", "true or false"]),
        ("--config.batch_size=30", ["batch_size 30", "8", "24 or 32"]),
        ("--config.microbatch=24", ["microbatch 24", "batch_size 32", "8, 16, 32"]),
        ("--config.mesh.fsdp=3", ["fsdp=3", "8 devices", "1, 2, 4, 8"]),
        ("--config.model.name=vit_bass_patch16_224", ["vit_bass_patch16_224", "vit_base_patch16"]),
        ("--config.model.image_size=30", ["30", "patch_size 4", "(28, 28) or (32, 32)"]),
        ("--config.data.train.source=folder:/not/there", ["/not/there", "SPLIT/CLASS"]),
        ("--config.data.train.source=digitz", ["digitz", "digits"]),
        ("--config.data.train.pipeline=decode|shfit(1)", ["shfit", "shift"]),
        ("--config.optimizer.name=adamm", ["adamm", "adam"]),
        ("--config.total_epochs=0", ["no length", "total_steps"]),
        ("--config.init=/not/there", ["/not/there", "no file, no folder"]),
        ("--config.optimizer.lr=-1", ["optimizer.lr", "-1"]),
        ("--config.loss.label_smoothing=3", ["loss.label_smoothing", "[0, 1)"]),
        ("--config.init=a --config.resume=b", ["init and resume are both set"]),
        ("--config.data.eval.split= --config.eval_batch_size=8", ["eval_batch_size", "split"]),
        ("--config.optimizer.name=lbfgs --config.optimizer.weight_decay=0", ["lbfgs"]),
        (
            "--config.model.attention=cudnn --config.model.attention_dropout=0 "
            "--config.model.dtype=bfloat16",
            ["model.attention=cudnn", "GPU"],
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_would_work(train, tmp_path, option, says):
    code, said = train(*option.split())
    assert code == 2
    for text in says:
        assert text in said, said
    assert "Traceback" not in said
    assert said.startswith("vit: error: ")
    assert not (tmp_path / "work").exists()


def test_a_missing_config_file_lists_the_recipes(tmp_path, capsys):
    assert cli.main(["train", "--config=digitz.py", f"--workdir={tmp_path}/w"]) == 2
    said = capsys.readouterr().err
    assert "digitz.py" in said
    assert "digits.py" in said
    assert not (tmp_path / "w").exists()


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trane"]) == 2
    assert "train" in capsys.readouterr().err


def test_a_folder_without_images(train, tmp_path):
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "val" / "cat").mkdir(parents=True)
    code, said = train(f"--config.data.train.source=folder:{tmp_path}/photos")
    assert code == 2
    assert "holds no images" in said
    assert not (tmp_path / "work").exists()


def test_a_class_in_val_that_train_lacks(train, tmp_path):
    photos = image_folder(tmp_path / "photos")
    (photos / "val" / "dog").rename(photos / "val" / "wolf")
    code, said = train(f"--config.data.train.source=folder:{photos}", *FOLDER_KEYS)
    assert code == 2
    assert "'wolf'" in said
    assert not (tmp_path / "work").exists()


def test_a_work_folder_of_another_config_names_each_key(train, tmp_path):
    assert train("--config.total_steps=1")[0] == 0
    before = sorted(p.name for p in (tmp_path / "work").rglob("*"))
    code, said = train("--config.total_steps=1", "--config.optimizer.lr=0.5", "--config.seed=3")
    assert code == 2
    assert "optimizer.lr: 0.003 -> 0.5" in said
    assert "seed: 0 -> 3" in said
    assert "log_every" not in said
    assert sorted(p.name for p in (tmp_path / "work").rglob("*")) == before
    assert train("--config.total_steps=2", "--config.log_every_steps=2")[0] == 0


def test_a_work_folder_held_by_a_living_run(train, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with (work / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("4711")
        held.flush()
        code, said = train()
    assert code == 2
    assert "locked by a living run (process 4711)" in said
    assert [p.name for p in work.iterdir()] == [".lock"]


def test_a_checkpoint_of_other_names_and_shapes_shows_both_lists(train, tmp_path):
    assert train("--config.total_steps=1")[0] == 0
    code, said = train(
        "--config.total_steps=1", f"--config.resume={tmp_path}/work", "--config.model.num_layers=3",
        "--config.model.mlp_dim=64", workdir=tmp_path / "other",
    )  # fmt: skip
    assert code == 2
    assert "only in the run (" in said
    assert "  params/encoder/block02/mlp/fc1/kernel [32, 64] float32" in said
    assert "block00/mlp/fc1/kernel: checkpoint [32, 128] float32, run [32, 64]" in said
    assert not (tmp_path / "other").exists()


def test_init_from_another_width_is_told_in_one_sentence(train, tmp_path):
    assert train("--config.total_steps=1")[0] == 0
    code, said = train(
        "--config.total_steps=1", f"--config.init={tmp_path}/work", "--config.model.hidden_size=16",
        workdir=tmp_path / "other",
    )  # fmt: skip
    assert code == 2
    assert "has hidden_size 32 (the model here: 16): model.hidden_size=32 would fit" in said


@pytest.mark.parametrize("key", ["init", "resume"])
def test_an_empty_name_of_weights_is_no_start_from_scratch(train, tmp_path, key):
    code, said = train("--config.total_steps=1", f"--config.{key}=")
    assert code == 2
    assert f"{key} is empty: name weights, or none with --config.{key}=None" in said
    assert not (tmp_path / "work").exists()
    assert train("--config.total_steps=1", f"--config.{key}=None")[0] == 0


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train", "--config.microbatch"), ("evaluate", "--config.eval_batch_size"),
        ("predict", "--batch-size"),
    ],
)  # fmt: skip
def test_a_device_without_enough_memory_is_told_in_one_line(monkeypatch, capsys, command, told):
    module = importlib.import_module(f"vit_jax.commands.{command}")
    monkeypatch.setattr(module, "run", lambda options: jnp.zeros(1 << 45).block_until_ready())
    needed = {"train": ["--config=digits.py", "--workdir=x"], "evaluate": ["--workdir=x"]}
    assert cli.main([command, *needed.get(command, ["a", "b"])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vit: error: Out of memory allocating ")
    assert told in line


def truncate(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def test_a_truncated_jpeg_is_named_counted_and_skipped_or_fatal(train, tmp_path):
    photos = image_folder(tmp_path / "photos")
    truncate(photos / "train" / "cat" / "1.jpg")
    truncate(photos / "val" / "dog" / "2.jpg")
    keys = (f"--config.data.train.source=folder:{photos}", *FOLDER_KEYS, "--config.total_steps=2")
    code, said = train(*keys)
    assert code == 0
    assert f"damaged image skipped: {photos}/train/cat/1.jpg" in said
    assert f"damaged image skipped: {photos}/val/dog/2.jpg" in said
    rows = (tmp_path / "work" / "metrics.jsonl").read_text()
    assert '"damaged_images": 2' in rows  # twice in two epochs of eight examples
    assert '"eval/val/examples": 7' in rows
    code, said = train(*keys, "--config.data.damaged=fail", workdir=tmp_path / "strict")
    assert code == 2
    assert "1.jpg" in said
    assert "--config.data.damaged=skip" in said


@pytest.mark.parametrize(
    ("limit", "says"),
    [("-f 100", "size limit"), ("-f 4", "size limit|File too large"),
     ("-n 16", "[Tt]oo many open files.*llow more of them")],
)  # fmt: skip
def test_a_limit_on_files_is_one_line_and_leaves_no_half_checkpoint(recipe, tmp_path, limit, says):
    run = subprocess.run(
        ["bash", "-c", f'ulimit {limit}; exec "$@"', "_",
         sys.executable, "-m", "vit_jax.cli", "train", f"--config={recipe}",
         f"--workdir={tmp_path}/work", "--config.mesh.data=1", "--config.model.hidden_size=64"],
        env=os.environ
        | {"XLA_FLAGS": xla_flags(), "JAX_COMPILATION_CACHE_DIR": "", "PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    errors = [line for line in run.stderr.splitlines() if "vit: error:" in line]
    assert len(errors) == 1, run.stderr
    assert re.search(says, errors[0])
    left = {path.name for path in (tmp_path / "work" / "checkpoints").glob("*")}
    # To remove a folder takes a handle too; a folder of this name is removed by the next start.
    assert left <= ({"5.orbax-checkpoint-tmp"} if limit.startswith("-n") else set())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(recipe, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("this container may not mount a file system")
    try:
        run = subprocess.run(
            [sys.executable, "-m", "vit_jax.cli", "train", f"--config={recipe}",
             f"--workdir={disk}/work", "--config.model.hidden_size=96"],
            env=os.environ | {"XLA_FLAGS": xla_flags(), "PYTHONPATH": os.getcwd()},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 2, run.stderr
        assert "Traceback" not in run.stderr
        assert "disk full" in run.stderr or "No space left" in run.stderr
        assert not list((disk / "work" / "checkpoints").glob("*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_help_exits_0_and_imports_nothing_heavy():
    code = (
        "import sys; from vit_jax import cli; code = cli.main(['--help']); "
        "heavy = {'jax', 'numpy', 'flax', 'tensorflow', 'torch'} & set(sys.modules); "
        "sys.exit(code or (f'{heavy}' if heavy else 0))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "usage: vit COMMAND" in run.stdout


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_each_command_has_help_that_exits_0(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: vit {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("c.optimizer.lrr = 1.0", "lrr"),
        ("c.batch_size = 'many'", "batch_size"),
        ("c.model.nothing.here = 1", "nothing"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_line(recipe, train, tmp_path, line, says):
    recipe.write_text(
        f"from vit_jax.config import base\ndef get_config():\n    c = base()\n    {line}\n"
        "    return c\n"
    )
    code, said = train()
    assert code == 2
    assert f"{recipe}, line 4" in said
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "work").exists()


def test_resume_from_another_run_names_each_key(train, tmp_path):
    assert train("--config.total_steps=1")[0] == 0
    code, said = train(
        "--config.total_steps=2", f"--config.resume={tmp_path}/work", "--config.seed=3",
        workdir=tmp_path / "other",
    )  # fmt: skip
    assert code == 2
    assert "seed: 0 -> 3" in said
    assert not (tmp_path / "other").exists()


def test_a_run_shorter_than_its_checkpoint_is_refused_and_nothing_is_rewritten(train, tmp_path):
    assert train("--config.total_steps=3")[0] == 0
    config = (tmp_path / "work" / "config.json").read_text()
    code, said = train("--config.total_steps=2")
    assert code == 2
    assert "past the end of this run, which has 2 steps" in said
    assert (tmp_path / "work" / "config.json").read_text() == config


def test_a_data_folder_that_has_changed_is_noticed(train, tmp_path):
    photos = image_folder(tmp_path / "photos")
    keys = (f"--config.data.train.source=folder:{photos}", *FOLDER_KEYS, "--config.total_steps=2")
    assert train(*keys)[0] == 0
    shutil.copy(photos / "train" / "cat" / "1.jpg", photos / "train" / "cat" / "new.jpg")
    code, said = train(*keys)
    assert code == 2
    assert "has 9 images instead of 8 (1 more): put it back as it was, or start a new" in said


def test_a_dangling_link_counts_as_damaged_also_over_a_restart(train, tmp_path):
    photos = image_folder(tmp_path / "photos")
    (photos / "train" / "cat" / "1.jpg").unlink()
    (photos / "train" / "cat" / "1.jpg").symlink_to("nowhere.jpg")
    keys = (f"--config.data.train.source=folder:{photos}", *FOLDER_KEYS)
    code, said = train(*keys, "--config.total_steps=1")
    assert code == 0, said
    assert f"damaged image skipped: {photos}/train/cat/1.jpg" in said
    assert train(*keys, "--config.total_steps=2")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").open()]
    told = [row["damaged_images"] for row in rows if "damaged_images" in row]
    assert told == [1, 2]  # once an epoch of eight


@pytest.mark.parametrize("part", ["about", "state"])
def test_a_checkpoint_with_a_missing_part_is_named(train, tmp_path, part, capsys):
    assert train("--config.total_steps=1")[0] == 0
    damaged = tmp_path / "work" / "checkpoints" / "1" / part
    for file in [p for p in damaged.rglob("*") if p.is_file()]:
        file.unlink()
    assert cli.main(["evaluate", f"--workdir={tmp_path}/work"]) == 2
    said = capsys.readouterr().err
    assert f"checkpoints/1 is damaged: {part}/" in said
    assert "Traceback" not in said


def test_what_surprises_is_said_and_a_work_folder_serves_from_anywhere(
    train, tmp_path, monkeypatch, capsys
):
    photos = image_folder(tmp_path / "photos")
    (photos / "train" / "bird").mkdir()
    monkeypatch.chdir(tmp_path)
    keys = ("--config.data.train.source=folder:photos", *FOLDER_KEYS)
    code, said = train(*keys, "--config.total_steps=1")
    assert code == 0
    assert "photos/train: the class 'bird' has no images" in said
    code, said = train(*keys, "--config.total_steps=2")
    assert code == 0
    assert "total_steps was 1 and is 2 now" in said
    monkeypatch.chdir("/")
    assert cli.main(["evaluate", f"--workdir={tmp_path}/work"]) == 0
    capsys.readouterr()
    code, said = train("--config.batch_size=1600", "--config.total_steps=1", workdir=tmp_path / "b")
    assert code == 0
    assert "batch_size 1600 is more than the 1442 training examples" in said


def test_train_in_a_notebook_takes_a_config_and_says_so(tmp_path):
    with pytest.raises(UserError, match=r"recipe.load gives it, not 'digits.py'"):
        vit_jax.train("digits.py", tmp_path / "work")
    assert {"create_model", "list_models", "train"} <= set(dir(vit_jax))


# -- images and labels -----------------------------------------------------------------------------


def table(root: Path, label: str = "1", image: bytes | None = None) -> str:
    """A table of twelve images, of which the fourth has this label, or these bytes."""
    root.mkdir(parents=True)
    lines = ["image,label,split"]
    for number in range(12):
        file = root / f"{number}.jpg"
        Image.fromarray(np.full((9, 9, 3), 20 * number, np.uint8)).save(file, quality=95)
        of = label if number == 3 else str(number % 2)
        lines.append(f"{file.name},{of},{'val' if number > 9 else 'train'}")
    if image is not None:
        (root / "3.jpg").write_bytes(image)
    (root / "t.csv").write_text("\n".join(lines))
    return f"csv:{root}/t.csv"


def test_a_label_that_is_no_class_ends_before_the_run(train, tmp_path):
    source = table(tmp_path / "data", "nan")
    code, said = train(f"--config.data.train.source={source}", *FOLDER_KEYS)
    assert (code, said.count("\n")) == (2, 1)
    assert "t.csv, line 5: the label 'nan' is no class" in said
    assert not (tmp_path / "work").exists()


def bomb() -> bytes:
    """A JPEG that says it has 20,000 x 20,000 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    return bytes(data)


def one_pixel_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "damaged"),
    [(b"", 1), (b"\xff\xd8\xff\xe0 cut off", 1), (bomb(), 1), (one_pixel_png(), 0)],
    ids=["zero bytes", "truncated", "bomb", "PNG of one pixel named .jpg"],
)
@pytest.mark.parametrize("crop", ["resize", "inception_crop"])
def test_a_bad_file_is_named_once_and_counted_once_an_epoch(train, tmp_path, image, damaged, crop):
    source = table(tmp_path / "data", image=image)
    code, said = train(
        f"--config.data.train.source={source}", *FOLDER_KEYS[1:], "--config.total_steps=5",
        f"--config.data.train.pipeline=decode|{crop}",
    )  # fmt: skip
    assert code == 0, said
    assert said.count(f"damaged image skipped: {tmp_path}/data/3.jpg") == damaged
    assert said.count("damaged image skipped: 4 times in all") == damaged  # 40 of 10 examples


OWN = """
import numpy as np
class Wrong:
    classes = ["a", "b"]
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return 32
    def __getitem__(self, index):
        label = {label} if index == 5 and self.split == "train" else 0
        return {{"image": np.zeros((8, 8, 3), np.uint8), "label": label}}
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("label", ["2", "float('nan')"])
def test_a_label_out_of_range_ends_the_run_in_one_line(
    train, tmp_path, monkeypatch, label, workers
):
    package = f"labels_{workers}_{label == '2'}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "ours.py").write_text(OWN.format(label=label))
    monkeypatch.chdir(tmp_path)
    code, said = train(
        f"--config.data.train.source={package}.ours:Wrong", f"--config.data.workers={workers}"
    )
    assert code == 2
    last = said.splitlines()[-1]
    assert "Wrong example 5 has the label" in last
    assert "whole numbers from 0 to 1" in last
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("data.train.pipeline=decode|inception_corp", "did you mean inception_crop"),
        ("data.train.pipeline=decode|randaug(two)", "randaug takes (num_ops: int = 2"),
        ("data.train.pipeline=decode|nothing.here:op", "cannot be imported: No module named"),
        ("data.train.source=nothing.here:Source", "cannot be imported: No module named"),
        ("data.train.source=hf:nothing", "vit_jax[hf]"),
        ("data.eval.split=tset", "has no split 'tset': it has train, val"),
        ("data.train.source=csv:/nowhere.csv", "there is no file /nowhere.csv"),
        ("cutmix=-1", "cutmix is a number of at least 0, not -1"),
    ],
)
def test_a_source_or_pipeline_that_cannot_be_is_one_line(train, tmp_path, key, told):
    if key.startswith("data.train.source=hf:") and importlib.util.find_spec("datasets"):
        told = "hf:nothing cannot be loaded"
    code, said = train(f"--config.{key}")
    assert (code, said.count("\n")) == (2, 1)
    assert told in said
    assert not (tmp_path / "work").exists()


def test_a_disk_that_is_full_is_told_with_the_files_name(monkeypatch, capsys):
    def write(options):
        with Path("/dev/full").open("w", encoding="utf-8") as file:
            file.write("x")
            file.flush()

    monkeypatch.setattr(importlib.import_module("vit_jax.commands.runs"), "run", write)
    assert cli.main(["runs", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "vit: error: cannot read or write /dev/full: No space left on device"
