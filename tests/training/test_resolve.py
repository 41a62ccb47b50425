"""From a config to everything that a run is made of, and what is refused on the way."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.digits_run import tiny_config
from vit_jax import recipe
from vit_jax.config import flat
from vit_jax.errors import UserError
from vit_jax.tasks import Entries, Task
from vit_jax.training.resolve import known, resolve
from vit_jax.training.run import run_of

ONE = jax.devices()[:1]


def test_nothing_can_be_changed_afterwards_and_the_config_given_is_as_it_was():
    config = tiny_config()
    before = flat(config)
    resolved = resolve(config, devices=1, data=known)
    assert flat(config) == before
    with pytest.raises((AttributeError, TypeError)):
        resolved.config.batch_size = 3
    with pytest.raises((AttributeError, TypeError)):
        resolved.config.optimizer.lr = 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.model = None
    other = resolved.changed({"microbatch": 8})
    assert (other.config.microbatch, resolved.config.microbatch) == (8, 32)


def test_every_number_of_the_model_is_final_and_a_second_resolution_changes_none():
    first = resolve(tiny_config(), devices=1, data=known)
    own = dataclasses.asdict(first.model.config)
    assert own["attention"] == "xla"  # decided for these devices; the config may change machines
    own["attention"] = "auto"
    keys = first.config.model.to_dict()
    assert keys.pop("name") == "vit_mu_patch4_32"
    assert keys == dict.fromkeys(keys) | own  # fields that this family does not have stay empty
    again = tiny_config()
    with again.unlocked():
        again.update_from_flattened_dict(flat(first.config))
    assert flat(resolve(again, devices=1, data=known).config) == flat(first.config)


def test_texts_are_parsed_into_what_they_mean():
    resolved = resolve(tiny_config(), devices=1, data=known)
    assert [parsed.text for parsed in resolved.pipelines] == ["decode|shift(1)", "decode"]
    assert [parsed.random for parsed in resolved.pipelines] == [True, False]
    assert resolved.evaluators == ()  # the data are not here


def test_a_recipe_gives_way_to_the_model_that_the_user_names_aloud():
    c = recipe.load("digits.py")
    named = recipe.override(c, {"model.name": "resnetv2_50x1_bit", "model.image_size": "32"})
    run = run_of(c, named, jax.devices()[:1])
    assert run.model.config.resnet_layers == (3, 4, 6, 3)
    assert run.model.config.image_size == (32, 32)
    assert any("model.pool=gap of the recipe gives way" in line for line in run.said)


def test_a_wrong_value_range_is_refused(tmp_path):
    for mean, std, says in (([0.1, 0.2], None, "data.mean"), (None, 0.0, "data.std")):
        config = tiny_config(data__train__source="synthetic:size=8")
        config.data.mean, config.data.std = mean, std
        with pytest.raises(UserError, match=says):
            run_of(config, devices=ONE)


@pytest.mark.parametrize(
    ("end", "low", "high"),
    [("value_range(0, 1)", 0, 1), ("value_range", -1, 1), ("normalise(0.25, 0.5)", -0.5, 1.5)],
)
def test_a_pipelines_end_says_how_images_are_shown(end, low, high):
    config = tiny_config(
        data__train__pipeline=f"decode|shift(1)|{end}", data__eval__pipeline=f"decode|{end}"
    )
    shown = run_of(config).model.data_config.normalise(np.array([[[[0], [255]]]], np.uint8))
    np.testing.assert_allclose(np.asarray(shown).ravel(), [low, high], atol=1e-6)


@pytest.mark.parametrize(
    ("train_end", "eval_end", "named", "told_"),
    [
        ("|value_range(0, 1)", "", [], "belongs into both pipelines alike"),
        ("|value_range(0, 1)", "|value_range(-1, 1)", [], "belongs into both pipelines alike"),
        ("|value_range", "|value_range", ["data.mean"], "or data.mean and data.std"),
        ("|value_range|shift(1)", "", [], "'value_range' in pipeline comes last"),
    ],
)
def test_two_sayings_of_it_are_refused(train_end, eval_end, named, told_):
    config = tiny_config(
        data__train__pipeline=f"decode{train_end}", data__eval__pipeline=f"decode{eval_end}"
    )
    with pytest.raises(UserError, match=told_):
        run_of(config, named)


@dataclasses.dataclass(frozen=True)
class Corner(Entries):
    """A corner of something in the image."""

    placed = ("corner",)


class Corners(Task):
    """A task whose examples hold a place in their image."""

    def entries(self, facts):
        return Corner()


def test_a_pipeline_that_would_leave_a_place_of_the_tasks_examples_behind_is_refused():
    config = tiny_config(task="tests.training.test_resolve:Corners")
    said = r"operation 'shift\(1\)' in pipeline moves what the image shows, .* example's corner"
    with pytest.raises(UserError, match=said):
        resolve(config, devices=1, data=known)
    config.data.train.pipeline = "decode|grey"
    assert resolve(config, devices=1, data=known).task.facts.channels == 1
