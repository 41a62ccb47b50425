"""Weights & Biases, MLflow and Trackio without a network: what their own files hold after runs that
were stopped and continued is what `metrics.jsonl` holds."""

import dataclasses
import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.digits_run import rows
from tests.xla_flags import xla_flags

ROOT = Path(__file__).parents[2]
KEYS = {
    "batch_size": 32, "total_steps": 600, "log_every_steps": 5, "eval_every_steps": 20,
    "checkpoint.every_steps": 100, "model.name": "vit_mu_patch4_32", "model.image_size": 8,
    "model.num_layers": 1, "schedule.warmup_steps": 4, "data.eval.split": "val",
}  # fmt: skip


@dataclasses.dataclass
class Stored:
    """What a tracker has of one run."""

    id: str
    rows: list[dict]
    config: dict
    name: str
    ended: object


# -- W&B: a log of records in the format of LevelDB's log, each a protocol buffer ----------------
def wandb_records(file):
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        if (room := 2**15 - at % 2**15) < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def of_wandb(place, workdir):
    for folder in sorted((workdir / "wandb").glob("offline-run-*")):
        (file,) = folder.glob("run-*.wandb")
        stored = Stored("", [], {}, "", None)
        for record in wandb_records(file):
            if record.HasField("run") and record.run.run_id:
                stored.id, stored.name = record.run.run_id, record.run.display_name
                for item in record.run.config.update:
                    stored.config[item.key] = json.loads(item.value_json)
            for item in record.config.update:
                stored.config[item.key or item.nested_key[0]] = json.loads(item.value_json)
            if record.HasField("history"):
                row = {i.key or i.nested_key[0]: json.loads(i.value_json)
                       for i in record.history.item}  # fmt: skip
                stored.rows.append({k: v for k, v in row.items() if not k.startswith("_")})
            if record.HasField("exit"):
                stored.ended = record.exit.exit_code
        yield stored


# -- MLflow: a folder of text files --------------------------------------------------------------
def of_mlflow(place, workdir):
    for meta in sorted(place.glob("*/*/meta.yaml")):
        run = meta.parent
        facts = dict(line.split(": ", 1) for line in meta.read_text().splitlines() if ": " in line)
        by_time: dict[tuple, dict] = {}
        for file in (run / "metrics").rglob("*"):
            for line in file.read_text().splitlines() if file.is_file() else ():
                time, value, step = line.split()[:3]
                key = str(file.relative_to(run / "metrics"))
                by_time.setdefault((int(time), int(step)), {"step": int(step)})[key] = float(value)
        config = {file.name: file.read_text() for file in (run / "params").iterdir()}
        assert (run / "tags" / "workdir").read_text() == str(workdir)
        yield Stored(facts["run_id"], [by_time[key] for key in sorted(by_time)], config,
                     facts["run_name"], {"3": 0, "5": 75}[facts["status"]])  # fmt: skip


# -- Trackio: a database -------------------------------------------------------------------------
def of_trackio(place, workdir):
    with sqlite3.connect(place / "vit_jax.db") as database:
        logs = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id")
        runs: dict[str, Stored] = {}
        for id_, name, step, metrics in logs:
            stored = runs.setdefault(id_, Stored(id_, [], {}, name, 0))
            stored.rows.append({"step": step} | json.loads(metrics))
        for id_, config in database.execute("SELECT run_id, config FROM configs"):
            runs[id_].config = json.loads(config)
    return list(runs.values())


@dataclasses.dataclass(frozen=True)
class Kind:
    """A tracker: the variables that keep it here, how it is read, a value of a config as text."""

    variables: Callable
    read: Callable
    starts: int = 1  # records of one run that was started twice
    as_kept: Callable = lambda value: value


KINDS = {
    "wandb": Kind(lambda place: {"WANDB_MODE": "offline"}, of_wandb, starts=2),
    "mlflow": Kind(
        lambda place: {"MLFLOW_TRACKING_URI": f"file://{place}",
                       "MLFLOW_ALLOW_FILE_STORE": "true"}, of_mlflow, as_kept=str,
    ),
    "trackio": Kind(lambda place: {"TRACKIO_DIR": str(place)}, of_trackio),
}  # fmt: skip


def start(name, workdir, place):
    line = [sys.executable, "-m", "vit_jax.cli", "train", "--config=digits.py",
            f"--workdir={workdir}", f"--config.writers={name}",
            *(f"--config.{key}={value}" for key, value in KEYS.items())]  # fmt: skip
    environment = os.environ | KINDS[name].variables(place) | {
        "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True,
                            cwd=workdir.parent, start_new_session=True)  # fmt: skip


def numbers(workdir):
    return [{k: v for k, v in row.items() if not isinstance(v, str)} for row in rows(workdir)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed here"))
    for name in KINDS
])  # fmt: skip
def test_what_a_tracker_keeps_of_a_stopped_and_continued_run_is_every_row(tmp_path, name, number):
    workdir, place, kind = tmp_path / "digits", tmp_path / "kept", KINDS[name]
    place.mkdir()
    first = start(name, workdir, place)
    for line in first.stderr:
        if line.startswith("step  30/600"):
            os.killpg(first.pid, number)  # as a terminal does, to the tracker's processes too
            break
    rest = first.stderr.read()
    assert first.wait(300) == {signal.SIGTERM: 75, signal.SIGINT: 130}[number], rest
    assert "not taken" not in rest
    stopped = numbers(workdir)
    assert 30 <= stopped[-1]["step"] < 600
    again = start(name, workdir, place)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert "writer" not in told
    kept = list(kind.read(place, workdir))
    assert len(kept) == kind.starts
    assert len({run.id for run in kept}) == 1
    assert {run.name.removesuffix(kept[0].name[-7:]) if name == "trackio" else run.name
            for run in kept} == {"digits"}  # fmt: skip
    sent = [row for run in kept for row in run.rows]
    if name == "mlflow":  # which keeps a file for each metric, and knows no rows
        merged = [{}, {}]
        for side, all_rows in zip(merged, (sent, numbers(workdir)), strict=True):
            for row in all_rows:
                side.setdefault(row["step"], {}).update(row)
        assert merged[0] == merged[1]
    else:
        assert sent == numbers(workdir)
    config = json.loads((workdir / "config.json").read_text())
    wanted = {key: kind.as_kept(value) for key, value in config.items()}
    assert {key: kept[-1].config.get(key) for key in wanted} == wanted
    assert kept[-1].ended == 0
