"""Loading published weights: time beyond reading the file, and memory beyond the parameters.

    python benchmarks/restore.py

Time: ViT-B/16 with 1000 classes in Google's layout, a 330 MB `.npz` whose pages are in the cache.
Ours is the whole of `load_pretrained`: it recognises the layout, checks every tensor, reads,
converts and places it. `reading` reads the same file's arrays one by one by `numpy.load`, as every
loader must. `beyond_reading_s` is the difference within each round. timm reads the same file with
its own reader, if it is installed.

Memory: ViT-H/14 (632 million parameters, 2.5 GB) onto a mesh of eight virtual CPU devices, split by
`fsdp`, in a process of its own, with layers listed and stacked. The figure is the peak of anonymous
memory beyond the final parameters, over the file's size. `RssAnon` is read every millisecond; the
pages of the file, mapped and clean, are not in it. On a CPU a device's memory is the host's.
"""

import importlib.util
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import vit_jax
from vit_jax.benching import report
from vit_jax.benching.machine import resident
from vit_jax.benching.timing import Row, alternate, compare, json_from, summary, timed
from vit_jax.parallel.mesh import make_mesh

OURS = "vit_jax"
CASES = {"time": "vit_base_patch16_224", "memory": "vit_huge_patch14_224"}
QUICK = {"time": "vit_tiny_patch16_224", "memory": "vit_small_patch16_224"}
EIGHT_CPUS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def main() -> None:
    """Measures both."""
    if sys.argv[1:2] == ["--load"]:
        return load(sys.argv[2], sys.argv[3] == "stacked")
    options = report.parser(__doc__).parse_args()
    rounds = options.rounds or (3 if options.quick else 15)
    names = QUICK if options.quick else CASES
    with tempfile.TemporaryDirectory() as folder:
        rows = times(Path(folder), names["time"], rounds)
        rows += memory(Path(folder), names["memory"])
    report.finish("restore", rows, options)
    for row in rows:
        if "beyond_reading_s" in row:
            print(f"{row['case']}: {row['beyond_reading_s']:.2f} s beyond reading it")
        if "beyond_over_file" in row:
            print(
                f"{row['case']}: {row['beyond_params_mb']:,} MB beyond the parameters, "
                f"{row['beyond_over_file']:.2f} of the file"
            )


def times(folder: Path, name: str, rounds: int) -> list[Row]:
    """Ours, NumPy's reading, and timm's reader, in turns on one file."""
    path = write(folder, name)

    def reading() -> None:
        with np.load(path) as arrays:
            for key in arrays.files:
                arrays[key]

    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: jax.block_until_ready(vit_jax.load_pretrained(path, say=None)[1]),
        "reading": reading,
    }
    if importlib.util.find_spec("timm"):
        import timm

        model = timm.create_model(name)
        sides["timm"] = lambda: model.load_pretrained(str(path))
    else:
        print("timm is not installed: its reader is left out")
    measured = alternate({side: timed(work) for side, work in sides.items()}, rounds, warmup=1)
    rows = compare(f"{name}, {path.stat().st_size / 1e6:.0f} MB npz", measured, OURS)
    rows[0]["beyond_reading_s"] = float(np.median(measured[OURS] - measured["reading"]))
    return rows


def write(folder: Path, name: str) -> Path:
    """A file of the model in Google's layout, as `vit_jax.save_pretrained` writes it."""
    path = folder / f"{name}.npz"
    model = vit_jax.create_model(name)
    vit_jax.save_pretrained(model, model.init(), path, "google")
    return path


def memory(folder: Path, name: str) -> list[Row]:
    """Peaks of anonymous memory, each in a process of its own."""
    path = write(folder, name)
    rows = []
    for layers in ("listed", "stacked"):
        loaded = json_from([sys.executable, __file__, "--load", path, layers], EIGHT_CPUS)
        rows.append({
            "case": f"{name}, fsdp 8, layers {layers}", "side": OURS,
            **summary([loaded["seconds"]]), "beyond_params_mb": round(loaded["beyond"] / 1e6),
            "beyond_over_file": loaded["beyond"] / path.stat().st_size,
        })  # fmt: skip
    return rows


def load(path: str, stacked: bool) -> None:
    """Loads a file onto all devices; prints its seconds and its peak of anonymous memory."""
    mesh = make_mesh((1, jax.device_count(), 1))
    # The memory that the runtime keeps for itself is not counted.
    jax.block_until_ready(vit_jax.create_model("vit_mu_patch4_32").init())
    before, done, peaks = resident("RssAnon"), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.001):
            peaks.append(max(peaks.pop(), resident("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    params = jax.block_until_ready(
        vit_jax.load_pretrained(path, mesh=mesh, scan=stacked, say=None)[1]
    )
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    beyond = max(*peaks, resident("RssAnon")) - before - size
    print(json.dumps({"seconds": seconds, "beyond": beyond, "params": size}))


if __name__ == "__main__":
    main()
