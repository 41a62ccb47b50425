"""The work folder: its lock, its config, and files that are whole or not there."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Any, TextIO

from vit_jax.errors import UserError, cannot_write
from vit_jax.files import write_json
from vit_jax.parallel.compile_cache import make_private
from vit_jax.parallel.runtime import probe, process, together

TRIES = 20  # to lock: `vit runs` holds the lock for a moment, to see whether a run is alive


class WorkFolder:
    """A run's folder, which one run at a time may use.

    Raises UserError on entering: it cannot be made, or a running process holds its lock.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        self._lock: Any = None

    def __enter__(self) -> "WorkFolder":
        together(self._take)
        try:
            probe(self.path)
        except UserError:
            self.__exit__()
            raise
        return self

    def _take(self) -> None:
        """Takes the lock. Only the first process does, for all of them."""
        if process() > 0:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _opened(self.path / ".lock")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        make_private(self.path)
        for tries_left in reversed(range(TRIES)):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if tries_left:
                    time.sleep(0.05)
                    continue
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"work folder {self.path} is locked by a living run (process {holder}): wait for "
                "it, stop it, or choose another --workdir"
            )
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def __exit__(self, *error: object) -> None:
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # it may be gone
            if [p.name for p in self.path.iterdir()] == [".lock"]:  # the run wrote nothing
                (self.path / ".lock").unlink()
                self.path.rmdir()
        self._lock.close()  # releases the lock; the kernel does so if the process is killed

    def keep(self, config: dict[str, Any], classes: list[str]) -> None:
        """Writes `config.json` and `classes.json`."""
        if process() == 0:
            write_json(self.path / "config.json", config)
            write_json(self.path / "classes.json", classes)


def _opened(lock: Path) -> TextIO:
    """Opens the lock's file for writing. It follows no symbolic link, because that could lead to
    another file. Raises OSError."""
    number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, f"its {lock.name} is no file")
    return os.fdopen(number, "r+", encoding="utf-8")
