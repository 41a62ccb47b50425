"""What one run compiled, the next one beside it does not compile again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xla_flags import xla_flags
from vit_jax.parallel.compile_cache import refusal

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
TINY = ["--config.total_steps=2", "--config.model.num_layers=2", "--config.data.eval.split=",
        "--config.eval_every_steps=None", "--config.batch_size=16"]  # fmt: skip


def train(workdir, **environment):
    keep = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    keep |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(),
        "NPROC": "",
        "PYTHONPATH": str(ROOT),
        "JAX_LOG_COMPILES": "0",
    }
    subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", "train", "--config=digits.py",
         f"--workdir={workdir}", *TINY],
        check=True, capture_output=True, env=keep | environment, cwd=ROOT,
    )  # fmt: skip


def kept(folder):
    return {path.name for path in folder.rglob("jit_train_step-*") if path.is_file()}


def test_programs_are_kept_beside_the_work_folder_and_found_again(tmp_path):
    train(tmp_path / "first")
    programs = kept(tmp_path / ".jax_cache")
    assert programs
    train(tmp_path / "second")
    new = {name for name in kept(tmp_path / ".jax_cache") - programs if name.endswith("-cache")}
    assert not new  # reading one leaves a note of its time beside it at most


def test_another_place_can_be_named_and_none(tmp_path):
    train(tmp_path / "runs" / "first", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "there"))
    assert kept(tmp_path / "there")
    train(tmp_path / "runs" / "second", JAX_COMPILATION_CACHE_DIR="")
    assert not (tmp_path / "runs" / ".jax_cache").exists()


@pytest.mark.parametrize(
    ("modes", "says"),
    [
        ((0o755, 0o700, 0o700), ""), ((0o1777, 0o755, 0o755), ""), ((0o775, 0o700, 0o700), ""),
        ((0o755, 0o775, 0o700), "other users can write"), ((0o777, 0o700, 0o700), "every user"),
        ((0o755, 0o755, 0o757), "other users can write"),
    ],
)  # fmt: skip
def test_programs_are_read_from_a_folder_that_nobody_else_can_write_to(tmp_path, modes, says):
    parent, cache = tmp_path / "runs", tmp_path / "runs" / ".jax_cache"
    (cache / "cpu").mkdir(parents=True)
    for folder, mode in zip((parent, cache, cache / "cpu"), modes, strict=True):
        folder.chmod(mode)
    assert bool(refusal(cache / "cpu")) == bool(says)
    assert says in refusal(cache / "cpu")


def test_programs_of_another_user_or_behind_a_link_are_not_read(tmp_path):
    (tmp_path / ".jax_cache").symlink_to("/tmp")
    assert "a file or a link" in refusal(tmp_path / ".jax_cache" / "cpu")
    if os.geteuid() == 0:
        (tmp_path / "runs" / ".jax_cache").mkdir(parents=True)
        os.chown(tmp_path / "runs" / ".jax_cache", 12345, 12345)
        assert "another user's" in refusal(tmp_path / "runs" / ".jax_cache" / "cpu")
