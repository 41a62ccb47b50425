"""The folder and the files that a data set is written to. They appear whole or not at all."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from vit_jax.errors import UserError, cannot_write


@contextlib.contextmanager
def new_folder(root: Path, target: str) -> Iterator[Path]:
    """Makes a folder to fill. It becomes `root/target`, or is removed if the block raises an error.

    Raises UserError: the target exists already, or another process is writing it.
    """
    if re.search(r"\w+:/\w", str(root)):  # such as gs://
        raise UserError(f"{root} is no folder of this machine: prepare into one, and copy it there")
    final = root / target
    if final.exists():
        raise UserError(f"{final} is there already: delete it, or write elsewhere with --output")
    # It is not in NAME, because a reader would take it for a version of the data set.
    folder = root / f".{target.replace('/', '-')}.incomplete"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(root, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is writing {final}") from error
        try:
            for left in folder.iterdir():  # files of a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(final)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


class Shard:
    """Writes an array_record file. The library reports errors only when the file is closed."""

    def __init__(self, path: str):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path, self.length, self.size = path, 0, 0
        self._writer = ArrayRecordWriter(path, "group_size:1")

    def write(self, data: bytes) -> None:
        with self._errors():
            self._writer.write(data)
            if not self._writer.ok():
                self._writer.close()
        self.length, self.size = self.length + 1, self.size + len(data)

    def close(self) -> int:
        """Closes the file and returns the number of records."""
        with self._errors():
            self._writer.close()
        return self.length

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).split(";")[0].rpartition(": ")[2]
            raise UserError(f"cannot write {self.path}: {reason}") from error
