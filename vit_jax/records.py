"""Reads JSON objects from any file, and the rows of a run's `metrics.jsonl`.

A crash, a full disk or an editor may have left anything in these files. All of them are read here,
so that what is damaged is named in one line, and the rest is read all the same. This module imports
no JAX: `vit runs` looks at many folders.
"""

import dataclasses
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes

Row = dict[str, Any]
Kind = tuple[str, Callable[[Any], bool]]  # its name, and whether a value is of this kind
Kinds = Mapping[str, Kind]  # key of an object -> kind of its value
NOTHING: Kinds = types.MappingProxyType({})

MOST_OBJECT = 2**27  # bytes of a file that holds one object
MOST_ROWS = 2**32  # bytes of a file of rows
TEXTS = {"examples_hash"}  # keys of a row whose values are texts; all others are numbers


def is_number(value: Any, finite: bool = True) -> bool:
    """Whether a value of JSON is a number, and by default one that arithmetic can use."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    usable = abs(value) <= sys.float_info.max  # also of an integer that no float can hold
    return usable or (not finite and isinstance(value, float))


def is_count(value: Any) -> bool:
    """Whether a value of JSON counts something: steps, examples."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


COUNT: Kind = ("a whole number, 0 or more", is_count)
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
TEXT_OR_NULL: Kind = ("a text or null", lambda value: value is None or isinstance(value, str))
LIST_OF_TEXTS: Kind = (
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
OBJECT_OF_NUMBERS: Kind = (
    "an object of finite numbers",
    lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
)


def load(path: Path, needs: Kinds = NOTHING, may: Kinds = NOTHING, most: int = MOST_OBJECT) -> Row:
    """The JSON object in a file of at most `most` bytes. It must have the keys `needs` and can have
    the keys `may`, with values of these kinds. Other keys are not checked.

    Raises OSError, or ValueError with what is wrong inside the file.
    """
    record = object_in(read_bytes(path, most))
    for key, (words, fits) in {**may, **needs}.items():
        if key not in record:
            if key in needs:
                raise ValueError(f"it has no {key}")
        elif not fits(record[key]):
            raise ValueError(f"{key} is {words}, not {_shown(record[key])}")
    return record


def read_object(
    path: Path, needs: Kinds = NOTHING, may: Kinds = NOTHING, most: int = MOST_OBJECT
) -> Row:
    """`load`, but raises UserError."""
    try:
        return load(path, needs, may, most)
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(path)} cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The message of an error of `load`, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return printable(text.partition("\n")[0][:200])


def object_in(data: bytes) -> Row:
    """The JSON object in some bytes. Raises ValueError with what is wrong with them."""
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is damaged, its brackets are nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("it is no JSON, because it is not text in UTF-8") from None
    except ValueError as error:
        damaged = f"it is no JSON, or damaged or cut short ({error})"
        raise ValueError(damaged if data.strip() else "it is empty") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds no JSON object but {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "brackets nested too deep"
    return text if len(text) <= 40 else f"{text[:40]}…"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of `metrics.jsonl`: its text, and its row if it holds one. `fault` says what is wrong
    with the line, or with a value, which the row then lacks."""

    number: int
    text: str
    row: Row | None
    fault: str = ""


def rows_in(data: bytes, having: bytes = b"") -> Iterator[Line]:
    """Every line, except an incomplete last one: the run was killed, or is writing it.

    With `having`, lines without it are left out, except the last two and damaged lines. A row has
    a `step`, and under every other key a number, which may be infinite or NaN.
    """
    lines = data.split(b"\n")
    lines, tail = lines[:-1], lines[-1].strip(b" \t\r\0")
    last = len(lines) - (not tail)
    if tail:
        lines.append(tail)
    for number, raw in enumerate(lines):
        raw = raw.strip()
        looks_whole = raw[:1] == b"{" and raw[-1:] == b"}"
        if not raw or (number < last - 1 and looks_whole and having not in raw):
            continue
        text = raw.decode("utf-8", "replace")
        try:
            row, fault = _row(object_in(raw))
        except ValueError as error:
            row, fault = None, str(error)
        if row is None and tail and number == last:
            return
        yield Line(number + 1, text, row, fault)


def _row(record: Row) -> tuple[Row | None, str]:
    step = record.get("step")
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if not is_count(step):
        return None, f"step is {_shown(step)}" if "step" in record else "it has no step"
    row, wrong = {"step": step}, ""
    for key, value in record.items():
        if isinstance(value, str) if key in TEXTS else is_number(value, finite=False):
            row.setdefault(key, value)
        elif key != "step":
            wrong = wrong or f"{key} is {_shown(value)}"
    return row, wrong


def finite(row: Row) -> Row:
    """The row without numbers that are infinite or NaN."""
    return {key: value for key, value in row.items() if key in TEXTS or is_number(value)}


def read_rows(path: Path, having: bytes = b"", infinite: bool = False) -> tuple[list[Row], str]:
    """The rows of a file, and a line about its damaged lines, empty if there are none. Numbers that
    are infinite or NaN are left out unless `infinite`. `having` as in `rows_in`.

    Raises OSError.
    """
    lines = list(rows_in(read_bytes(path, MOST_ROWS), having))
    rows = [line.row for line in lines if line.row is not None]
    return rows if infinite else [finite(row) for row in rows], damage(path, lines)


def damage(path: Path, lines: list[Line]) -> str:
    """One line about the damaged lines of a file; empty if there are none."""
    bad = [line for line in lines if line.fault]
    if not bad:
        return ""
    first = f"line {bad[0].number} ({printable(bad[0].fault)})"
    many = f"{first} and {len(bad) - 1} more are damaged" if len(bad) > 1 else f"{first} is damaged"
    return f"{printable(path)}: {many}"
