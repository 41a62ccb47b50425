"""Stands where `vit train` stands in a sweep, without its imports and its arithmetic: takes its
command line, and keeps its promises: a locked work folder, config.json, rows of metrics, saves,
exit code 75 after SIGTERM, the result at the end, a folder continued where it was saved.

What the process does is written to `starts` (a line each) and `steps` (a line each step), so that a
test can count what was done twice.
"""

import fcntl
import json
import signal
import sys
import time
from pathlib import Path

options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:])
keys = {k.removeprefix("config."): v for k, v in options.items() if k.startswith("config.")}
folder = Path(options["workdir"])
total, every = int(keys.get("total_steps", 27)), int(keys.get("eval_every_steps", 9))
rate = float(keys["optimizer.lr"])


def note(name, text):
    with (folder / name).open("a") as file:
        file.write(f"{text}\n")


def save(step):
    """A checkpoint appears whole."""
    part = folder / "checkpoints" / f".{step}"
    (part / "state").mkdir(parents=True, exist_ok=True)
    part.rename(folder / "checkpoints" / str(step))


def main():
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if keys.get("seed") == "13":
        print("vit: error: seed 13 cannot be had", file=sys.stderr)
        return 2
    (folder / "config.json").write_text(json.dumps({"total_steps": total}))
    saved = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    begin = max(saved, default=0)
    note("starts", begin)
    for step in range(begin + 1, total + 1):
        time.sleep(0.01)  # a step
        note("steps", step)
        accuracy = rate * step / total
        if step % every == 0:
            note("metrics.jsonl", json.dumps({"step": step, "eval/val/accuracy": accuracy}))
        if step % 5 == 0 or step == total or stopped:
            save(step)
        if stopped and step < total:
            return 75
    result = folder / ".result.json"
    result.write_text(json.dumps({"eval/val/accuracy": accuracy, "steps": total}))
    result.rename(folder / "result.json")
    return 0


sys.exit(main())
