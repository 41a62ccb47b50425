"""The watchdog, in a process of its own that stands still."""

import subprocess
import sys

SCRIPT = """
import threading, time
from vit_jax.parallel.watchdog import Watchdog
with Watchdog({floor}) as watchdog:
    {body}
print("ended")
"""


def run(floor, body):
    script = SCRIPT.format(floor=floor, body=body)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_that_stands_still_leaves_with_76_and_its_stacks():
    ended = run(0.5, "for _ in range(11): watchdog.beat()\n    threading.Event().wait()")
    assert ended.returncode == 76
    assert "no step for" in ended.stderr
    assert "in wait" in ended.stderr  # where the main thread stands


def test_before_the_first_beat_nothing_is_expected():
    ended = run(0.2, "threading.Event().wait(1.0)")
    assert (ended.returncode, ended.stdout) == (0, "ended\n")


def test_an_announced_pause_may_take_ten_times_as_long():
    body = """for _ in range(11): watchdog.beat()
    with watchdog.slow:
        threading.Event().wait(1.0)
    threading.Event().wait(0.1)"""
    assert run(0.4, body).returncode == 0


def test_so_may_the_first_steps():
    assert run(0.2, "watchdog.beat(); threading.Event().wait(1.0)").returncode == 0
    assert run(0.2, "watchdog.beat(); threading.Event().wait()").returncode == 76


def test_slow_steps_raise_the_limit():
    body = """
    for _ in range(11):
        watchdog.beat(); threading.Event().wait(0.1)
    threading.Event().wait(1.0)"""
    assert run(0.5, body).returncode == 0  # 20 x 0.1 s
