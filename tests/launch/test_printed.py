"""What is printed passes on exactly the words that were given, and nothing of them is run. Scripts
are run with stand-ins on the path that print their arguments."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from vit_jax.launch import kubernetes, local, slurm, tpu
from vit_jax.launch.job import Job

from vit_jax import cli

# Any text that can be an argument of a process and be written as UTF-8.
TEXT = st.text(
    st.one_of(
        st.sampled_from("'\"\\$`;&|<>(){}[]*?!#~%=: \t\n\r"),
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    max_size=12,
)
LINE = TEXT.filter(lambda text: not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text))
RUNS = "; touch RAN; $(touch RAN) `touch RAN` \ntouch RAN\n"
FAST = settings(max_examples=30, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
PRINT = '#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" END >> "$RECORD"\n'
# The state of a slice is ACTIVE; what the hosts are to run is run here.
GCLOUD = (
    PRINT
    + """\
case "$*" in
  *" describe "*) echo ACTIVE;;
  *" ssh "*) last=${!#}; bash -c "${last#--command=}";;
esac
"""
)


@pytest.fixture
def ran(tmp_path):
    """Runs a script in an empty folder; the lines of words that the stand-ins were given."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    for name, text in {"gcloud": GCLOUD, "sudo": PRINT, "srun": PRINT, "python": PRINT,
                       "hosts": PRINT}.items():  # fmt: skip
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    record = tmp_path / "record"

    def run(script):
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)
        record.write_bytes(b"")
        subprocess.run(
            ["bash", "-c", script], check=True, cwd=tmp_path / "here", timeout=60,
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RECORD": str(record)},
        )  # fmt: skip
        assert not list((tmp_path / "here").iterdir())
        lines = record.read_bytes().decode().split("\0END\0")
        return [line.split("\0") for line in lines if line]

    return run


def job(*arguments, **fields):
    return Job("run-1", ("train", *arguments), Path("/runs/logs"), image="registry.example/v:1",
               **fields)  # fmt: skip


def on_tpu(job, **options):
    return tpu.script(job, **{"accelerator": "v4-8", "zone": "us-a1-b"} | options)


@FAST
@given(argument=TEXT, value=TEXT, setup=TEXT)
@example(argument=RUNS, value=RUNS, setup=RUNS)
@example(argument="--zone", value="--zone", setup="--zone")
def test_a_script_for_a_tpu_passes_on_every_word(ran, argument, value, setup):
    made = ran(on_tpu(
        job(f"--config.x={argument}", argument, environment={"A": value}),
        setup=shlex.join(["hosts", setup]),
    ))  # fmt: skip
    (first, second) = [words for words in made if words[0] != "gcloud"]
    assert first == ["hosts", setup]
    assert second[-7:] == ["--net=host", f"--env=A={value}", "registry.example/v:1", "vit",
                           "train", f"--config.x={argument}", argument]  # fmt: skip
    gcloud = [words for words in made if words[0] == "gcloud"]  # what a user writes goes elsewhere
    places = {word for words in gcloud for word in words if word.startswith("--zone")}
    assert places == {"--zone=us-a1-b"}


@FAST
@given(folder=LINE, argument=LINE, value=LINE)
@example(folder="$(touch RAN)", argument=RUNS.replace("\n", " "), value="a';touch RAN;#")
def test_a_script_for_slurm_passes_on_every_word(ran, tmp_path, folder, argument, value):
    logs = tmp_path / f"x{folder.replace('/', '')}"
    made = Job("run-1", ("train", argument), logs)
    script = slurm.script([made], {"comment": value})
    python = shlex.quote(sys.executable)
    (srun, end) = ran(script.replace(python, "python"))  # the interpreter is a stand-in too
    assert srun[-6:-1] == ["-P", "-u", "-m", "vit_jax.launch.slurm", str(logs)]
    assert json.loads(srun[-1])["arguments"] == ["train", argument]
    assert end == ["python", "-P", "-m", "vit_jax.launch.slurm", str(logs), "1", "10"]
    assert f"#SBATCH --comment={shlex.quote(value)}" in script.splitlines()
    assert shlex.split(script.splitlines()[-1].partition(": ")[2]) == ["vit", "train", argument]


