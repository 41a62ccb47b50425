"""Where the time of a run goes, over all its restarts."""

import contextlib
import time
from collections.abc import Iterator

# What stands behind each name: until the first state is there; compilation; waiting for a batch;
# steps; evaluation; waiting for a save; steps done again because a checkpoint was before them.
PARTS = ("init", "compile", "data", "step", "evaluate", "checkpoint", "lost")
TRAINING = ("data", "step", "checkpoint")


class Ledger:
    """Seconds by name. What is spent in no named part between them is `step`."""

    def __init__(self, before: dict[str, float], began: float):
        self._seconds = dict.fromkeys(PARTS, 0.0) | before
        self._mark = began  # where what is not yet booked begins

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Books the time inside on `part`."""
        self.book("step")
        try:
            yield
        finally:
            self.book(part)

    def book(self, part: str) -> None:
        """Books the time since the last booking."""
        now = time.monotonic()
        self._seconds[part] += now - self._mark
        self._mark = now

    def lose(self, seconds: float) -> None:
        """Books what was trained after the checkpoint that the run went back to."""
        self._seconds["lost"] += max(0.0, seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """All of it up to now."""
        self.book("step")
        return dict(self._seconds)

    @property
    def train_seconds(self) -> float:
        """Training: without starts, compilation and evaluation."""
        return sum(self.seconds[part] for part in TRAINING)

    def in_words(self) -> str:
        """`step 93.1%  data 0.4%  …`: shares of the whole, the largest first."""
        whole = sum(self.seconds.values()) or 1.0
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        return "  ".join(f"{name} {s / whole:.1%}" for name, s in parts if s / whole >= 0.0005)
