"""`vit ckpt` on real checkpoints, whole and damaged."""

import json
import shutil

import jax
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax import cli
from vit_jax.checkpoint import checksums, manager
from vit_jax.errors import UserError

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    vit_jax.train(tiny_config(checkpoint__every_steps=3), folder, devices=ONE, quiet=True)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def flip_a_bit(file):
    """In the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def largest(checkpoint):
    return max((checkpoint / "state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


def test_list_tells_steps_sizes_and_metrics(run, capsys):
    assert cli.main(["ckpt", "list", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in told] == [6, 9, 10]
    assert [row["examples_seen"] for row in told] == [6 * 32, 9 * 32, 10 * 32]
    assert told[-1]["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]
    assert cli.main(["ckpt", "list", f"{run}/checkpoints/9"]) == 0
    assert "checkpoints/9  288 examples" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_file_is_named_and_the_run_goes_on_from_the_checkpoint_before(
    run, trained, capsys, damage
):
    file = largest(run / "checkpoints" / "10")
    if damage == "bit":
        flip_a_bit(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        file.unlink()
    assert cli.main(["ckpt", "verify", str(run)]) == 2
    out, err = capsys.readouterr()
    name = str(file.relative_to(run / "checkpoints" / "10"))
    assert f"checkpoints/10: {name}" in out
    assert "9: " in out
    assert err == "vit: error: 1 of 3 checkpoints are damaged: 10\n"
    longer = tiny_config(checkpoint__every_steps=3, total_steps=10)
    with pytest.raises(UserError, match=r"is damaged: .*vit ckpt prune .*--damaged"):
        vit_jax.train(longer, run, devices=ONE, quiet=True)
    with pytest.raises(UserError, match="is damaged"):
        vit_jax.load_pretrained(run, say=None)
    assert cli.main(["ckpt", "prune", str(run), "--damaged"]) == 0
    assert "1 removed, 2 kept" in capsys.readouterr().out
    vit_jax.train(longer, run, devices=ONE, quiet=True)
    assert [row["loss"] for row in rows(run) if "loss" in row] == [
        row["loss"] for row in rows(trained) if "loss" in row
    ]


def test_every_file_of_a_checkpoint_but_its_markers_has_a_checksum(run):
    checkpoint = run / "checkpoints" / "10"
    sums = json.loads((checkpoint / checksums.NAME).read_text())
    assert sorted(sums) == checksums.files(checkpoint)
    assert any(name.startswith("state/") for name in sums)
    assert "about/metadata" in sums


def test_a_copy_is_whole_and_can_be_used(run, tmp_path, capsys):
    copy = tmp_path / "away" / "ten"
    assert cli.main(["ckpt", "copy", str(run), str(copy)]) == 0
    assert checksums.damages(copy) == []
    assert manager.about(copy)["examples_seen"] == 320
    theirs = {p.relative_to(copy) for p in copy.rglob("*")}
    ours = run / "checkpoints" / "10"
    assert theirs == {p.relative_to(ours) for p in ours.rglob("*")}
    assert cli.main(["ckpt", "copy", str(run), str(copy)]) == 2
    assert "is there already" in capsys.readouterr().err
    flip_a_bit(largest(ours))
    assert cli.main(["ckpt", "copy", str(run), str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_prune_keeps_the_last_ones(run, capsys):
    assert cli.main(["ckpt", "prune", str(run), "--keep=1"]) == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10"]
    assert cli.main(["ckpt", "list", str(run)]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "/none"], "/none holds no checkpoint"),
        (["copy", "RUN"], "takes SOURCE and TARGET"),
        (["prune", "RUN"], "takes --keep=N or --damaged"),
        (["list", "RUN", "--keep=2"], "takes --keep=N or --damaged"),
        (["prune", "RUN", "--keep=0"], "--keep is 1 or more, not 0"),
        (["verify", "RUN", "more"], "takes SOURCE and TARGET"),
        (["copy", "RUN", "/proc/none/there"], "cannot write /proc/none/there"),
    ],
)
def test_bad_input_is_one_clear_line(run, capsys, arguments, says):
    assert cli.main(["ckpt", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_living_run_is_not_pruned(run, capsys):
    from vit_jax.training.workdir import WorkFolder

    with WorkFolder(run):
        assert cli.main(["ckpt", "prune", str(run), "--keep=1"]) == 2
    assert "is locked by a living run" in capsys.readouterr().err


@pytest.mark.parametrize("sums", ["{}", "[]", '{"about/metadata": 5}', "[" * 50_000])
def test_checksums_that_say_nothing_are_a_finding(run, capsys, sums):
    (run / "checkpoints" / "9" / checksums.NAME).write_text(sums)
    assert cli.main(["ckpt", "verify", str(run)]) == 2
    out, err = capsys.readouterr()
    assert "checkpoints/9: 1" not in out
    assert err == "vit: error: 1 of 3 checkpoints are damaged: 9\n"


def test_files_and_checksums_are_compared_in_both_directions(run):
    checkpoint = run / "checkpoints" / "9"
    (checkpoint / "state" / "more").write_text("")
    sums = json.loads((checkpoint / checksums.NAME).read_text()) | {"../x": "0", "state/a\0": "0"}
    (checkpoint / checksums.NAME).write_text(json.dumps(sums))
    assert checksums.damages(checkpoint) == [
        "../x is not there", "state/a\\x00 is not there",
        f"state/more has no checksum in {checksums.NAME}",
    ]  # fmt: skip


def test_an_empty_folder_with_a_steps_name_is_named_everywhere_and_pruned(run, capsys):
    (run / "checkpoints" / "99").mkdir()
    assert cli.main(["ckpt", "list", str(run)]) == 0
    assert "checkpoints/99 is no checkpoint but an empty folder" in capsys.readouterr().err
    assert cli.main(["runs", str(run)]) == 0
    out = capsys.readouterr().out
    assert "10/10" in out
    assert "checkpoints/99 is no checkpoint but an empty folder" in out
    assert cli.main(["ckpt", "verify", str(run)]) == 2
    assert cli.main(["evaluate", f"--workdir={run}"]) == 2
    assert "--damaged` removes it" in capsys.readouterr().err
    assert cli.main(["ckpt", "prune", str(run), "--damaged"]) == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "6", "9"]


def test_a_copy_is_no_false_step_of_the_run(run, capsys):
    for target in ("checkpoints/50", "checkpoints/best", "checkpoints/10/more"):
        assert cli.main(["ckpt", "copy", str(run), f"{run}/{target}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (run / target).exists()


def test_a_link_is_neither_followed_nor_renamed(run, tmp_path, capsys):
    away = (run / "checkpoints" / "6").rename(tmp_path / "away")
    (run / "checkpoints" / "6").symlink_to(away)
    before = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert cli.main(["ckpt", "prune", str(run), "--keep=1"]) == 2
    err = capsys.readouterr().err
    assert "checkpoints/6 is a link" in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before
    assert checksums.damages(away) == []