@FAST
@given(argument=TEXT)
@example(argument=RUNS)
def test_the_lines_of_a_local_job_are_its_words(argument):
    (line,) = local.shown(job(argument, platform="cpu"))
    assert shlex.split(line)[-6:] == [sys.executable, "-P", "-m", "vit_jax.cli", "train", argument]


def kubelet(text, environment):
    """What a container gets of an argument (Kubernetes' reference, `Container.command`): $(NAME)
    is the variable's value where there is one, $$ is $."""

    def put(found):
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", put, text)


@FAST
@given(argument=TEXT, value=TEXT)
@example(argument="$(HOME)$$(HOME)$$$", value="$(A)")
@example(argument="$(HOME", value="$$")
def test_a_container_of_kubernetes_gets_every_word(argument, value):
    made = kubernetes.manifests(job(argument, environment={"B": value}, platform="cpu"))
    (container,) = list(yaml.safe_load_all(kubernetes.as_yaml(made)))[-1]["spec"]["template"][
        "spec"]["containers"]  # fmt: skip
    there = {"HOME": "/root", "A": "a", argument: "b", value: "c"}
    assert [kubelet(word, there) for word in container["command"]] == ["vit", "train", argument]
    (found,) = [one["value"] for one in container["env"] if one["name"] == "B"]
    assert kubelet(found, there) == value


def test_the_rule_of_the_kubelet_would_change_what_is_not_escaped():
    assert kubelet("$(HOME) $$(HOME) $X $(NO) $", {"HOME": "/root"}) == "/root $(HOME) $X $(NO) $"


# -- refused before anything is printed --------------------------------------------------------
TPU = ["tpu", "--image=v:1", "--volume=/mnt/a:/runs", "--accelerator=v4-8", "--zone=us-a1-b"]
KUBERNETES = ["kubernetes", "--image=v:1", "--volume=claim-1:/runs", "--platform=cpu"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([*TPU, "--runtime=;touch RAN;"], "--runtime cannot be ';touch RAN;'; it is small letters"),
        ([*TPU, "--zone=a\ntouch RAN"], r"--zone cannot be 'a\ntouch RAN'; it is small letters"),
        ([*TPU, "--project=p\ntouch RAN\n"], "--project cannot be"),
        ([*TPU, "--project="], "--project cannot be ''"),
        ([*TPU, "--accelerator=v4-8 --x"], "--accelerator cannot be 'v4-8 --x'"),
        ([*TPU, "--image=a b"], "--image cannot be 'a b'; it is a reference such as"),
        ([*TPU, "--image=--privileged"], "--image cannot be"),
        ([*TPU, "--volume=runs:/data"], "FOLDER of --volume 'runs' is no absolute path"),
        ([*TPU, "--volume=/a:/b:ro"], "PATH of --volume '/b:ro' is no absolute path"),
        (["slurm", "--dir=a\ntouch RAN"], "the folder of logs (--dir, --workdir) 'a"),
        (["slurm", "--sbatch=qos=a\ntouch RAN"], r"--sbatch=qos 'a\ntouch RAN' has a control"),
        (["slurm", "--sbatch=qos\ntouch=a"], r"--sbatch cannot be 'qos\ntouch'"),
        (["slurm", "--partition=a\rb"], r"--sbatch=partition 'a\rb' has a control character"),
        (["slurm", "--at-once=0"], "--at-once is 1 or more"),
        (["slurm", "--time-limit=inf"], "--time-limit is a number of minutes above 0"),
        ([*KUBERNETES, "--namespace=A b"], "--namespace cannot be 'A b'"),
        ([*KUBERNETES, "--image=Big:1"], "--image cannot be 'Big:1'"),
        ([*KUBERNETES, "--volume=C_UP;x:/data"], "--volume cannot be 'C_UP;x'"),
        ([*KUBERNETES, "--volume=c:data"], "PATH of --volume 'data' is no absolute path"),
        ([*KUBERNETES, "--volume=c:/data/../etc"], "'/data/../etc' is no absolute path without .."),
        ([*KUBERNETES, "--volume=c:/dev/shm/"], "/dev/shm is mounted twice"),
        ([*KUBERNETES, "--node=a b=c"], "--node cannot be 'a b'"),
        ([*KUBERNETES, "--node=a=c d"], "the value of --node cannot be 'c d'"),
        ([*KUBERNETES, "--slices=0"], "--slices is 1 or more"),
        ([*KUBERNETES, "--tpu=v5e:٤x4"], "is no TYPE:TOPOLOGY"),
        ([*KUBERNETES, "--memory=٣G"], "--memory is a number with K, M, G or T"),
    ],
)
def test_a_name_that_is_none_is_one_clear_line_and_nothing_is_printed(
    options, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", *options, "--dry-run", "--", "train", "--config=digits.py"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert told in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backend", "word", "told"),
    [
        (["slurm"], "--workdir=w\ntouch RAN", r"'--workdir=w\ntouch RAN' has a control character"),
        (["local"], "--workdir=\udcff", "is no text in UTF-8"),
        (TPU, "--config.init=\udcff", "is no text in UTF-8"),
        (KUBERNETES, "--config.init=\udcff", "is no text in UTF-8"),
        (KUBERNETES, "--workdir=/runs/../etc", "/runs/../etc is on no volume (/runs)"),
        (KUBERNETES, "--workdir=/runs2", "/runs2 is on no volume (/runs)"),
        (TPU, "--workdir=/runs/a/../../b", "is on no volume (/runs)"),
    ],
)  # fmt: skip
def test_a_word_that_cannot_be_passed_on_is_one_clear_line(backend, word, told, capsys):
    line = ["launch", *backend, "--dry-run", "--", "train", "--config=digits.py", word]
    assert cli.main(line) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert told in said.err


