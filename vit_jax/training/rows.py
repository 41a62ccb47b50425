"""`metrics.jsonl`: the rows of a run, on the disk before the checkpoint of their step is. A restart
drops a torn last line and the rows after its checkpoint, and then writes the same numbers again.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

from vit_jax import records
from vit_jax.errors import UserError, cannot_write
from vit_jax.files import read_bytes, write_text

Row = dict[str, Any]


class MetricRows:
    """`metrics.jsonl`. Rows are appended, and are on disk before a save commits. A restart removes
    those after its checkpoint. All processes keep the rows; only the first one writes them."""

    def __init__(self, path: Path, last_step: int, writes: bool):
        self._path, self._writes = path, writes
        self.dropped: list[Row] = []  # trained again after a restart
        self.damage = ""  # a line about lines that could not be read
        self.rows = self._cut(last_step)
        self._file = path.open("a", encoding="utf-8") if writes else io.StringIO()

    def _cut(self, last_step: int) -> list[Row]:
        """Removes lines that are no rows, and all rows after `last_step`. Returns the rows kept."""
        try:
            lines = list(records.rows_in(read_bytes(self._path, records.MOST_ROWS)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {records.reason(error)}") from error
        self.damage = records.damage(self._path, lines)
        kept, rows = [], []
        for line in lines:
            if line.row is None:
                continue
            if line.row["step"] <= last_step:
                rows.append(line.row)
                kept.append(line.text + "\n")
            else:
                self.dropped.append(line.row)
        if not self._writes:
            return rows
        write_text(self._path, "".join(kept))
        return rows

    def write(self, row: Row) -> None:
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self.rows.append(row)

    def sync(self) -> None:
        """Waits until the rows are on the disk."""
        try:
            if self._writes:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise cannot_write(self._path, error) from error
