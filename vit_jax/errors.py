"""What a user is told when something they gave cannot work, and the exit codes of `vit`."""

import difflib
import errno
import io
import os
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

LONGEST_LINE = 1600  # characters of a message's line
OK, USER_ERROR, RESTART, WATCHDOG, NON_FINITE, INTERRUPTED = 0, 2, 75, 76, 77, 130

# What a limit of the machine is called, and what would work.
TOO_MANY_FILES = "too many open files"
FILES_REMEDY = "allow more of them (ulimit -n)"
NO_THREAD = "no more threads can be started"
MEMORY_REMEDY = "allow more memory (ulimit -v) and threads (ulimit -u)"


class UserError(Exception):
    """One clear line: what was wrong, where, and what would work. `vit` prints it and exits 2."""


class Stopped(Exception):
    """The run ended early, its last checkpoint safe on disk; `code` is the exit code of `vit`."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def not_finite(what: str) -> UserError:
    """The error for outputs of a model that are NaN or infinite; `what` names them."""
    return UserError(
        f"{what} are NaN or infinite; the weights are damaged, or of another model than the one "
        "that they are taken for (vit inspect)"
    )


def cannot_write(path: Path, error: Exception) -> UserError:
    """The one line for a disk that is full, read-only or too small, or a place that takes none."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room or choose another place" if full else "choose another place"
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:160]
    return UserError(f"cannot write {printable(path)}: {reason}; {remedy}")


def file_of(error: BaseException) -> str | None:
    """The file that an OSError is about. Writing to an open file raises one that does not name it;
    then it is the open file that the innermost function holds."""
    if getattr(error, "filename", None):
        return os.fsdecode(error.filename)  # type: ignore[attr-defined]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
            if isinstance(name, str) and not name.startswith("<"):
                return name
    return None


def printable(text: object) -> str:
    """A name that comes from a file or a server, as it may stand in a terminal and in one line:
    what would move the cursor, change colours or begin a line is escaped.

    >>> printable("cat\\x1b[2J")
    'cat\\\\x1b[2J'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: object) -> str:
    """`printable` of each line of a message. The middle of a line without end is left out: what is
    wrong stands at its start, and what would work at its end."""
    lines = map(printable, str(text).split("\n"))
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 400]} … {line[-400:]}"
        for line in lines
    )


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """`did you mean a, b or c?`, or the options themselves where nothing is near.

    >>> nearest("cosin", ["cosine", "linear"], 1)
    'did you mean cosine?'
    """
    options = list(options)
    found = difflib.get_close_matches(name, options, count, cutoff=0.4)
    if not options:
        return "there are none"
    if not found:
        return "there are: " + ", ".join(options[:20]) + (" …" if len(options) > 20 else "")
    return did_you_mean(found)


def did_you_mean(found: Sequence[str]) -> str:
    """`did you mean a, b or c?`"""
    *others, last = found
    return "did you mean " + (", ".join(others) + " or " if others else "") + last + "?"
