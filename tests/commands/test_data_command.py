"""`vit data check|prepare|ops` from the outside: what they print, and how they end."""

import json

import pytest
from made_images import folder_of_images

from vit_jax import cli
from vit_jax.data.declared import DECLARED, OPS
from vit_jax.data.pipeline_text import SHOWN


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "root"))
    return folder_of_images(tmp_path / "photos", {"train/cat": 3, "train/dog": 3, "val/cat": 1})


@pytest.fixture
def vit(capsys):
    def run(*arguments):
        code = cli.main(["data", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_check_exits_0_where_nothing_is_wrong_and_1_where_something_is(vit, photos):
    code, out, _ = vit("check", f"folder:{photos}")
    assert code == 0
    assert out.endswith("no problems\n")
    (photos / "val" / "cat" / "0.jpg").write_bytes(b"")
    code, out, _ = vit("check", f"folder:{photos}")
    assert code == 1
    assert f"{photos}/val/cat/0.jpg: the file is empty\n" in out
    assert vit("check", f"folder:{photos}", "--split=train")[0] == 0


def test_check_gives_json_to_a_file_or_alone(vit, photos, tmp_path):
    (photos / "val" / "cat" / "0.jpg").write_bytes(b"")
    code, out, _ = vit("check", f"folder:{photos}", "--json")
    printed = json.loads(out)
    assert (code, printed["problems"]) == (1, 1)
    code, out, _ = vit("check", f"folder:{photos}", f"--json={tmp_path}/report.json")
    assert code == 1
    assert out.endswith("1 problem(s)\n")
    assert json.loads((tmp_path / "report.json").read_text()) == printed


def test_prepare_tells_what_it_wrote_and_how_to_train_on_it(vit, photos, tmp_path):
    code, out, _ = vit("prepare", f"folder:{photos}", "--name=pets", "--shards=2", "--seed=4")
    assert code == 0
    assert out.splitlines()[0].startswith("train: 6 images, ")
    assert out.splitlines()[0].endswith(" bytes, 2 shards")
    assert out.splitlines()[-1] == f"{tmp_path}/root/pets/1.0.0 is whole: train on tfds:pets"
    code, out, _ = vit("prepare", f"folder:{photos}", f"--output={tmp_path}/other")
    assert out.endswith(f"train on tfds:photos (with TFDS_DATA_DIR={tmp_path}/other)\n")
    assert vit("check", "tfds:pets")[0] == 0


def test_ops_lists_every_operation_with_its_arguments_and_whether_it_draws(vit):
    code, out, _ = vit("ops")
    assert code == 0
    entries = [entry for entry in out.split("\n\n") if entry]
    assert [entry.partition("(")[0] for entry in entries] == ["decode", "buckets", *OPS, *SHOWN]
    drawn = {e.partition("(")[0] for e in entries if "(draws" in e.splitlines()[0]}
    draws = {name for name, function in OPS.items() if DECLARED[function].random}
    assert drawn == draws | {"buckets"}
    assert "shift(pixels=1)  (draws: not for evaluation)" in out
    assert "resize(size=None, how=None, antialias=True)\n    To `size` whatever the aspect" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "folder:/not/there"], "there is no folder /not/there"),
        (["check", "digits", "--split=test"], "has no split 'test': it has train, val"),
        (["check", "digits", "--json=/no/such/folder/x.json"], "/no/such/folder/x.json"),
        (["check", "digits", "--config.seed=1"], "vit data reads no config"),
        (["prepare", "digits"], "cannot prepare 'digits'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_2(vit, arguments, says):
    code, _, err = vit(*arguments)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["chekc"], ["check"], ["ops", "--all"]])
def test_a_wrong_command_line_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["data", *arguments])
    assert end.value.code == 2
    assert "usage: vit data" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["check", "prepare", "ops"])
def test_each_action_has_help(action, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["data", action, "--help"])
    assert end.value.code == 0
    assert f"usage: vit data {action}" in capsys.readouterr().out