@pytest.mark.parametrize("name", ["my digits.py", "a;b.py", "..a.py", "é.py"])
def test_a_recipe_whose_name_is_no_key_of_a_configmap_is_refused(name, tmp_path, capsys):
    (tmp_path / name).write_text("from vit_jax.configs.digits import get_config\n")
    line = ["launch", *KUBERNETES, "--dry-run", "--", "train", f"--config={tmp_path / name}"]
    assert cli.main(line) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"the recipe's file name cannot be {name!r}" in said.err


def test_names_that_providers_take_are_taken():
    made = on_tpu(
        job(),
        project="example.com:my-project",
        zone="europe-west4-a",
        runtime="tpu-vm-tf-2.16.1-pjrt",
    )
    assert "--project=example.com:my-project --accelerator-type=v4-8" in made
    for image in ("python", "ghcr.io/a/b__c/d-e:v1.2_3", "localhost:5000/a@sha256:" + "0" * 64):
        kubernetes.manifests(Job("a", ("train",), Path("l"), image=image))


def test_a_recipe_that_begins_like_an_option_is_copied_as_a_file(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-x y.py").touch()
    made = ran(on_tpu(job("--config=-x y.py")))
    (copied,) = [words for words in made if "scp" in words]
    assert str(tmp_path / "-x y.py") in copied
    assert made[-1][-1] == "--config=/tmp/recipe/-x y.py"


# -- the home of this machine ------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["local", "slurm"])
@pytest.mark.parametrize("word", ["--workdir=~/runs/a", "--config.init=~/runs/a"])
def test_a_tilde_behind_the_dashes_is_this_machines_home(
    backend, word, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    line = ["launch", backend, "--dry-run", "--", "train", "--config=digits.py", word]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert word.replace("~", str(tmp_path / "home")) in out
    assert "~" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", [TPU, KUBERNETES])
def test_a_tilde_for_another_machine_is_refused_but_in_the_recipe(
    backend, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from vit_jax.configs.digits import get_config\n")
    line = ["launch", *backend, "--dry-run", "--", "train", "--config=~/mine.py"]
    assert cli.main([*line, "--workdir=~/runs"]) == 2
    assert "--workdir=~/runs: ~ is a home of this machine" in capsys.readouterr().err
    assert cli.main(line) == 0
    assert "recipe/mine.py" in capsys.readouterr().out
