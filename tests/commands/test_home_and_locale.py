"""`~` is the home folder wherever a path is typed, and names are UTF-8 whatever the locale says."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands.arguments import command_line

RECIPE = """
from tests.digits_run import tiny_config
def get_config(source):
    return tiny_config(
        total_steps=1, checkpoint__every_steps=1, batch_size=8, data__train__source=source,
        data__train__pipeline="decode|resize", data__eval__pipeline="decode|resize",
    )
"""


@pytest.mark.parametrize(
    ("command", "given", "found"),
    [
        ("train", ["--config=~/recipe.py:x", "--workdir=~/runs/a"], ["config", "workdir"]),
        ("evaluate", ["--workdir=~/a", "--report=~/r", "--json=~/j"],
         ["workdir", "report", "json"]),
        ("evaluate", ["--checkpoint", "~/a/checkpoints/1"], ["checkpoint"]),
        ("predict", ["~/w.npz", "~/cat.jpg", "~/dog.jpg", "--output=~/p.csv"],
         ["weights", "images", "output"]),
        ("convert", ["~/w.npz", "~/out", "--to=timm"], ["weights", "destination"]),
        ("describe", ["--config=~/recipe.py", "--batch=~/b.png"], ["config", "batch"]),
        ("compare", ["~/a", "~/b", "--output=~/c.html"], ["runs", "output"]),
    ],
)  # fmt: skip
def test_a_tilde_is_the_home_folder_in_every_option(command, given, found, monkeypatch):
    monkeypatch.setenv("HOME", "/the/home")
    module = importlib.import_module(f"vit_jax.commands.{command}")
    options = vars(command_line(command, module, given))
    for name in found:
        values = options[name] if isinstance(options[name], list) else [options[name]]
        assert all(value.startswith("/the/home/") for value in values)


def test_a_tilde_is_the_home_folder_in_every_key(monkeypatch):
    monkeypatch.setenv("HOME", "/the/home")
    module = importlib.import_module("vit_jax.commands.train")
    given = ["--config=a.py", "--workdir=b", "--config.init=~/w.npz", "--config.resume", "~/c"]
    overrides = command_line("train", module, given).overrides
    assert overrides == {"init": "/the/home/w.npz", "resume": "/the/home/c"}


def vit(*arguments, folder, **environment):
    started = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]), **environment)
    return subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", *arguments], cwd=folder, env=started, check=False,
        capture_output=True, text=True, encoding="latin-1", timeout=300,
    )  # fmt: skip


def test_a_run_ends_well_in_a_locale_without_letters_beyond_ascii(tmp_path):
    """One process trains from a folder below ~ on classes with such names, where Python is told
    to have ASCII alone."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    for split in ("train", "val"):
        for name in ("Äpfel × 2", "梨"):
            folder = home / "obst" / split / name
            folder.mkdir(parents=True)
            for number in range(8 if split == "train" else 1):
                pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), np.uint8)
                Image.fromarray(pixels.repeat(3, axis=2)).save(folder / f"{number}ß.png")
    (here / "recipe.py").write_text(RECIPE)
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = vit(
        "train", "--config=recipe.py:folder:~/obst", "--workdir=~/läufe/a", folder=here,
        HOME=str(home), **ascii_alone,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    run = home / "läufe" / "a"
    assert json.loads((run / "classes.json").read_text()) == ["Äpfel × 2", "梨"]
    assert "Äpfel × 2, 梨" in (run / "model_card.md").read_text("utf-8")
    assert sorted(p.name for p in here.iterdir()) == ["recipe.py"]  # no folder called ~
    told = vit("runs", str(home / "läufe"), folder=here, PYTHONIOENCODING="latin-1")
    assert (told.returncode, told.stderr) == (0, "")


def test_a_tilde_of_another_machine_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/the/home")
    from vit_jax.commands import launch

    given = [
        "tpu",
        "--image=a",
        "--accelerator=v5e-8",
        "--zone=b",
        "--setup=~/mount.sh",
        "--dir=~/d",
    ]
    options = command_line("launch", launch, [*given, "--", "train", "--config=digits.py"])
    assert (options.setup, options.dir) == ("~/mount.sh", "/the/home/d")
