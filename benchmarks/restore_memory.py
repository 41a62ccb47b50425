"""One load of a file onto eight devices; prints its peak of anonymous memory as JSON.

    python benchmarks/restore_memory.py FILE STACKED

The peak is that of `RssAnon`, read every millisecond by a thread of its own; the file's own pages,
mapped and clean, are not in it.
"""

import json
import sys
import threading
import time
from pathlib import Path

import jax

import vit_jax
from vit_jax.parallel.mesh import make_mesh


def anonymous() -> int:
    """Bytes of anonymous memory that this process has resident."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell RssAnon")


def main() -> None:
    """Loads the file and measures."""
    path, stacked = sys.argv[1], bool(int(sys.argv[2]))
    mesh = make_mesh((1, jax.device_count(), 1))
    small = vit_jax.create_model("vit_mu_patch4_32")
    jax.block_until_ready(small.init())  # what the runtime keeps for itself comes first
    before, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    _, params, _ = vit_jax.load_pretrained(path, mesh=mesh, scan=stacked, say=None)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    beyond = max(peak, anonymous()) - before - size
    print(json.dumps({"seconds": seconds, "beyond": beyond, "params": size}))


if __name__ == "__main__":
    main()
