"""Names and values that try to be code, journals that are none, and disks that are full."""

import ast
import json
import math

import numpy as np
import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vit_jax import cli, recipe
from vit_jax.config import base, flat
from vit_jax.errors import UserError
from vit_jax.sweeping import report, space, study, trials

OPEN = '"""+str(__import__("os").mkdir("RAN"))+"""'
HOSTILE = [
    OPEN, "'''" + OPEN, "a\\N", "\\", 'a"', "a\nimport os; os.mkdir('RAN')", "\r\u2028\x85\x0c\0",
    "coding: utf-16", "-*- coding=rot13 -*-", "\udcff", "</title><script>alert(1)</script>",
]  # fmt: skip
LINE = ["sweep", "--config=digits.py", "--sweep=seed=0,1"]


def of(name, params, **config):
    """A study of one finished trial, in memory, and the trial's config."""
    made = optuna.create_study(study_name=name, direction="maximize")
    made.set_user_attr("identity", {"space": name, "method": "grid", "metric": name})
    distributions = {
        key: optuna.distributions.CategoricalDistribution([value]) for key, value in params.items()
    }
    made.add_trial(optuna.trial.create_trial(
        params=params, distributions=distributions, value=0.5, intermediate_values={1: 0.1, 2: 0.5}
    ))  # fmt: skip
    found = base()
    with found.unlocked():
        found.update_from_flattened_dict(config)
    return made, found


@settings(max_examples=25, deadline=None)
@given(name=st.text(max_size=9), value=st.text(max_size=9))
@example(name=OPEN, value=OPEN)
@example(name="\n" + OPEN, value="\\")
def test_a_best_recipe_is_that_config_and_nothing_else(name, value):
    made, config = of(name, {"init": value}, **{"init": value, "seed": 3})
    check(report.as_recipe(made, config), config)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_best_recipe_runs_no_name_and_no_value(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, config = of(text, {"init": text, "data.train.pipeline": text}, init=text)
    with config.unlocked():
        config.optimizer.kwargs[f"a{len(text)}"] = (text, {"b": [text]})
    check(report.as_recipe(made, config), config)
    report.write(made, tmp_path, config)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best.py", "report.html", "trials.csv",
    ]  # fmt: skip
    # As `vit train` reads it.
    assert flat(recipe.load("best.py")) == flat(config)
    assert "<script>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def check(code, config):
    """What stands in a recipe is two imports, an assignment a key, and it gives the config."""
    tree = ast.parse(code.encode("utf-8", "backslashreplace"))
    document, imports, function = tree.body
    assert (type(document), type(imports)) == (ast.Expr, ast.ImportFrom)
    first, *assigned, last = function.body
    assert (ast.unparse(first), ast.unparse(last)) == ("c = base()", "return c")
    for statement in assigned:
        ast.literal_eval(statement.value)
    names = {}
    exec(compile(tree, "best.py", "exec"), names)
    assert flat(names["get_config"]()) == flat(config)


@pytest.mark.parametrize("value", [math.inf, -math.inf, np.float64(0.1), 1e-300, (8,), True, None])
def test_a_literal_is_its_value(value):
    found = eval(report._literal(value), {"float": float})
    assert (found, type(found)) == (value, float if isinstance(value, float) else type(value))


