"""`init`: a run's parameters under another head and resolution, every tensor accounted for."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.digits_run import tiny_config, told, with_data
from vit_jax.errors import UserError
from vit_jax.models.data_config import DataConfig
from vit_jax.models.position import resize_grid
from vit_jax.pretrained.weights import open_weights
from vit_jax.training.run import run_of
from vit_jax.training.start import first_state, open_origin

pytestmark = pytest.mark.long

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    config = tiny_config(model__pre_logits=True, total_steps=5)
    vit_jax.train(config, workdir, devices=ONE, quiet=True)
    return workdir, first_state(run_of(config, devices=ONE), workdir).state["params"]


def start(tmp_path, pretrained, **changes):
    config = tiny_config(init=str(pretrained), **changes)
    run = run_of(config, devices=ONE)
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
    run = run_of(tiny_config(init=str(pretrained[0]), model__pre_logits=True), devices=ONE)
    same = first_state(run, tmp_path)
    assert np.any(same.state["params"]["head"]["kernel"])
    others = with_data(run, classes=[f"other {i}" for i in range(10)])
    begun = first_state(others, tmp_path)
    assert not np.any(begun.state["params"]["head"]["kernel"])
    assert "re-initialised (other classes): head/kernel" in "\n".join(begun.said)


def test_the_same_classes_in_another_order_take_the_head_over_in_theirs(pretrained, tmp_path):
    workdir, old = pretrained
    run = run_of(tiny_config(init=str(workdir), model__pre_logits=True), devices=ONE)
    turned = with_data(run, classes=[*run.classes[3:], *run.classes[:3]])
    begun = first_state(turned, tmp_path)
    columns = np.roll(np.arange(10), -3)
    for part in ("kernel", "bias"):
        np.testing.assert_array_equal(
            begun.state["params"]["head"][part], np.asarray(old["head"][part])[..., columns]
        )
    assert "loaded (classes in another order): head/kernel" in "\n".join(begun.said)


def test_a_listed_checkpoint_starts_a_scanned_model(pretrained, tmp_path):
    workdir, old = pretrained
    _, begun = start(tmp_path, workdir, model__scan=True, model__pre_logits=True)
    stacked = begun.state["params"]["encoder"]["block"]["mlp"]["fc1"]["kernel"]
    for layer in range(2):
        np.testing.assert_array_equal(
            stacked[layer], old["encoder"][f"block{layer:02d}"]["mlp"]["fc1"]["kernel"]
        )


def test_more_layers_than_the_checkpoint_has_are_refused_by_name(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"has num_layers 2 \(.* 3\): model.num_layers=2 would"):
        start(tmp_path, pretrained[0], model__num_layers=3)


def test_registers_that_the_checkpoint_lacks_are_refused(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"has registers 0 \(.* 2\): model.registers=0 would fit"):
        start(tmp_path, pretrained[0], model__registers=2)


def test_resume_takes_the_whole_state_of_another_work_folder(pretrained, tmp_path):
    config = tiny_config(model__pre_logits=True, resume=str(pretrained[0]))
    run = run_of(config, devices=ONE)
    begun = first_state(run, tmp_path)
    assert begun.step == 5
    assert begun.examples_seen == 5 * 32
    assert int(begun.state["step"]) == 5


# -- from weights of other layouts --------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A two-layer ViT of three classes as a timm file, with timm's numerics and ImageNet's mean."""
    model = vit_jax.create_model(
        "vit_mu_patch4_8", num_layers=2, num_classes=3, gelu="exact", layernorm_eps=1e-5,
        posemb_resize="huggingface", image_size=16,
    )  # fmt: skip
    shown = DataConfig((0.4, 0.5, 0.6), (0.2, 0.2, 0.4))
    model = dataclasses.replace(model, data_config=shown)
    path = tmp_path_factory.mktemp("foreign") / "weights.safetensors"
    vit_jax.save_pretrained(model, model.init(1), path, to="timm")
    return path, model.init(1)


def tune(path, workdir, devices=ONE, **changes):
    config = tiny_config(init=str(path), data__train__source="synthetic:size=8", **changes)
    return vit_jax.train(config, workdir, devices=devices, quiet=True)


