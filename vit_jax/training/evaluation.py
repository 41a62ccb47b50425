"""The evaluation split measured with a run's parameters, and damaged images named on the way."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import evaluate
from vit_jax.training.setup import Run


def measure(run: Run, params: Any, say: Callable[[str], None]) -> dict[str, float]:
    """`accuracy`, `top5_accuracy`, `loss`, `examples` and `damaged_images` of the split."""
    batches = run.eval_batches()
    damaged = 0

    def on_device():
        nonlocal damaged
        for host, batch in batches:
            damaged += report_damaged(run, run.eval_source, host["damaged"], say)
            yield batch

    try:
        return evaluate(run.eval_step, params, on_device()) | {"damaged_images": damaged}
    finally:
        batches.close()


def report_damaged(
    run: Run, source: Source | None, ids: np.ndarray, say: Callable[[str], None]
) -> int:
    """Names the damaged images of a batch and counts them.

    Raises UserError at the first one where `data.damaged` is `fail`.
    """
    found = [int(index) for index in ids if index >= 0]
    for index in found:
        name = source.describe(index) if source else index
        if run.config.data.damaged == "fail":
            raise UserError(f"damaged image {name} (--config.data.damaged=skip goes on without it)")
        say(f"damaged image skipped: {name}")
    return len(found)