@pytest.mark.parametrize(
    "name",
    ["a\nb", "$(id)", "a/b", "..", ".a", "", " a", "-a", "a;b", '"""', "a\x1b[2J", "a,b", "a%j"],
)
def test_a_study_has_a_plain_name(name, tmp_path, capsys):
    assert cli.main([*LINE, f"--study={name}", f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"--study is a plain name, not {name!r}" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- journals ------------------------------------------------------------------------------------
def begun(folder):
    """The journal of a study of two trials that has begun."""
    config = recipe.load("digits.py")
    search = study.Search(space.read("seed=0,1", "digits.py", config), "grid",
                          "eval/val/accuracy", 2, False)  # fmt: skip
    with study.locked(folder):
        study.begin("s", study.opened(None, folder), search, study.identity(config, search))
    return folder / study.JOURNAL


DAMAGES = {
    "a list": (b"[]\n", "line 1 is no record of Optuna's"),
    "a text": (b'"a"\n', "line 1 is no record of Optuna's"),
    "an object": (b"{}\n", "line 1 is no record of Optuna's"),
    "a null": (b"null\n", "line 1 is no record of Optuna's"),
    "no text": (b"\xff\xfe\0\n", "line 1 is no JSON"),
    "deep": (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
    "unknown": (b'{"op_code": 99, "worker_id": "a"}\n', "is no journal of Optuna's"),
    "half": (b'{"op_code": 0}\n', "is no journal of Optuna's"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("where", ["alone", "in the middle"])
@pytest.mark.parametrize("action", [[], ["report"]])
def test_a_journal_that_is_damaged_is_one_clear_line_and_stays(
    damage, where, action, tmp_path, capsys
):
    text, told = DAMAGES[damage]
    journal = begun(tmp_path / "s")
    if where == "in the middle":
        lines = journal.read_bytes().splitlines(keepends=True)
        text, told = b"".join([*lines[:2], text, *lines[2:]]), told.replace("line 1", "line 3")
    journal.write_bytes(text)
    assert cli.main([*LINE[:1], *action, *LINE[1:], "--study=s", f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vit: error: {journal} ")
    assert told in said
    assert said.count("\n") == 1
    assert journal.read_bytes() == text


@pytest.mark.parametrize("action", [[], ["report"]])
def test_a_journal_that_is_a_folder_is_one_clear_line(action, tmp_path, capsys):
    (tmp_path / "s" / study.JOURNAL).mkdir(parents=True)
    assert cli.main([*LINE[:1], *action, *LINE[1:], "--study=s", f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert ("study.journal is no file" in said) or (action and "no study in" in said)
    assert said.count("\n") == 1


def test_a_report_of_a_journal_that_was_cut_reports_what_is_whole(tmp_path, capsys):
    journal = begun(tmp_path / "s")
    journal.write_bytes(journal.read_bytes()[:-5])
    assert cli.main(["sweep", "report", "--study=s", f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "s" / "trials.csv").is_file()


@pytest.mark.parametrize("action", [[], ["report"]])
@pytest.mark.parametrize("identity", [None, [], {"metric": 3}])
def test_a_study_of_another_program_is_refused_and_left_as_it_was(
    action, identity, tmp_path, capsys
):
    url = f"sqlite:///{tmp_path}/studies.db"
    other = optuna.create_study(study_name="s", storage=url)
    other.ask()
    if identity is not None:
        other.set_user_attr("identity", identity)
    line = [*LINE[:1], *action, *LINE[1:], "--study=s", f"--workdir={tmp_path}", f"--storage={url}"]
    assert cli.main(line) == 2
    assert "study s is none of vit sweep" in capsys.readouterr().err
    assert other.user_attrs.get("identity") == identity


@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk_names_the_journal_and_leaves_it_whole(room, tmp_path):
    resource = pytest.importorskip("resource")
    journal = begun(tmp_path / "s")
    before = journal.read_bytes()
    storage = study.opened(None, tmp_path / "s")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))
    try:
        with pytest.raises(UserError) as refused:
            optuna.load_study(study_name="s", storage=storage).set_user_attr("a", "b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(refused.value).startswith(f"cannot write {journal}: ")
    assert "make room" in str(refused.value)
    assert journal.read_bytes() == before


# -- what trials leave ---------------------------------------------------------------------------
def test_rows_that_are_no_evaluations_are_passed_over(tmp_path):
    rows = [[], "eval/a", {"eval/a": 1}, {"step": 1, "eval/a": None}, {"step": "x", "eval/a": 2.0},
            {"step": 2, "eval/a": 0.5}]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    text += b'{"step": 3, "eval/a": 1, "x": "\xff"}\n{"step": 4, "eval/a": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert list(trials.Rows(tmp_path, "eval/a").new(0)) == [(2, 0.5), (4, 1.0)]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"eval/a": null}', b"[" * 99_999])
def test_a_result_that_is_damaged_says_which_and_what_to_do(text, tmp_path):
    file = tmp_path / "result.json"
    file.write_bytes(text)
    with pytest.raises(
        UserError, match=f"result.json (is damaged|has no number).*: remove {tmp_path}"
    ):
        trials._number(file, "eval/a")
