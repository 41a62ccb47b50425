"""What an earlier version wrote is continued as that version would have continued it.

`written_before.zip` is a work folder of 2026-11-28, from before tasks and families had their own
files: its checkpoint of step 4, and the rows of all 8 steps. JAX 0.10.2, Orbax 0.12, one CPU
device.
"""

import shutil
from pathlib import Path

import jax
import numpy as np

import vit_jax
from tests.digits_run import rows, tiny_config, told

WRITTEN = Path(__file__).with_name("written_before.zip")
SIZES = {"model__num_layers": 1, "model__hidden_size": 8, "model__num_heads": 2,
         "model__mlp_dim": 16}  # fmt: skip


def test_a_run_of_an_earlier_version_goes_on_to_the_same_numbers(tmp_path):
    shutil.unpack_archive(WRITTEN, tmp_path)
    before, evaluated = told(tmp_path), rows(tmp_path)[-1]
    config = tiny_config(
        total_steps=8, eval_every_steps=4, checkpoint__every_steps=4, ema=0.9, **SIZES
    )
    result = vit_jax.train(config, tmp_path, devices=jax.devices()[:1], quiet=True)
    after = told(tmp_path)
    assert list(after) == list(before) == list(range(1, 9))
    for step, (*numbers, examples) in before.items():
        *again, examples_again = after[step]
        assert examples_again == examples
        np.testing.assert_allclose(again, numbers, rtol=1e-5)
    assert result["steps"] == 8
    same = {key: value for key, value in evaluated.items() if key.endswith(("accuracy", "loss"))}
    assert len(same) >= 4
    for key, value in same.items():
        np.testing.assert_allclose(rows(tmp_path)[-1][key], value, rtol=1e-5, err_msg=key)
