"""How long a save keeps training waiting.

    python benchmarks/checkpoint.py

A ViT-B/16 with Adam's two moments, 1.03 GB of float32. `copy` copies every array of the state once
on the host, which an asynchronous save cannot do without; `asynchronous` is `Checkpoints.save`, as
the training loop calls it, which returns when the state has been copied; `synchronous` is the same
with waiting until it is on disk. Between two saves the background is waited for, outside of what is
measured. `blocking_over_copy` is the asynchronous side over the copy, within each round.
"""

import tempfile
import time
from pathlib import Path

import harness
import numpy as np

ASYNCHRONOUS = "asynchronous"


def main() -> None:
    """Measures the three in turns."""
    options = harness.parser(__doc__).parse_args()
    import jax
    import jax.numpy as jnp

    import vit_jax
    from vit_jax.checkpoint.manager import Checkpoints

    name = "vit_tiny_patch16_224" if options.quick else "vit_base_patch16_224"
    rounds = options.rounds or (3 if options.quick else 9)
    params = vit_jax.create_model(name).init(seed=0)
    moments = {key: jax.tree.map(jnp.copy, params) for key in ("mu", "nu")}
    state = {"params": params, "opt": moments, "step": jnp.int32(0)}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=1, keep_best=False)
        step = 0

        def copy() -> float:
            began = time.perf_counter()
            copies = [np.array(leaf) for leaf in jax.tree.leaves(state)]
            spent = time.perf_counter() - began
            del copies
            return spent

        def save(wait: bool) -> float:
            nonlocal step
            step += 1
            began = time.perf_counter()
            checkpoints.save(step, state, {}, None)
            if wait:
                checkpoints.wait()
            spent = time.perf_counter() - began
            checkpoints.wait()
            return spent

        sides = {
            ASYNCHRONOUS: lambda: save(wait=False), "synchronous": lambda: save(wait=True),
            "copy": copy,
        }  # fmt: skip
        measured = harness.alternate(sides, rounds, warmup=1)
        checkpoints.close()
    rows = harness.compare(f"{name}, {size / 1e9:.2f} GB", measured, ASYNCHRONOUS)
    share = float(np.median(measured[ASYNCHRONOUS] / measured["copy"]))
    rows[0]["blocking_over_copy"] = round(share, 3)
    harness.report("checkpoint", rows, options)
    print(f"an asynchronous save keeps training waiting {share:.2f} x the time of one copy")


if __name__ == "__main__":
    main()
