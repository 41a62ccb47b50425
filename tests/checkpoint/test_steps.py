"""Which names in a folder are steps: one answer for all commands."""

import pytest

from vit_jax.checkpoint import steps
from vit_jax.errors import UserError


def saved(folder, *names):
    for name in names:
        (folder / name / "state").mkdir(parents=True)
    return folder


def test_a_step_is_named_as_python_writes_a_number_and_holds_a_state(tmp_path):
    others = ("²", "٣", "007", "-1", "+4", "1٣", "1_0", " 5", "5.orbax-checkpoint-tmp", "best")
    saved(tmp_path, "0", "12", "30", *others)
    assert steps.steps(tmp_path) == [0, 12, 30]
    assert steps.latest(tmp_path) == 30
    assert [path.name for path in steps.strays(tmp_path)] == ["+4", "-1", "007", "1٣", "٣"]
    assert set(steps.strays(tmp_path).values()) == {"is no step's name"}
    assert steps.unfinished(tmp_path) == []


def test_a_later_folder_without_a_state_is_named_and_not_passed_over(tmp_path):
    saved(tmp_path, "30")
    (tmp_path / "25").mkdir()
    assert steps.latest(tmp_path) == 30
    (tmp_path / "40" / "about").mkdir(parents=True)
    assert steps.steps(tmp_path) == [30]
    assert [path.name for path in steps.unfinished(tmp_path)] == ["25", "40"]
    assert steps.strays(tmp_path) == {
        tmp_path / "25": "is no checkpoint but an empty folder",
        tmp_path / "40": "is no checkpoint but a folder without state",
    }
    with pytest.raises(UserError, match=r"/40 is no checkpoint .*--damaged` removes it"):
        steps.latest(tmp_path)


def test_a_file_is_no_step_and_stands_in_nobodys_way(tmp_path):
    saved(tmp_path, "30")
    (tmp_path / "99").write_text("notes")
    assert steps.latest(tmp_path) == 30
    assert steps.strays(tmp_path) == {tmp_path / "99": "is no checkpoint but a file"}


@pytest.mark.parametrize("folder", ["none", "a\0b"])
def test_where_there_is_no_folder_there_are_no_steps(tmp_path, folder):
    assert steps.steps(tmp_path / folder) == []
    assert steps.latest(tmp_path / folder) is None
