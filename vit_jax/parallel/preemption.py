"""Ctrl-C and SIGTERM: remembered, so that a run saves before it leaves."""

import signal
from types import FrameType, TracebackType
from typing import Any

from vit_jax.errors import INTERRUPTED, RESTART

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESTART}


class StopSignals:
    """While entered, the first Ctrl-C or SIGTERM sets `code` (of exit) instead of ending the
    process, and a second one ends it at once. Outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.code: int | None = None
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.code = CODES[signal.Signals(number)]
        for which in self._before:
            signal.signal(which, signal.default_int_handler)

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
