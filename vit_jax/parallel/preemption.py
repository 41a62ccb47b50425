"""Ctrl-C, SIGTERM and SIGHUP (a terminal that is gone): remembered, so that a run saves before it
leaves; in a job of several processes, after the same step in all of them."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from vit_jax.errors import INTERRUPTED, RESTART

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESTART, signal.SIGHUP: RESTART}


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGHUP set `code` (of exit) instead of ending the process;
    a second Ctrl-C ends it at once. SIGHUP stays ignored where it was, under `nohup`. Outside the
    main thread it does nothing.

    In a job JAX itself listens to SIGTERM and agrees with all processes on a step: whichever of
    them was told, `code` is set in all of them after it.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._job = jax.process_count() > 1
        self._own = RESTART  # what this process leaves with when the job stops
        self._steps = 0  # since the start: JAX agrees on one that is still to come, counted so
        self._before: dict[int, Any] = {}

    def after_step(self) -> None:
        """Called after every step."""
        self._steps += 1
        if self._job and multihost_utils.reached_preemption_sync_point(self._steps):
            self.code = self._own

    def _remember(self, number: int, frame: FrameType | None) -> None:
        code = CODES[signal.Signals(number)]
        name = signal.Signals(number).name
        # Not print, whose middle this may be; not sys.stderr, which in a notebook is no file.
        _write_or_silence(f"{name}: saves after this step, then stops\n".encode())
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._job:
            self._own = code
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.code = code

    def __enter__(self) -> "StopSignals":
        try:
            for number in CODES:
                if self._job and number == signal.SIGTERM:  # JAX listens to it
                    continue
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._remember)
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _write_or_silence(line: bytes) -> None:
    """Writes to stderr; where that or stdout is a terminal that is gone, what is still said there
    goes nowhere, so that it does not end the run before its save."""
    for number, said in ((2, line), (1, b"")):
        try:
            os.write(number, said)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
