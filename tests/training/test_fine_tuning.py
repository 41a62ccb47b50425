"""`init`: a run's parameters under another head and resolution, every tensor accounted for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.digits_run import tiny_config
from vit_jax.errors import UserError
from vit_jax.training.setup import first_state, set_up

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    config = tiny_config(model__pre_logits=True, total_steps=5)
    vit_jax.train(config, workdir, devices=ONE, quiet=True)
    return workdir, first_state(set_up(config, devices=ONE), workdir).state["params"]


def start(tmp_path, pretrained, **changes):
    config = tiny_config(init=str(pretrained), **changes)
    run = set_up(config, devices=ONE)
    return run, first_state(run, tmp_path)


def test_another_head_and_resolution_take_over_the_encoder(pretrained, tmp_path):
    workdir, old = pretrained
    _run, begun = start(
        tmp_path, workdir, model__image_size=16, model__num_classes=13,
        data__train__pipeline="decode|resize", data__eval__pipeline="decode|resize",
    )  # fmt: skip
    new = begun.state["params"]
    for one, other in zip(
        jax.tree.leaves(new["encoder"]), jax.tree.leaves(old["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert new["pos_embed"]["grid"].shape == (4, 4, 32)
    np.testing.assert_array_equal(new["pos_embed"]["prefix"], old["pos_embed"]["prefix"])
    assert not np.any(new["head"]["kernel"])
    assert "pre_logits" not in new
    said = "\n".join(begun.said)
    assert "resized (2 x 2 to 4 x 4, timm): pos_embed/grid" in said
    assert "re-initialised (other classes): head/kernel" in said
    assert "unused (another head): pre_logits/kernel" in said
    assert begun.step == begun.examples_seen == 0
    # The resized positions are a real interpolation of the old ones: their mean is kept.
    np.testing.assert_allclose(
        jnp.mean(new["pos_embed"]["grid"], (0, 1)), jnp.mean(old["pos_embed"]["grid"], (0, 1)),
        atol=2e-3,
    )  # fmt: skip


def test_other_classes_of_the_same_number_take_a_fresh_head(pretrained, tmp_path):
    run = set_up(tiny_config(init=str(pretrained[0]), model__pre_logits=True), devices=ONE)
    same = first_state(run, tmp_path)
    assert np.any(same.state["params"]["head"]["kernel"])
    others = dataclasses.replace(run, classes=[f"other {i}" for i in range(10)])
    begun = first_state(others, tmp_path)
    assert not np.any(begun.state["params"]["head"]["kernel"])
    assert "re-initialised (other classes): head/kernel" in "\n".join(begun.said)


def test_a_listed_checkpoint_starts_a_scanned_model(pretrained, tmp_path):
    workdir, old = pretrained
    _, begun = start(tmp_path, workdir, model__scan=True, model__pre_logits=True)
    stacked = begun.state["params"]["encoder"]["block"]["mlp"]["fc1"]["kernel"]
    for layer in range(2):
        np.testing.assert_array_equal(
            stacked[layer], old["encoder"][f"block{layer:02d}"]["mlp"]["fc1"]["kernel"]
        )


def test_more_layers_than_the_checkpoint_has_are_refused_by_name(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"encoder/block02/.*: the weights lack it"):
        start(tmp_path, pretrained[0], model__num_layers=3)


def test_registers_that_the_checkpoint_lacks_are_refused(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"registers .*: the weights lack it"):
        start(tmp_path, pretrained[0], model__registers=2)


def test_resume_takes_the_whole_state_of_another_work_folder(pretrained, tmp_path):
    config = tiny_config(model__pre_logits=True, resume=str(pretrained[0]))
    run = set_up(config, devices=ONE)
    begun = first_state(run, tmp_path)
    assert begun.step == 5
    assert begun.examples_seen == 5 * 32
    assert int(begun.state["step"]) == 5
