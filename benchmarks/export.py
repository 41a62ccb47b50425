"""Images/s of exported models beside the compiled function of `vit predict`.

    pip install 'vit_jax[onnx]'
    python benchmarks/export.py                               # Ti/16 and S/16, batches of 1 and 8
    python benchmarks/export.py --models=vit_base_patch16_224 --batch=32

vit predict: parameters are arguments of the compiled function. StableHLO: the artefact as
`jax.export.deserialize` reads it, whose parameters are constants. onnxruntime: the ONNX file, on
the CPU, with onnxruntime's own number of threads. All of them take uint8 images and give
probabilities. A format whose package is not installed is left out, with a line about it. The
weights are random.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vit_jax
from vit_jax.benching import report
from vit_jax.benching.timing import Row, Side, alternate, compare, timed
from vit_jax.errors import UserError
from vit_jax.exporting.export import FORMATS
from vit_jax.exporting.function import Function, predicted
from vit_jax.models import Model

OURS = "vit predict"
SIDES = {"stablehlo": "StableHLO, read back", "onnx": "onnxruntime"}
MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224")
BATCHES = (1, 8)
QUICK = {"hidden_size": 96, "num_layers": 4, "num_heads": 3, "mlp_dim": 384, "image_size": 96}


def main() -> None:
    """Measures every model at every batch."""
    parser = report.parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), help="names, by commas")
    parser.add_argument("--batch", type=lambda text: [*map(int, text.split(","))], help="by commas")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.models or (MODELS[:1] if options.quick else MODELS):
        model = vit_jax.create_model(name, **(QUICK if options.quick else {}))
        with tempfile.TemporaryDirectory() as folder:
            calls = exported(model, Path(folder))
            for batch in options.batch or (BATCHES[-1:] if options.quick else BATCHES):
                case = f"{name}{' (quick)' * options.quick}, batch {batch}"
                times = alternate(
                    sides(model, calls, batch), options.rounds or (3 if options.quick else 30)
                )
                rows += compare(case, times, OURS)
                for row in rows[-len(times) :]:
                    row["images_per_second"] = batch / row["median_s"]
    report.finish("export", rows, options)


def exported(model: Model, folder: Path) -> dict[str, Any]:
    """The function of each format that can be written here, by its side, and our parameters."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x + 0.02 * rng.standard_normal(x.shape), np.float32), model.init()
    )
    weights = folder / "weights"
    vit_jax.save_pretrained(model, params, weights, "orbax")
    calls: dict[str, Any] = {OURS: jax.device_put(params)}
    for form, side in SIDES.items():
        try:
            facts = vit_jax.export(weights, folder / form, form, say=None)
        except UserError as error:
            print(f"left out, {side}: {error}")
            continue
        (size,) = facts["images"]
        calls[side] = FORMATS[form].read(folder / form / f"{size}{FORMATS[form].SUFFIX}")
    return calls


def sides(model: Model, calls: dict[str, Any], batch: int) -> dict[str, Side]:
    """A side of each function on the same noise, whose results are compared first."""
    params = calls[OURS]
    images = Function(model, params, "").example(batch, seed=0)
    ours = jax.jit(lambda params, images: predicted(model, params, images, (), raw=False))
    every = {OURS: lambda *images: ours(params, *images)}
    every |= {side: call for side, call in calls.items() if side != OURS}
    wanted = jax.device_get(every[OURS](*images))
    measured: dict[str, Side] = {}
    for side, call in every.items():
        for name, array in call(*images).items():
            np.testing.assert_allclose(array, wanted[name], atol=1e-4)
        measured[side] = timed(lambda call=call: jax.block_until_ready(call(*images)))
    return measured


if __name__ == "__main__":
    main()