def test_the_arithmetic_and_the_value_range_of_the_weights_come_with_them(foreign, tmp_path):
    path, params = foreign
    config = tiny_config(init=str(path), data__train__source="synthetic:size=8")
    run = run_of(config, devices=ONE, weights=open_origin(config, tmp_path))
    c = run.model.config
    assert (c.gelu, c.layernorm_eps, c.posemb_resize) == ("exact", 1e-5, "huggingface")
    assert c.dropout == 0.1  # the run's own
    assert list(run.config.data.mean) == [0.4, 0.5, 0.6]
    assert run.model.data_config.std == (0.2, 0.2, 0.4)
    assert any("model.gelu=exact comes with" in line for line in run.said)
    begun = first_state(run, tmp_path)
    np.testing.assert_array_equal(
        begun.state["params"]["encoder"]["block01"]["mlp"]["fc1"]["kernel"],
        params["encoder"]["block01"]["mlp"]["fc1"]["kernel"],
    )
    resized = resize_grid(np.asarray(params["pos_embed"]["grid"]), (2, 2), "huggingface")
    np.testing.assert_array_equal(begun.state["params"]["pos_embed"]["grid"], resized)


def test_a_key_goes_before_the_weights_and_the_table_warns_of_it(foreign, tmp_path):
    config = tiny_config(
        init=str(foreign[0]), data__train__source="synthetic:size=8", model__gelu="tanh"
    )
    run = run_of(config, devices=ONE, weights=open_origin(config, tmp_path))
    assert run.model.config.gelu == "tanh"
    said = "\n".join(first_state(run, tmp_path).said)
    assert "warning: gelu is 'tanh', the weights were trained with 'exact'" in said


def test_a_normalisation_that_no_file_states_is_said_unless_the_run_states_it(foreign, tmp_path):
    """A timm file without metadata and without a config.json; the pipelines are the run's own."""
    path = tmp_path / "bare.safetensors"
    save_file(load_file(foreign[0]), path)
    stated = {"data__mean": 0.5, "data__std": 0.5}
    of_pipelines = dict.fromkeys(
        ("data__train__pipeline", "data__eval__pipeline"), "decode|value_range(-1, 1)"
    )
    for changes, guessed in (({}, "mean 0.5, std 0.5"), (stated, ""), (of_pipelines, "")):
        config = tiny_config(
            init=str(path), data__train__source="synthetic:size=8", model__num_heads=2, **changes
        )
        weights = open_weights(path, num_heads=2)
        run = run_of(config, devices=ONE, weights=weights)
        said = "\n".join(run.said)
        assert ("does not say how images were shown" in said) == bool(guessed)
        assert guessed in said
        assert (run.config.data.mean, run.config.data.std) == (0.5, 0.5)


def test_a_run_continues_when_its_weights_are_gone(foreign, tmp_path):
    path = tmp_path / "moved.safetensors"
    path.write_bytes(foreign[0].read_bytes())
    tune(path, tmp_path / "work", total_steps=2)
    path.unlink()
    assert tune(path, tmp_path / "work", total_steps=4)["steps"] == 4


def test_weights_of_another_family_are_refused(foreign, tmp_path):
    with pytest.raises(UserError, match=r"holds a ViT .* but model.name is resnetv2_50x1_bit"):
        tune(
            foreign[0], tmp_path, model__name="resnetv2_50x1_bit", model__num_layers=None,
            model__dropout=None, model__attention_dropout=None, model__drop_path=None,
        )  # fmt: skip
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_goes_on_when_its_init_is_gone_also_where_a_tilde_names_its_work_folder(
    pretrained, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    weights = shutil.copytree(pretrained[0], tmp_path / "weights")
    same = {"init": str(weights), "schedule__name": "constant", "model__pre_logits": True}
    vit_jax.train(tiny_config(total_steps=1, **same), "~/runs/tuned", devices=ONE, quiet=True)
    shutil.rmtree(weights)
    vit_jax.train(tiny_config(total_steps=2, **same), "~/runs/tuned", devices=ONE, quiet=True)
    assert list(told(tmp_path / "home" / "runs" / "tuned")) == [1, 2]
