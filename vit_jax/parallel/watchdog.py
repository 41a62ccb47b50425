"""Ends a run that no longer makes steps, so that its launcher can start it again."""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from vit_jax.errors import WATCHDOG

TIMES_MEDIAN = 20  # how many median steps one step may take
SLOW = 10  # factor for announced pauses, and for the first steps, when other processes compile
FIRST = 10  # number of first steps


class Watchdog:
    """While entered, ends the process with exit code WATCHDOG and prints the stacks of all threads
    if `beat` is not called for `floor` seconds, or 20 median intervals if that is longer.

    It starts with the first beat, or `at_once`. During the first ten steps and inside
    `with watchdog.slow:` the limit is ten times as long. Time in which the whole process was
    stopped does not count.
    """

    def __init__(self, floor: float, at_once: bool = False):
        self._floor, self._factor = floor, 1
        self._last = time.monotonic() if at_once else 0.0
        self._intervals: deque[float] = deque(maxlen=101)
        self._limit = floor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Tells the watchdog that a step is done."""
        now = time.monotonic()
        if self._last:
            self._intervals.append(now - self._last)
            if len(self._intervals) >= FIRST:
                usual = statistics.median(self._intervals)
                self._limit = max(self._floor, TIMES_MEDIAN * usual)
        self._last = now

    @property
    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """A context for work that takes longer than a step."""
        self.slow_down()
        try:
            yield
        finally:
            self._last = self._last and time.monotonic()
            self._factor = 1

    def slow_down(self) -> None:
        """Allows longer pauses from now on."""
        self._factor = SLOW

    def _watch(self) -> None:
        interval = min(1.0, self._floor / 4)
        expected = time.monotonic() + interval
        while not self._over.wait(interval):
            late = time.monotonic() - expected
            expected = time.monotonic() + interval
            if late > interval + 1.0 and self._last:  # Ctrl-Z, or a scheduler
                self._last += late
            factor = SLOW if len(self._intervals) < FIRST else self._factor
            silent, limit = time.monotonic() - self._last, self._limit * factor
            if self._last and silent > limit:
                line = (
                    f"vit: no step for {silent:.0f} s (limit {limit:.0f} s, --config.step_timeout)"
                )
                os.write(2, f"{line}; stacks of all threads:\n".encode())
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                os._exit(WATCHDOG)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
