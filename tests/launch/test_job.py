"""What a job's exit codes mean together, and what names a run."""

from pathlib import Path

import pytest
from vit_jax.launch.job import Job, in_words, run_name, shipped, verdict

from vit_jax import recipe
from vit_jax.errors import UserError


@pytest.mark.parametrize(
    ("codes", "together"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([-9, 75], 75),
        ([137, 75], 75),  # as a container tells the same
        ([76, 75], 76),
        ([0, -15], 75),
        ([2, 75], 2),
        ([75, 2], 2),
        ([-9, 2], 2),
        ([77, 77], 77),
        ([130, 75], 130),
        ([1, -9], 1),
    ],
)
def test_a_job_starts_again_unless_one_of_its_processes_says_that_it_is_no_use(codes, together):
    assert verdict(codes) == together


def test_who_was_killed_is_said_first():
    assert in_words([75, 0, -9]) == "process 2 was killed (signal 9), process 0 ended with 75"


def named(spec="digits.py", **overrides):
    config = recipe.load(spec)
    recipe.override(config, {key.replace("__", "."): text for key, text in overrides.items()})
    return run_name(spec, config)


def test_a_name_is_the_recipe_and_a_hash_of_everything_that_makes_it_another_run():
    assert named().startswith("digits-")
    assert named() == named() == named(optimizer__lr=str(recipe.load("digits.py").optimizer.lr))
    others = [
        named(**change)
        for change in (
            {"seed": "1"},
            {"total_steps": "7"},
            {"init": "weights.npz"},
            {"optimizer__lr": "0.5"},
        )
    ]
    assert len({named(), *others}) == 5  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"mesh__fsdp": "2"}, {"data__workers": "2"}, {"microbatch": "8"}], ids=str
)
def test_what_changes_no_number_of_a_run_does_not_change_its_name(change):
    assert named(**change) == named()


def test_a_name_can_be_a_host(tmp_path):
    recipe_file = tmp_path / "21k_Big.v2.py"
    recipe_file.write_text((recipe.bundled() / "digits.py").read_text())
    assert named(str(recipe_file)).startswith("run-21k-big-v2-")


def job(*arguments, **fields):
    return Job("a", ("train", *arguments), Path("logs"), **fields)


@pytest.mark.parametrize("form", [["--config={}:b16"], ["--config", "{}:b16"]])
def test_a_recipe_of_the_users_own_is_found_in_the_container(tmp_path, form):
    file = tmp_path / "mine.py"
    file.touch()
    given = [part.format(file) for part in form]
    assert shipped(job(*given), "/recipe") == (
        file, ("train", *[part.format("/recipe/mine.py") for part in form])
    )  # fmt: skip
    assert shipped(job("--config=digits.py"), "/recipe") == (None, ("train", "--config=digits.py"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"processes": 0}, "--processes is 1 or more, not 0"),
        ({"devices": -1}, "--devices is 1 or more, not -1"),
        ({"restarts": -1}, "--restarts is 0 or more"),
        ({"time_limit": 0.0}, "--time-limit is a number of minutes above 0"),
        ({"processes": 3, "nodes": 2}, "3 processes cannot be divided over 2 nodes"),
        ({"memory": "much"}, "--memory is a number with K, M, G or T"),
        ({"platform": "tape"}, "--platform is one of cpu, gpu, tpu"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        job(**fields)
