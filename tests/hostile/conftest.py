"""`vit` under watch: a command must end in one clear line, whatever it is given."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xla_flags import xla_flags

CPU_SECONDS, MIB = 5, 1024  # that a command may take of what it refuses


class Watched:
    """Runs commands in children of a warm server (server.py)."""

    def __init__(self) -> None:
        environment = dict(
            os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=xla_flags(1), PYTHONDONTWRITEBYTECODE="1"
        )
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"], cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> dict:
        assert self._server.stdout
        line = self._server.stdout.readline()
        assert line, "the server of watched commands has ended"
        return json.loads(line)

    def __call__(self, *argv: object, cwd: Path, writes: tuple[Path, ...] = (), **env: str) -> dict:
        """The answer to a command, which left everything else as it was and started nothing."""
        before = listed(cwd, writes)
        request = {"argv": [os.fsdecode(os.fspath(a)) if isinstance(a, Path) else str(a)
                            for a in argv],
                   "cwd": str(cwd), "writes": list(map(str, writes)), "env": env}  # fmt: skip
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._answer()
        told = f"{argv}: exit code {answer['code']}\n{answer['out'][-500:]}{answer['err'][-3000:]}"
        assert answer["did"] == [], told
        assert listed(cwd, writes) == before, told
        assert "Traceback" not in answer["err"], told
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", answer["out"] + answer["err"]), told
        assert answer["cpu"] <= CPU_SECONDS, f"{answer['cpu']:.1f} s of CPU: {told}"
        assert answer["mib"] <= MIB, f"{answer['mib']:.0f} MiB: {told}"
        return answer

    def refused(
        self, *argv: object, cwd: Path, says: str = "", writes: tuple[Path, ...] = (), **env: str
    ) -> None:
        """One line, exit code 2; `says` is a pattern that it has."""
        answer = self(*argv, cwd=cwd, writes=writes, **env)
        lines = [line for line in answer["err"].splitlines() if not EXPECTED.match(line)]
        told = f"{argv}: exit code {answer['code']}\n{answer['out'][-500:]}{answer['err'][-3000:]}"
        assert answer["code"] == 2, told
        assert len(lines) == 1, told
        assert lines[0].startswith("vit: error: "), told
        assert len(lines[0]) < 2000, told
        assert re.search(says, lines[0]), told

    def read(self, *argv: object, cwd: Path, writes: tuple[Path, ...] = (), **env: str) -> str:
        """What a command printed that ended well."""
        answer = self(*argv, cwd=cwd, writes=writes, **env)
        assert answer["code"] == 0, f"{argv}:\n{answer['err'][-3000:]}"
        return answer["out"]

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(30)


# Lines beside the one of the error: what was passed over before it, and progress of downloads.
EXPECTED = re.compile(
    "skipped: |warning: |downloading |downloaded |http.*trying again|note: |"
    r"(?!vit: error: ).*: [\d,]+ files? (is|are) left out"
)


def listed(folder: Path, but: tuple[Path, ...]) -> list[str]:
    """Everything below a folder, apart from where a command may write."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) not in but]
        found += [os.path.join(place, name) for name in [*folders, *files]
                  if Path(place, name) not in but]  # fmt: skip
    return sorted(found)


@pytest.fixture(scope="session")
def vit():
    watched = Watched()
    yield watched
    watched.close()
