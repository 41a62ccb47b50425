"""Where the time of a run goes, over all its restarts.

Waiting is booked where it belongs: queued steps are waited for as `step` before a save or an
evaluation begins, and only time in which the devices have nothing to do counts as `data`.
"""

import contextlib
import time
from collections.abc import Iterator

# What stands behind each name: all before the first state is there; compiling the training step;
# waiting for a batch while the devices have nothing to do; steps, and waiting for those that are
# queued; evaluation; waiting for a save; steps done again because a checkpoint was before them.
PARTS = ("init", "compile", "data", "step", "evaluate", "checkpoint", "lost")
TRAINING = ("data", "step", "checkpoint")


class Ledger:
    """Seconds by name, on top of those `before` a restart. At every moment one part runs: `init`
    first, from `began` on."""

    def __init__(self, before: dict[str, float], began: float):
        self._seconds = dict.fromkeys(PARTS, 0.0) | before
        self._part, self._mark = "init", began

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """The time inside is that of `part`."""
        outside = self._part
        self.turn(part)
        try:
            yield
        finally:
            self.turn(outside)

    def turn(self, part: str) -> None:
        """From now on it is `part` that runs."""
        now = time.monotonic()
        self._seconds[self._part] += now - self._mark
        self._part, self._mark = part, now

    def add(self, before: dict[str, float]) -> None:
        """Takes over what earlier starts of the run have booked."""
        for part, seconds in before.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def lose(self, seconds: float) -> None:
        """Books what was trained after the checkpoint that the run went back to."""
        self._seconds["lost"] += max(0.0, seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """All of it up to now."""
        return self._seconds | {
            self._part: self._seconds[self._part] + time.monotonic() - self._mark
        }

    @property
    def train_seconds(self) -> float:
        """Training: without starts, compilation and evaluation."""
        return sum(self.seconds[part] for part in TRAINING)

    def in_words(self) -> str:
        """`step 93.1%  data 0.4%  …`: shares of the whole, the largest first."""
        whole = sum(self.seconds.values()) or 1.0
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        return "  ".join(f"{name} {s / whole:.1%}" for name, s in parts if s / whole >= 0.0005)
