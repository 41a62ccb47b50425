"""SLURM on this machine without systemd: munged, slurmctld and slurmd with files of their own."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PATIENCE = 60  # seconds
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=15
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    """While entered, a cluster of one node with four cores, as SLURM believes; `environment` is
    what its commands need."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Slurm":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.say("scancel", "--me", check=False)
        self._until(lambda: not self.say("squeue", "-h", check=False).strip())
        self._stop()

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(PATIENCE)

    def _start(self) -> None:
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        controller, node = _free_ports(2)
        (folder / "slurm.conf").write_text(CONF.format(
            host=socket.gethostname(), folder=folder, controller=controller, node=node,
        ))  # fmt: skip
        munge = [f"--{name}={folder}/munge.{end}" for name, end in (
            ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"),
            ("seed-file", "seed"))]  # fmt: skip
        for line in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"],
        ):  # fmt: skip
            program = shutil.which(line[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            assert program, f"{line[0]} is not installed: apt-get install slurm-wlm munge"
            with (folder / f"{line[0]}.out").open("w") as out:
                self._daemons.append(subprocess.Popen(
                    [program, *line[1:]], env=self.environment, stdout=out, stderr=out,
                ))  # fmt: skip
            if line[0] == "munged":
                self._until((folder / "munge.socket").exists)
        self._until(lambda: self.say("sinfo", "-h", "-o", "%T", check=False).strip() == "idle")

    def _until(self, true) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
            assert time.monotonic() < end, {log.name: log.read_text()[-2000:] for log in logs}
            time.sleep(0.1)

    def say(self, *line: str, check: bool = True) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(
            line, env=self.environment, check=check, capture_output=True, text=True,
        ).stdout  # fmt: skip
