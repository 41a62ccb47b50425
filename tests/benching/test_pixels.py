"""What `vit study --pixels` measures: how cost grows with the number of pixels."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax import create_model
from vit_jax.benching import pixels
from vit_jax.benching.pixels import Point, exponent
from vit_jax.files import write_text
from vit_jax.models.layers import ParamKeys
from vit_jax.pages import as_csv


def point(model, side, seconds, **more):
    fields = dict.fromkeys(("of_matmul", "step_bytes", "layer_s", "layer_bytes"), 0.5) | more
    return Point(model, side, 4, seconds, device="cpu", **fields)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_found(power):
    points = [point("a", side, 3.0 * side ** (2 * power)) for side in (32, 64, 256)]
    assert exponent(points, "step_s") == pytest.approx(power)


def test_there_is_no_exponent_of_one_point_or_of_nothing_measured():
    assert math.isnan(exponent([point("a", 32, 1.0)], "step_s"))
    some = [point("a", side, 1.0, layer_s=float("nan")) for side in (32, 64)]
    assert math.isnan(exponent(some, "layer_s"))


# Family -> its small model, fields that make the products over positions outweigh the projections,
# and the exponent of multiply-adds that the papers state.
LAYERS = {
    "patches": ("vit_mu_patch16_64", {}, 2.0),
    "axial patches": ("axial_vit_mu_patch16_64", {"patch_size": 1}, 1.5),
    "convolution": ("resnet14w32_gn", {}, 1.0),
    "standardised convolution": ("resnetv2_14x1_bit", {}, 1.0),
    "all pixels": ("nonlocal_resnet14w32_5", {}, 2.0),
    "a window of pixels": ("sasa_resnet14w32_convstem", {}, 1.0),
    "axes of pixels": ("axial_resnet14w32", {"spans": (1024,) * 4}, 1.5),
}


@pytest.mark.parametrize("what", LAYERS)
def test_the_layer_costs_what_the_papers_say(what):
    """By XLA's count of the forward pass of images of 1024 and 2048 pixels; nothing is run."""
    name, fields, power = LAYERS[what]
    counted = []
    for side in (1024, 2048):
        config = dataclasses.replace(create_model(name).config, image_size=(side, side), **fields)
        module, shape = create_model(name).family.layer(config, ParamKeys(jax.random.key(0)))
        graph, params = nnx.split(module, nnx.Param)

        def forward(params, x, graph=graph):
            return nnx.merge(graph, params)(x)

        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        counted.append(jax.jit(forward).lower(params, x).cost_analysis()["flops"])
    grown = math.log(counted[1] / counted[0]) / math.log(4)
    assert grown == pytest.approx(power, abs=0.12)


def test_the_rows_are_read_as_they_were_written(tmp_path):
    rows = [point("a, b", 32, 1 / 3), point("c", 64, 2.0, layer_s=float("nan"))]
    table = as_csv([pixels.NAMES, *map(dataclasses.astuple, rows)])
    write_text(tmp_path / "pixels.csv", table)
    again = pixels.read(tmp_path / "pixels.csv")
    assert again[0] == rows[0]
    assert np.isnan(again[1].layer_s)
    assert pixels.read(tmp_path / "none.csv") == []
    assert "Measured on cpu" in "".join(pixels.parts(rows))
    assert pixels.parts([]) == []
