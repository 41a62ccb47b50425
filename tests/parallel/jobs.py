"""Jobs of real processes on one machine, which train the digits and can be killed and stopped."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.xla_flags import xla_flags

ROOT = Path(__file__).parents[2]
TINY = {
    "batch_size": 32, "total_steps": 8, "log_every_steps": 1, "eval_every_steps": 100,
    "checkpoint.every_steps": 4, "model.name": "vit_mu_patch4_32", "model.image_size": 8,
    "model.num_layers": 2, "mixup": 0.2, "schedule.warmup_steps": 4, "optimizer.lr": 3e-3,
    "mesh.min_shard_size": 1, "optimizer.weight_decay": 0.1,
}  # fmt: skip
PATIENCE = 240  # seconds, for a machine that does much else


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


FAULTS = ("fault", "round", "step told when it came", "last save left", "processes after it",
          "outcome")  # fmt: skip


def note(*columns: object) -> None:
    """A line of the table of faults, where `FAULT_TABLE` names one."""
    if path := os.environ.get("FAULT_TABLE"):
        with Path(path).open("a", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            if not file.tell():
                table.writerow(FAULTS)
            table.writerow(columns)


class Job:
    """`processes` times `vit train`, each with so many virtual devices; `changes` are keys of the
    config with __ for the dot. What process I says stands in LOGS.I.log, WORKDIR.I.log. Or, with
    `command`, another command of `vit` than training. `only` has more arguments of one process."""

    def __init__(self, workdir: Path, processes: int = 2, devices: int = 2, *,
                 logs: Path | None = None, command: Sequence[str] = (),
                 only: Mapping[int, Sequence[str]] | None = None, **changes):  # fmt: skip
        keys = TINY | {key.replace("__", "."): value for key, value in changes.items()}
        overrides = [f"--config.{key}={value}" for key, value in keys.items()]
        trains = ["train", "--config=digits.py", f"--workdir={workdir}", *overrides]
        environment = os.environ | {
            "XLA_FLAGS": xla_flags(devices),
            "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            "NPROC": "",
        }  # fmt: skip
        self.workdir, port = workdir, free_port()
        self.logs = [Path(f"{logs or workdir}.{number}.log") for number in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            job = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}",
                   f"--process_id={number}"] if processes > 1 else []  # fmt: skip
            line = [sys.executable, "-m", "vit_jax.cli", *(command or trains), *job,
                    *(only or {}).get(number, ())]  # fmt: skip
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(line, env=environment, stdout=file, stderr=file, cwd=ROOT)
                )

    def said(self, number: int = 0) -> str:
        return self.logs[number].read_text()

    def when(self, text: str, number: int = 0) -> "Job":
        """Returns when process `number` has said `text`."""
        end = time.monotonic() + PATIENCE
        while text not in self.said(number):
            alive = self.processes[number].poll() is None
            assert alive or text in self.said(number), self.said(number)
            assert time.monotonic() < end, self.said(number)
            time.sleep(0.01)
        return self

    def send(self, signal: int, *numbers: int) -> "Job":
        for number in numbers:
            self.processes[number].send_signal(signal)
        return self

    def codes(self, *numbers: int, within: float = PATIENCE) -> list[int]:
        """Exit codes of the processes named (all, where none is), which end in time."""
        end = time.monotonic() + within
        chosen = [self.processes[n] for n in numbers or range(len(self.processes))]
        return [process.wait(max(0.1, end - time.monotonic())) for process in chosen]

    def finish(self) -> "Job":
        codes = self.codes()
        assert set(codes) == {0}, "\n".join(self.said(n) for n in range(len(self.logs)))
        return self

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    @property
    def rows(self) -> dict[int, dict]:
        """step -> row of the losses."""
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row for row in map(json.loads, lines) if "loss" in row}
