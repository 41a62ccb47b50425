"""`microbatch=auto`: the largest passes whose compiled step fits."""

import jax
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax.errors import UserError
from vit_jax.training.memory import check_fits, step_bytes, within
from vit_jax.training.run import run_of

pytestmark = pytest.mark.long

KEYS = {"batch_size": 64, "mixup": 0.0, "microbatch": "auto"}


@pytest.fixture(scope="module")
def needs():
    """Bytes that a step takes, by the size of its passes."""
    found = {}
    for size in (16, 32, 64):
        run = run_of(tiny_config(**KEYS | {"microbatch": size}), devices=jax.devices()[:1])
        found[size] = step_bytes(run.compiled_step)
    return found


def auto():
    return run_of(tiny_config(**KEYS), devices=jax.devices()[:1])


def test_smaller_passes_take_less_memory(needs):
    assert needs[16] < needs[32] < needs[64]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_largest_passes_that_fit_are_taken(needs, size):
    run, said = within(auto(), needs[size])
    assert run.config.microbatch == size
    assert step_bytes(run.compiled_step) <= needs[size]
    assert f"microbatch {size} of 64: its step takes " in said[-1]


def test_where_nothing_fits_it_says_what_would(needs):
    with pytest.raises(UserError, match=r"even with the smallest passes.*model.remat=full"):
        within(auto(), 1000)


def test_where_devices_do_not_tell_their_memory_the_batch_goes_through_at_once(tmp_path):
    run, said = within(auto(), None)
    assert run.config.microbatch == 64
    assert said[-1] == "microbatch 64: the devices do not tell their memory"
    vit_jax.train(
        tiny_config(**KEYS | {"total_steps": 2}), tmp_path, devices=jax.devices()[:1], quiet=True
    )
    assert len([row for row in rows(tmp_path) if "loss" in row]) == 2


def test_what_was_found_is_what_trains(needs, tmp_path):
    run, _ = within(auto(), needs[16])
    told = run_of(tiny_config(**KEYS | {"microbatch": 16}), devices=jax.devices()[:1])
    assert run.config.to_json() == told.config.to_json()
    assert run.mesh == told.mesh


@pytest.mark.parametrize("value", ["most", 1.5])
def test_a_microbatch_that_is_no_number_is_refused(value):
    with pytest.raises(UserError, match="a number of examples or auto"):
        run_of(tiny_config(microbatch=value), devices=jax.devices()[:1])


def test_what_does_not_fit_is_refused_before_it_starts(needs):
    run = run_of(tiny_config(**KEYS | {"microbatch": 64}), devices=jax.devices()[:1])
    check_fits(run, needs[64])
    with pytest.raises(UserError, match=r"a step takes .* GiB of a device: .*preflight=False"):
        check_fits(run, needs[64] - 1)
