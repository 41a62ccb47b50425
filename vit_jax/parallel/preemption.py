"""Remembers Ctrl-C, SIGTERM and SIGHUP (the terminal is gone), so that a run saves before it stops:
in a job of several processes, after the same step in all of them."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from vit_jax.errors import INTERRUPTED, RESTART, Stopped

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESTART, signal.SIGHUP: RESTART}

ERASE_LINE = "\r\x1b[2K"  # as every terminal understands it


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGHUP set the exit `code` instead of ending the process.
    A second Ctrl-C ends it at once. SIGHUP stays ignored if it was, as under `nohup`. Outside the
    main thread, nothing changes.

    In a job, JAX listens to SIGTERM. Whichever process gets the signal, JAX chooses a step, and
    `code` is set in all processes after it.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._job = jax.process_count() > 1
        self._own = RESTART  # the exit code of this process when the job stops
        self._steps = 0  # since the start; JAX chooses the step to stop after by this count
        self._before: dict[int, Any] = {}

    def after_step(self) -> None:
        """Called after every step."""
        self._steps += 1
        if self._job and multihost_utils.reached_preemption_sync_point(self._steps):
            self.code = self._own

    def stopped(self, step: int) -> Stopped:
        """What ends a run that has saved after a step, because of a signal."""
        line = f"stopped at step {step}, saved; the same command continues it"
        return Stopped(line, self.code or RESTART)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        code = CODES[signal.Signals(number)]
        name = signal.Signals(number).name
        # Neither print, which the signal may have interrupted, nor sys.stderr, which a notebook
        # replaces. On a terminal, the line takes the place of the progress bar and of ^C.
        instead = ERASE_LINE if os.isatty(2) else ""
        _write_or_silence(f"{instead}{name}: saves after this step, then stops\n".encode())
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

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _write_or_silence(line: bytes) -> None:
    """Writes to stderr. If the terminal of stderr or stdout is gone, later output is discarded, so
    that it does not end the run before its save."""
    for number, text in ((2, line), (1, b"")):
        try:
            os.write(number, text)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
