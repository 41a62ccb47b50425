"""Loading published weights: time beyond reading the file, and memory beyond the parameters.

    python benchmarks/restore.py

Time: ViT-B/16 with 1000 classes in Google's layout, a 330 MB `.npz` whose pages are in the cache.
Ours is `load_pretrained` whole: recognising the layout, checking every tensor, reading, converting,
placing. `reading` is the same file's arrays by `numpy.load`, one by one, which nothing that loads
it can do without; `beyond_reading_s` is the difference, within each round. timm reads the same file
with its own reader, where it is installed.

Memory: ViT-H/14 (632 million parameters, 2.5 GB) onto a mesh of eight virtual CPU devices, split by
`fsdp`, in a process of its own: the most anonymous memory beyond the final parameters, over the
file's size, with layers listed and stacked. On a CPU a device's memory is the host's.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

OURS = "vit_jax"
CASES = {"time": "vit_base_patch16_224", "memory": "vit_huge_patch14_224"}
QUICK = {"time": "vit_tiny_patch16_224", "memory": "vit_small_patch16_224"}


def main() -> None:
    """Measures both."""
    options = harness.parser(__doc__).parse_args()
    rounds = options.rounds or (3 if options.quick else 15)
    names = QUICK if options.quick else CASES
    with tempfile.TemporaryDirectory() as folder:
        rows = times(Path(folder), names["time"], rounds)
        rows += memory(Path(folder), names["memory"])
    harness.report("restore", rows, options)
    for row in rows:
        if "beyond_reading_s" in row:
            print(f"{row['case']}: {row['beyond_reading_s']:.2f} s beyond reading it")
        if "beyond_over_file" in row:
            print(
                f"{row['case']}: {row['beyond_params_mb']:,} MB beyond the parameters, "
                f"{row['beyond_over_file']:.2f} of the file"
            )


def times(folder: Path, name: str, rounds: int) -> list[harness.Row]:
    """Ours, NumPy's reading, timm's reader, in turns on one file."""
    import jax

    import vit_jax

    path = write(folder, name)

    def ours() -> None:
        _, params, _ = vit_jax.load_pretrained(path, say=None)
        jax.block_until_ready(params)

    def reading() -> None:
        with np.load(path) as arrays:
            for key in arrays.files:
                arrays[key]

    sides: dict[str, Callable[[], None]] = {OURS: ours, "reading": reading}
    try:
        import timm
    except ImportError:
        print("timm is not installed: its reader is left out")
    else:
        model = timm.create_model(name)
        sides["timm"] = lambda: model.load_pretrained(str(path))
    measured = harness.alternate(
        {side: harness.timed(work) for side, work in sides.items()}, rounds, warmup=1
    )
    case = f"{name}, {path.stat().st_size / 1e6:.0f} MB npz"
    rows = harness.compare(case, measured, OURS)
    rows[0]["beyond_reading_s"] = float(np.median(measured[OURS] - measured["reading"]))
    return rows


def write(folder: Path, name: str) -> Path:
    """A file of the model in Google's layout, as `vit_jax.save_pretrained` writes it."""
    import vit_jax

    path = folder / f"{name}.npz"
    model = vit_jax.create_model(name)
    vit_jax.save_pretrained(model, model.init(), path, "google")
    return path


def memory(folder: Path, name: str) -> list[harness.Row]:
    """Peaks of anonymous memory, each in a process of its own."""
    path = write(folder, name)
    rows = []
    for scan in (False, True):
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        found = subprocess.run(
            [sys.executable, Path(__file__).with_name("restore_memory.py"), path, str(int(scan))],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        told = json.loads(found.stdout.splitlines()[-1])
        layers = "stacked" if scan else "listed"
        rows.append({
            "case": f"{name}, fsdp 8, layers {layers}", "side": OURS,
            **harness.summary(np.asarray([told["seconds"]])),
            "beyond_params_mb": round(told["beyond"] / 1e6),
            "beyond_over_file": told["beyond"] / path.stat().st_size,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
