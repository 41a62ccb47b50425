"""The commands for a Cloud TPU slice, run against a recording stand-in for gcloud. No cloud was
used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax import cli

ROOT = Path(__file__).parents[2]
# Writes down how it was called; the state of the slice is the next line of a file, or nothing.
GCLOUD = """#!/bin/bash
echo "${*//$'\\n'/ }" >> "$RECORD"
last=${!#}
case "$*" in
  *" describe "*) head -1 "$STATES"; sed -i 1d "$STATES";;
  *" ssh "*docker*) eval "${last#--command=}";;
esac
"""
# Instead of sudo docker: ends with the next code of a file.
SUDO = """#!/bin/bash
printf '%s\\n' "sudo $*" >> "$RECORD"
code=$(head -1 "$CODES"); sed -i 1d "$CODES"; exit $code
"""
LAUNCH = ["launch", "tpu", "--image=registry.example/vit_jax:1", "--volume=/mnt/runs:/runs",
          "--accelerator=v5litepod-16", "--zone=us-east5-b", "--restarts=2"]  # fmt: skip
TRAIN = ["--", "train", "--config=digits.py", "--workdir=/runs/a"]
PLACE = "--zone=us-east5-b"
QUEUE, VM = "compute tpus queued-resources", "compute tpus tpu-vm"


@pytest.fixture
def cloud(tmp_path):
    """Runs a line with the stand-ins on the path: (its exit code, the calls)."""
    for name, text in (("gcloud", GCLOUD), ("sudo", SUDO)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(line, states, codes=("0",)):
        files = {name: tmp_path / name.lower() for name in ("RECORD", "STATES", "CODES")}
        files["RECORD"].write_text("")
        files["STATES"].write_text("".join(f"{state}\n" for state in states))
        files["CODES"].write_text("".join(f"{code}\n" for code in codes))
        done = subprocess.run(
            line, check=False, timeout=60, cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {name: str(file) for name, file in files.items()}
            | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return done.returncode, files["RECORD"].read_text().splitlines(), done.stderr

    return run


def printed(capsys, *options):
    assert cli.main([*LAUNCH, *options, "--dry-run", *TRAIN]) == 0
    return capsys.readouterr().out


def calls(recorded):
    """Without the questions for the state."""
    name = next(line for line in recorded if " describe " in line).split()[4]
    return name, [line.replace(name, "NAME") for line in recorded if " describe " not in line]


DOCKER = ("sudo docker run --rm --privileged --net=host --volume=/mnt/runs:/runs "
          "registry.example/vit_jax:1 vit train --config=digits.py --workdir=/runs/a")  # fmt: skip


@pytest.mark.parametrize("how", ["printed", "run"])
def test_a_slice_is_asked_for_and_every_host_trains(cloud, capsys, how):
    script = printed(capsys, "--spot")
    line = ["bash", "-c", script] if how == "printed" else [
        sys.executable, "-m", "vit_jax.cli", *LAUNCH, "--spot", *TRAIN]  # fmt: skip
    code, recorded, _ = cloud(line, ["", "", "ACTIVE"])
    assert code == 0
    name, made = calls(recorded)
    assert name.startswith("digits-")
    assert made[0] == (
        f"{QUEUE} create NAME --node-id=NAME {PLACE} --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert made[1].startswith(f"{VM} ssh NAME {PLACE} --worker=all --command=for left in")
    assert made[-1] == DOCKER
    assert len([line for line in made if line.startswith("compute")]) == 2


def test_a_slice_that_is_there_is_used_and_one_that_was_taken_away_is_replaced(cloud, capsys):
    script = printed(capsys)
    _, made = calls(cloud(["bash", "-c", script], ["ACTIVE", "ACTIVE", "ACTIVE"])[1])
    assert not any(" create " in line or " delete " in line for line in made)
    _, made = calls(cloud(["bash", "-c", script], ["SUSPENDED", "", "ACTIVE"])[1])
    assert [line.split()[3] for line in made[:2]] == ["delete", "create"]
    code, recorded, err = cloud(["bash", "-c", script], ["", "", "FAILED", "FAILED", "FAILED"])
    assert (code, "FAILED" in err) == (75, True)
    assert not any(line.startswith("sudo") for line in recorded)


@pytest.mark.parametrize(
    ("codes", "ends", "starts"),
    [("75 0", 0, 2), ("76 137 0", 0, 3), ("75 75 75 0", 75, 3), ("2 0", 2, 1), ("77", 77, 1)],
)
def test_a_host_starts_again_where_that_is_of_use(cloud, capsys, codes, ends, starts):
    code, recorded, _ = cloud(["bash", "-c", printed(capsys)], ["ACTIVE"] * 3, codes.split())
    assert (code, recorded.count(DOCKER)) == (ends, starts)


def test_a_recipe_of_the_users_own_and_a_mount_come_first(cloud, capsys, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text((ROOT / "configs" / "digits.py").read_text())
    line = [*LAUNCH, "--setup=sudo mount 10.0.0.2:/runs /mnt/runs", "--dry-run", "--", "train",
            f"--config={recipe}"]  # fmt: skip
    assert cli.main(line) == 0
    _, made = calls(cloud(["bash", "-c", capsys.readouterr().out], ["ACTIVE"] * 3)[1])
    assert made[:3] == [
        f"{VM} ssh NAME {PLACE} --worker=all --command=sudo mount 10.0.0.2:/runs /mnt/runs",
        f"{VM} ssh NAME {PLACE} --worker=all --command=mkdir -p /tmp/recipe",
        f"{VM} scp {recipe} NAME:/tmp/recipe/ {PLACE} --worker=all",
    ]
    assert "--volume=/tmp/recipe:/tmp/recipe:ro" in made[-1]
    assert "vit train --config=/tmp/recipe/mine.py --workdir=/runs/" in made[-1]
