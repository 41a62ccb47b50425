"""What a run has written of itself, whole, torn and edited, is read in one place."""

import json
import math
import os

import pytest

from vit_jax import records
from vit_jax.errors import UserError


def written(path, *lines, end=b"\n"):
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines) + end)
    return path


ROW = '{"step": 7, "loss": 1.25, "examples_hash": "0a1b2c3d"}'


def test_a_torn_last_line_is_left_out_in_silence_and_a_whole_one_is_read(tmp_path):
    file = written(tmp_path / "rows", ROW, ROW.replace("7", "8")[:-9], end=b"")
    assert records.read_rows(file) == ([json.loads(ROW)], "")
    file = written(tmp_path / "rows", ROW, ROW.replace("7", "8"), end=b"")
    assert [row["step"] for row in records.read_rows(file)[0]] == [7, 8]
    file = written(tmp_path / "rows", ROW, end=b"\n" + bytes(40))  # of a machine that lost power
    assert records.read_rows(file) == ([json.loads(ROW)], "")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"step": 8, "lo', "cut short"), ("[8]", "no JSON object but [8]"), ("[" * 50_000, "deep"),
        ('{"loss": 1}', "no step"), ('{"step": "8"}', 'step is "8"'), ('{"step": null}', "null"),
        ('{"step": 1e999}', "step is Infinity"), ('{"step": 8.5}', "step is 8.5"),
        ('{"step": -1}', "step is -1"), (b"\xff\xfe\0", "UTF-8"), ('{"step": true}', "true"),
    ],
)  # fmt: skip
def test_a_damaged_line_in_the_middle_is_named_and_the_others_are_read(tmp_path, line, fault):
    file = written(tmp_path / "rows", ROW, line, ROW)
    rows, damage = records.read_rows(file)
    assert rows == [json.loads(ROW)] * 2
    assert damage.startswith(f"{file}: line 2 (")
    assert fault in damage
    assert damage.endswith(") is damaged")
    assert damage.isprintable()


@pytest.mark.parametrize("value", ['"much"', "null", "[1]", "{}", "true", "1" + "0" * 400])
def test_what_is_no_number_is_not_there_and_is_said(tmp_path, value):
    file = written(tmp_path / "rows", '{"step": 3, "loss": %s, "seconds": 2}' % value)  # noqa: UP031
    rows, damage = records.read_rows(file)
    assert rows == [{"step": 3, "seconds": 2}]
    assert "line 1 (loss is " in damage


def test_numbers_are_finite_unless_infinite_ones_are_asked_for(tmp_path):
    file = written(tmp_path / "rows", '{"step": 3.0, "loss": NaN, "grad_norm": 1e999, "a": 0.5}')
    assert records.read_rows(file) == ([{"step": 3, "a": 0.5}], "")
    (row,), damage = records.read_rows(file, infinite=True)
    assert damage == ""
    assert math.isnan(row["loss"])
    assert row["grad_norm"] == math.inf


def test_rows_that_are_not_wanted_are_not_parsed_but_the_last_one_and_damaged_ones(tmp_path):
    rows = [f'{{"step": {step}, "loss": 1}}' for step in range(5)]
    file = written(tmp_path / "rows", *rows, '{"step": 5, "eval/val/accuracy": 1}', "}{", *rows)
    found, damage = records.read_rows(file, having=b'"eval/')
    assert [row["step"] for row in found] == [5, 3, 4]
    assert "line 7" in damage


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "empty"), (b'{"a": 1', "cut short"), (b"[]", "no JSON object but []"),
        (b"\xff", "UTF-8"), (b"[" * 100_000, "nested too deep"), (b'{"b": ""}', "it has no a"),
        (b'{"a": "1"}', 'a is a whole number, 0 or more, not "1"'),
        (b'{"a": -1}', "a is a whole number"), (b'{"a": true}', "a is a whole number"),
        (b'{"a": 1, "b": 2}', "b is a text, not 2"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
    ],
)  # fmt: skip
def test_a_file_that_holds_something_else_is_refused_in_a_line(tmp_path, text, says):
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(UserError) as refused:
        records.read_object(file, {"a": records.COUNT}, {"b": records.TEXT})
    assert str(refused.value).startswith(f"{file} cannot be read: ")
    assert says in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(UserError, match="cannot be read"):
        records.read_object(tmp_path / "result.json")
