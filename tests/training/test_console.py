"""What a person sees of a run: lines that fit the terminal, warnings that are counted, the bar."""

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from PIL import Image

from vit_jax.training.console import MOST, Console, Repeats, step_line

ROW = {
    "step": 1300, "loss": 1.09304, "learning_rate": 8e-4, "images_per_second": 1044.2,
    "images_per_second_per_device": 130.5, "mfu": 0.412, "data_wait": 0.04, "skipped_steps": 0,
    "damaged_images": 0,
}  # fmt: skip
ALL = (
    "step  1300/14000   9%  left 21:41  loss 1.0930  lr 8.00e-04  1044 images/s  (130/device)  "
    "MFU 41.2%  of 9.89e+14 FLOP/s  data wait 4%"
)


def line(width, **changes):
    return step_line(ROW | changes, 14_000, 107, 8, 9.89e14, width)


# -- lines --------------------------------------------------------------------------------


def test_a_log_has_the_whole_line_of_a_step():
    assert line(None) == ALL
    assert line(None, skipped_steps=3, damaged_images=7) == f"{ALL}  skipped 3  damaged 7"


@pytest.mark.parametrize("width", [*range(50, 135, 5), 80])
def test_a_line_of_a_step_fits_the_terminal_and_keeps_loss_and_speed(width):
    for changes in {}, {"data_wait": 0.4}, {"skipped_steps": 3, "damaged_images": 12_345}:
        shown = line(width, **changes)
        assert len(shown) <= width
        assert shown.startswith("step  1300/14000   9%")
        assert "loss 1.0930" in shown
        assert "1044 images/s" in shown


def test_what_is_amiss_stays_in_a_short_line():
    """Skipped steps, damaged images and long waits for data say that something is wrong."""
    shown = line(80, data_wait=0.4)
    assert "data wait 40%" in shown
    assert "lr" not in shown
    shown = line(80, skipped_steps=3, damaged_images=7)
    assert "skipped 3  damaged 7" in shown


def test_a_log_is_not_folded(capsys):
    long = "warning: " + "word " * 60
    Console(10, 0, 1).say(long)
    assert capsys.readouterr().err == f"{long}\n"


# -- warnings -----------------------------------------------------------------------------


def test_a_warning_is_printed_once_and_its_kind_counted():
    repeats = Repeats()
    said = [line for _ in range(4) for name in "ab" for line in repeats.new(f"damaged: {name}")]
    assert said == ["damaged: a", "damaged: b"]
    assert repeats.new("the disk is slow") == ["the disk is slow"]
    assert repeats.counted() == ["damaged: 8 times in all"]


def test_of_very_many_warnings_of_a_kind_the_first_ones_are_printed():
    repeats = Repeats()
    said = [line for number in range(500) for line in repeats.new(f"damaged: {number}.png")]
    first = [f"damaged: {number}.png" for number in range(MOST)]
    assert said == [*first, "damaged: others are counted, not shown"]
    assert repeats.counted() == ["damaged: 500 times in all"]


# -- on a terminal ------------------------------------------------------------------------
COLUMNS = 80
ERASED = r"\x1b\[2?K"
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def in_terminal(command, folder):
    """Runs a command on a terminal of 80 columns. Interrupts it after three evaluations. Returns
    all that it wrote and its exit code."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("COLUMNS", "LINES", "NO_COLOR")}  # fmt: skip
    process = subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment | {"TERM": "xterm-256color", "XLA_FLAGS": ""},
    )  # fmt: skip
    os.close(theirs)
    wrote, interrupted = "", False
    while True:
        try:
            part = os.read(ours, 4096).decode(errors="replace")
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        wrote += part
        if not interrupted and len(re.findall(r"step \d+: val", wrote)) > 2:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(ours)
    return wrote, process.wait()


@pytest.mark.long
def test_a_run_on_eighty_columns_wraps_no_line_and_shows_loss_and_speed(tmp_path):
    rng = np.random.default_rng(0)
    for split, name in [(split, name) for split in ("train", "val") for name in ("cats", "dogs")]:
        folder = tmp_path / f"a folder with a long name/{split}/{name}"
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:500])
    keys = {
        "batch_size": 4, "total_steps": 100_000, "log_every_steps": 100, "eval_every_steps": 100,
        "model.image_size": 16, "model.num_layers": 1, "model.hidden_size": 16,
        "model.num_heads": 2, "model.mlp_dim": 16, "optimizer.lr": 1e-5,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "vit_jax.cli", "train",
        "--config=folder.py:a folder with a long name",
        "--workdir=a run with a name that is longer than most names of runs are",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]  # fmt: skip
    wrote, code = in_terminal(command, tmp_path)
    assert code == 130, wrote
    drawn = [CODES.sub("", part) for part in re.split(r"[\r\n]+", wrote)]
    assert [part for part in drawn if len(part) > COLUMNS] == []
    said = "\n".join(drawn)
    assert re.search(r"\d+/100000 [━╸╺]+ loss \d\.\d{4} \d+ images/s left \d+:\d\d:\d\d", said)
    for split in "train", "val":
        for name in "cats", "dogs":
            assert said.count(f"{split}/{name}/broken.png") == 1
    assert re.search(r"^damaged image skipped: \d+ times in all$", said, re.MULTILINE)
    assert re.search(ERASED + "SIGINT: saves after this step, then stops\r?\n", wrote)
    assert re.search(
        r"^vit: stopped at step \d+, saved; the same command continues it$", said, re.M
    )
