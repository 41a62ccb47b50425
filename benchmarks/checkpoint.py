"""How long a save keeps training waiting.

    python benchmarks/checkpoint.py

A ViT-B/16 with Adam's two moments, 1.03 GB of float32. `copy` copies every array of the state once
on the host, as every asynchronous save must. `asynchronous` is `Checkpoints.save` as the training
loop calls it; it returns when the state has been copied. `synchronous` also waits until the save is
on disk. Every save is complete before the next side begins; that wait is not measured.
`blocking_over_copy` is the asynchronous side over the copy, within each round.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax.benching import report
from vit_jax.benching.timing import Side, alternate, compare, timed
from vit_jax.checkpoint.manager import Checkpoints

ASYNCHRONOUS = "asynchronous"


def main() -> None:
    """Measures the three in turns."""
    options = report.parser(__doc__).parse_args()
    name = "vit_tiny_patch16_224" if options.quick else "vit_base_patch16_224"
    params = vit_jax.create_model(name).init(seed=0)
    moments = {key: jax.tree.map(jnp.copy, params) for key in ("mu", "nu")}
    state = {"params": params, "opt": moments, "step": jnp.int32(0)}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=1, keep_best=False)
        steps = iter(range(1, 10**6))

        def save() -> None:
            checkpoints.save(next(steps), state, {}, None)

        def then_wait(side: Side) -> Side:
            def measured() -> float:
                seconds = side()
                checkpoints.wait()
                return seconds

            return measured

        sides = {
            ASYNCHRONOUS: then_wait(timed(save)),
            "synchronous": timed(lambda: (save(), checkpoints.wait())),
            "copy": timed(lambda: [np.array(leaf) for leaf in jax.tree.leaves(state)]),
        }
        times = alternate(sides, options.rounds or (3 if options.quick else 9), warmup=1)
        checkpoints.close()
    rows = compare(f"{name}, {size / 1e9:.2f} GB", times, ASYNCHRONOUS)
    share = float(np.median(times[ASYNCHRONOUS] / times["copy"]))
    rows[0]["blocking_over_copy"] = round(share, 3)
    report.finish("checkpoint", rows, options)
    print(f"an asynchronous save keeps training waiting {share:.2f} x the time of one copy")


if __name__ == "__main__":
    main()
