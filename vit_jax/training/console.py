"""What a person sees of a run: a line an interval, every warning once, and on a terminal a progress
bar below them.

On a terminal, no line is longer than the terminal is wide: a step's line leaves out what matters
least, and other lines are folded between words. In a log, lines are whole.
"""

import time
from collections import Counter
from typing import Any

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 0.1  # seconds between two updates of the bar, at least
MOST = 10  # different warnings of a kind that are printed
SLOW = 0.2  # share of waiting for data that matters
INDENT = "  "  # of what follows in a folded line


class Console:
    """Prints lines to standard error; on a terminal also a progress bar below the lines."""

    def __init__(self, total: int, start: int, batch_size: int):
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._batch_size, self._updated = batch_size, 0.0
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total}"), BarColumn(bar_width=20),
            TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}"),
            TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True,
            disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=start, loss="", speed="")

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None if there is none."""
        return self._console.width if self._console.is_terminal else None

    def start(self) -> None:
        self._bar.start()

    def say(self, text: str) -> None:
        self._console.print(_folded(text, self._console), markup=False)

    def at(self, step: int, loss: Any = None) -> None:
        """Moves the bar to a step. `loss` is an array that is computed already."""
        now = time.monotonic()
        if self._bar.disable or now - self._updated < EVERY:
            return
        self._updated = now
        self._bar.update(self._task, completed=step)
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            loss="" if loss is None else f"loss {float(loss):.4f}",
            speed="" if speed is None else f"{speed * self._batch_size:.0f} images/s",
        )

    def close(self) -> None:
        self._bar.stop()


def tell(text: str) -> None:
    """Prints a result to standard output, folded where that is a terminal."""
    print(_folded(text, RichConsole()))


def _folded(text: str, console: RichConsole) -> str:
    """Lines that are longer than the terminal is wide, folded between words. A word that is longer,
    such as a path, stays whole, so that it can be copied."""
    if not console.is_terminal:
        return text
    lines = []
    for line in text.split("\n"):
        current, *words = line.split(" ")
        for word in words:
            if cell_len(f"{current} {word}") > console.width:
                lines.append(current.rstrip())
                current = INDENT + word
            else:
                current += f" {word}"
        lines.append(current)
    return "\n".join(lines)


class Repeats:
    """Warnings that may come again and again. A kind of warning is what stands before its colon."""

    def __init__(self) -> None:
        self._texts: dict[str, set[str]] = {}
        self._counts: Counter[str] = Counter()

    def new(self, text: str) -> list[str]:
        """What is to be printed of a warning: itself, if it is new and not too many of its kind
        were."""
        kind = text.partition(":")[0]
        texts = self._texts.setdefault(kind, set())
        self._counts[kind] += 1
        if text in texts or len(texts) > MOST:
            return []
        texts.add(text)
        return [text] if len(texts) <= MOST else [f"{kind}: others are counted, not shown"]

    def counted(self) -> list[str]:
        """A line for each kind of which more came than were printed."""
        return [
            f"{kind}: {count:,} times in all"
            for kind, count in self._counts.items() if count > len(self._texts[kind])
        ]  # fmt: skip


def step_line(
    row: dict[str, Any], total: int, batch_size: int, devices: int, peak: float | None,
    width: int | None,
) -> str:  # fmt: skip
    """The line of a step's row. Where it is longer than `width`, what matters least is left out.

    Args:
      peak: FLOP/s of all devices, where it is known.
    """
    step, speed = row["step"], row["images_per_second"]
    left = (total - step) * batch_size / max(speed, 1e-9)
    each = f"({row['images_per_second_per_device']:.0f}/device)" if devices > 1 else ""
    parts = [  # how soon it is left out, and its text
        (0, f"step {step:>{len(str(total))}}/{total} {step / total:4.0%}"),
        (2, f"left {_duration(left)}"),
        (0, f"loss {row['loss']:.4f}"),
        (3, f"lr {row['learning_rate']:.2e}"),
        (0, f"{speed:.0f} images/s"),
        (7, each),
        (4, f"MFU {row['mfu']:.1%}" if peak else ""),
        (6, f"of {peak:.3g} FLOP/s" if peak else ""),
        (5 if row["data_wait"] < SLOW else 1, f"data wait {row['data_wait']:.0%}"),
        (1, f"skipped {row['skipped_steps']}" if row["skipped_steps"] else ""),
        (1, f"damaged {row['damaged_images']}" if row["damaged_images"] else ""),
    ]
    parts = [(soon, text) for soon, text in parts if text]
    while width is not None and len("  ".join(text for _, text in parts)) > width:
        first = max(parts)
        if not first[0]:
            break
        parts.remove(first)
    return "  ".join(text for _, text in parts)


def _duration(seconds: float) -> str:
    seconds = int(min(seconds, 359_999))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
