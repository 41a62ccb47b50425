"""A writer of one's own, in one file: lines of JSON in the work folder."""

import json


class ToyWriter:
    """Writes a line for each call."""

    def __init__(self, run):
        self._file = (run.folder / "toy.jsonl").open("a", encoding="utf-8")
        self.id, self.code = run.id or "toy-1", 0
        self._line(call="open", id=run.id, name=run.name, last_step=run.last_step)

    def _line(self, **what):
        self._file.write(json.dumps(what) + "\n")

    def write_hparams(self, hparams):
        self._line(call="hparams", hparams=hparams)

    def write_scalars(self, step, scalars):
        self._line(call="row", row={"step": step, **scalars})

    def flush(self):
        self._file.flush()

    def close(self):
        self._line(call="close", code=self.code)
        self._file.close()


class Unreliable(ToyWriter):
    """Loses the rows of steps 3 to 5, and refuses to open where the work folder holds `away`."""

    def __init__(self, run):
        if (run.folder / "away").exists():
            raise ConnectionError("the server\nis away")
        super().__init__(run)

    def write_scalars(self, step, scalars):
        if 3 <= step <= 5:
            raise ConnectionError("the network is down")
        super().write_scalars(step, scalars)
