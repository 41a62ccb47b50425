"""Profiles some steps, for xprof (`pip install xprof; xprof WORKDIR/profile/0`)."""

from pathlib import Path

import jax

from vit_jax.parallel.runtime import process


class Profile:
    """Writes a trace to WORKDIR/profile/PROCESS; `text` is FIRST:COUNT[:PROCESSES], in steps."""

    def __init__(self, workdir: Path, text: str | None):
        first, count, which = (*(text or "0:0").split(":"), "0")[:3]
        asked = which == "all" or str(process()) in which.split(",")
        self._first = int(first) if asked else 0
        self._end = self._first + int(count)
        self._folder = workdir / "profile" / str(process())
        self._running = False

    def after(self, step: int) -> str | None:
        """To be called before the first step and after every step. Returns a line when a trace has
        been written."""
        if self._first and not self._running and self._first <= step + 1 < self._end:
            jax.profiler.start_trace(self._folder)
            self._first, self._running = step + 1, True
        elif self._running and step + 1 >= self._end:
            line = f"steps {self._first} to {step} traced: {self._folder}"
            self.close()
            return line
        return None

    def close(self) -> None:
        """Ends the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._first = False, 0
