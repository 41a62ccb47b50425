"""Ctrl-C and SIGTERM: remembered, so that a run saves before it leaves."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from vit_jax.errors import INTERRUPTED, RESTART

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESTART}


class StopSignals:
    """While entered, Ctrl-C and SIGTERM set `code` (of exit) instead of ending the process; a
    second Ctrl-C ends it at once. Outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.code: int | None = None
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.code = CODES[signal.Signals(number)]
        name = signal.Signals(number).name
        # Not print, whose middle this may be; not sys.stderr, which in a notebook is no file.
        os.write(2, f"{name}: saves after this step, then stops\n".encode())
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> "StopSignals":
        try:
            for number in CODES:
                self._before[number] = signal.signal(number, self._remember)
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
