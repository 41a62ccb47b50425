"""Training on the CPU with and without the allocator settings of `vit train`, and with at most two
arenas besides, which would keep a long run from growing by a few huge pages.

    python benchmarks/huge_pages.py

`vit train` starts itself again with GLIBC_TUNABLES (see vit_jax/process.py), because glibc reads
them at the start of a process alone. So each measurement is a short run of `vit train`, with these
settings or with glibc's defaults, in turns: seconds of training a step, without compilation.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vit_jax.benching import report
from vit_jax.benching.timing import Side, alternate, compare
from vit_jax.process import MALLOC

ROOT = Path(__file__).resolve().parent.parent
SIDES = {
    "vit train's settings": MALLOC,
    "and two arenas": f"{MALLOC}:glibc.malloc.arena_max=2",
    "glibc's defaults": "",
}
FULL = {"model.name": "vit_nano_patch8_64", "batch_size": 64, "total_steps": 40}
QUICK = {"model.name": "vit_mu_patch4_32", "batch_size": 8, "total_steps": 4}
COMMON = {"data.train.source": "synthetic:size=128", "data.eval.split": "", "mixup": 0.2}


def main() -> None:
    """Measures both sides."""
    options = report.parser(__doc__).parse_args()
    keys = QUICK if options.quick else FULL
    sides = {name: _training(keys | COMMON, value) for name, value in SIDES.items()}
    rounds = options.rounds or (2 if options.quick else 8)
    times = alternate(sides, rounds, warmup=1)
    case = f"{keys['model.name']}, batch {keys['batch_size']}"
    report.finish("huge_pages", compare(case, times, next(iter(SIDES))), options)


def _training(keys: dict, tunables: str) -> Side:
    """A side that trains in a process of its own and returns its seconds a step."""
    options = [f"--config.{key}={value}" for key, value in keys.items()]
    environment = os.environ | {"GLIBC_TUNABLES": tunables, "PYTHONPATH": str(ROOT)}

    def side() -> float:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "vit_jax.cli", "train", "--config=base.py", "--quiet",
                 f"--workdir={folder}/run", *options],
                env=environment, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            result = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))
        return result["train_seconds"] / result["steps"]

    return side


if __name__ == "__main__":
    main()
