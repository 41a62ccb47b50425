"""Which parameters train, decay, and at what rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.checkpoint import manager
from vit_jax.checkpoint.tree import flatten
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.models import create_model
from vit_jax.training.groups import counts, frozen_mask, layer_scales
from vit_jax.training.run import run_of

pytestmark = pytest.mark.long

ONE = jax.devices()[:1]


def states(count=3, devices=1, **changes):
    """The states before and after each of some steps of the digits."""
    run = run_of(tiny_config(**changes), devices=jax.devices()[:devices])
    step, state = run.compile_train_step(), run.init_state()
    found = [jax.device_get(state)]
    batches = run.train_batches(0, count)
    try:
        for _ in range(count):
            state, _ = step(state, next(batches)[1])
            found.append(jax.device_get(state))
    finally:
        batches.close()
    return found


def steps(*arguments, **changes):
    """The states before and after some steps."""
    found = states(*arguments, **changes)
    return found[0], found[-1]


@pytest.mark.parametrize(
    ("pattern", "still"),
    [
        (r"(?!head/).*", lambda path: not path.startswith("head/")),
        (
            r"embed/.*|encoder/block00/.*",
            lambda path: path.startswith(("embed/", "encoder/block00")),
        ),
        (r"encoder/block/attention/.*", lambda path: "attention/" in path),
    ],
)
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_frozen_parameters_keep_every_bit_and_have_no_state(pattern, still, name):
    before, after = steps(optimizer__freeze=pattern, optimizer__name=name, ema=0.9)
    old, new = flatten(before["params"]), flatten(after["params"])
    frozen = {path for path in old if still(path)}
    assert frozen
    for path in old:
        same = np.array_equal(old[path], new[path])
        assert same if path in frozen else not same, path
    kept = [path for part in ("opt", "ema") for path in flatten(after[part])]
    assert not [p for p in kept for f in frozen if p.endswith(f)]
    assert [p for p in kept if p.endswith("head/kernel")]


def test_what_is_frozen_does_not_change_how_the_rest_moves():
    """The head's updates with everything else frozen, of a linear model on constant features."""
    pattern = r"(?!head/).*"
    free = steps(1, optimizer__clip_norm=None, optimizer__name="sgd")
    bound = steps(1, optimizer__clip_norm=None, optimizer__name="sgd", optimizer__freeze=pattern)
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(
            bound[1]["params"]["head"][leaf], free[1]["params"]["head"][leaf], rtol=1e-5, atol=1e-7
        )


def test_stacked_layers_freeze_together_or_not_at_all():
    model = create_model("vit_mu_patch16_224", scan=True, num_layers=3)
    mask = flatten(frozen_mask(model.abstract_params, r"encoder/block\d+/mlp/.*"))
    assert {path for path, still in mask.items() if still} == {p for p in mask if "/mlp/" in p}
    with pytest.raises(UserError, match=r"some layers of encoder/block/.*model.scan=False"):
        frozen_mask(model.abstract_params, r"encoder/block00/.*")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("haed/.*", "matches no parameter; they are .*freezes all but the head"),
        (".*", "matches every parameter"),
        ("(", "is no regular expression"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern, says):
    with pytest.raises(UserError, match=says):
        run_of(tiny_config(optimizer__freeze=pattern), devices=ONE)


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay_is_a_power_of_the_blocks_above(scan):
    model = create_model("vit_mu_patch16_224", scan=scan, num_layers=3)
    scales = flatten(layer_scales(model.family, model.abstract_params, 0.5))
    wanted = {"embed": 0.5**4, "cls": 0.5**4, "pos_embed": 0.5**4, "norm": 1.0, "head": 1.0}
    for path, scale in scales.items():
        part = path.split("/")[0]
        if part != "encoder":
            assert float(scale) == wanted[part], path
        elif scan:
            np.testing.assert_allclose(np.ravel(scale), [0.125, 0.25, 0.5])
        else:
            assert float(scale) == 0.5 ** (3 - int(path.split("/")[1][-2:])), path


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay_scales_updates_after_the_optimiser(scan):
    """Adam's steps are of one size whatever the gradient: they show the scale. In the first one,
    only the head moves, which starts at zero."""
    before, after = steps(
        2, optimizer__layer_decay=0.5, optimizer__weight_decay=0.0, model__scan=scan,
        schedule__warmup_steps=0, schedule__name="constant", optimizer__lr=1e-3, mixup=0.0,
        model__dropout=0.0, model__drop_path=0.0, model__attention_dropout=0.0,
    )  # fmt: skip
    moved = jax.tree.map(lambda a, b: np.abs(a - b), after["params"], before["params"])
    if scan:
        blocks = list(moved["encoder"]["block"]["mlp"]["fc2"]["kernel"])
    else:
        blocks = [moved["encoder"][f"block0{i}"]["mlp"]["fc2"]["kernel"] for i in range(2)]
    embed = moved["embed"]["kernel"]
    second = np.median(blocks[1])
    # Adam's second step where the first gradient was zero: 0.1 / 0.19 over sqrt(0.001 / 0.001999).
    assert second == pytest.approx(0.5e-3 * (0.1 / 0.19) / np.sqrt(0.001 / 0.001999), rel=2e-2)
    assert np.median(blocks[0]) == pytest.approx(0.5 * second, rel=2e-2)
    assert np.median(embed[embed > 0]) == pytest.approx(0.25 * second, rel=5e-2)


def test_a_model_without_blocks_has_no_layer_decay():
    config = tiny_config(model__name="resnetv2_50x1_bit", optimizer__layer_decay=0.7)
    for key in ("num_layers", "dropout", "attention_dropout", "drop_path"):
        config.model[key] = None
    config.model.image_size = 32
    with pytest.raises(UserError, match="the model has no encoder blocks"):
        run_of(config, devices=ONE)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "sgd", "schedule_free"])
def test_one_device_and_eight_take_the_same_steps(name):
    kind = {"optimizer__name": name, "ema": None, "mesh__min_shard_size": 1}
    if name == "schedule_free":
        kind["schedule__name"] = "constant"
    _, one = steps(2, devices=1, **kind)
    _, eight = steps(2, devices=8, mesh__fsdp=8, mesh__data=1, **kind)
    found, wanted = flatten(eight["params"]), flatten(one["params"])
    for path in wanted:
        if not path.endswith("qkv/bias"):  # the keys' has no gradient but rounding, made large
            np.testing.assert_allclose(found[path], wanted[path], atol=3e-4, err_msg=path)


def test_counts_say_how_many_train_and_decay():
    model = create_model("vit_mu_patch16_224")
    params = model.abstract_params
    found = counts(model.family, params, r"(?!head/).*")
    assert found["trained"] == (2, sum(leaf.size for leaf in jax.tree.leaves(params["head"])))
    assert found["decayed"][0] == 1
    assert sum(found[key][0] for key in ("trained", "frozen")) == len(jax.tree.leaves(params))


def test_describe_shows_rates_and_what_is_frozen(capsys):
    line = ["describe", "--config=digits.py", "--config.optimizer.layer_decay=0.5",
            "--config.optimizer.freeze=embed/.*"]  # fmt: skip
    assert cli.main(line) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "embed/kernel" in line)
    assert "frozen" in row
    assert "0.125" in next(line for line in text.splitlines() if "block00/mlp/fc1/kernel" in line)


def test_the_moving_average_is_that_of_the_formula():
    before, *after = states(4, ema=0.2)
    average = flatten(before["params"])
    for step, state in enumerate(after):
        keep, now = min(0.2, (1 + step) / (10 + step)), flatten(state["params"])
        average = {path: keep * average[path] + (1 - keep) * now[path] for path in now}
    for path, leaf in flatten(after[-1]["ema"]).items():
        np.testing.assert_allclose(leaf, average[path], rtol=1e-5, atol=1e-7, err_msg=path)


def test_a_run_with_frozen_parts_saves_and_is_fine_tuned_from(tmp_path):
    config = tiny_config(optimizer__freeze=r"(?!head/).*", total_steps=2)
    vit_jax.train(config, tmp_path / "a", devices=ONE, quiet=True)
    stored = manager.stored_shapes(manager.find(tmp_path / "a"))
    assert any(path.startswith("params/encoder") for path in stored)
    assert not [p for p in stored if p.startswith("opt") and "encoder" in p]
    more = tiny_config(init=str(tmp_path / "a"), total_steps=1)
    vit_jax.train(more, tmp_path / "b", devices=ONE, quiet=True)


def test_frozen_blocks_count_for_the_depth_of_layer_decay():
    kind = {"model__num_layers": 3, "optimizer__layer_decay": 0.5, "optimizer__weight_decay": 0.0,
            "schedule__warmup_steps": 0, "schedule__name": "constant"}  # fmt: skip
    plain = {"mixup": 0.0, "model__dropout": 0.0, "model__drop_path": 0.0,
             "model__attention_dropout": 0.0}  # fmt: skip
    before, after = steps(2, optimizer__freeze="embed/.*|encoder/block0[01]/.*", **kind, **plain)

    def moved(path):
        return np.median(np.abs(flatten(after["params"])[path] - flatten(before["params"])[path]))

    usual = (0.1 / 0.19) / np.sqrt(
        0.001 / 0.001999
    )  # of the rate, where the first gradient is zero
    assert moved("encoder/block02/mlp/fc2/kernel") == pytest.approx(0.5 * 3e-3 * usual, rel=3e-2)
    assert moved("encoder/block01/mlp/fc2/kernel") == 0.0


def test_schedule_free_with_frozen_parts_is_measured_at_its_average(tmp_path, capsys):
    config = tiny_config(
        optimizer__name="schedule_free", schedule__name="constant", optimizer__freeze="embed/.*"
    )
    result = vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--json"]) == 0
    assert f'"accuracy": {result["accuracy"]}' in capsys.readouterr().out
    model, params, _ = vit_jax.load_pretrained(tmp_path, say=None)  # as init, predict, convert do
    source = open_source("digits", "val")
    examples = [source[i] for i in range(len(source))]
    images = jnp.stack([example["image"] for example in examples])
    logits, _ = model.apply(params, model.data_config.normalise(images))
    labels = np.array([example["label"] for example in examples])
    loss = -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()
    assert float(loss) == pytest.approx(result["eval/val/loss"], rel=1e-5)


def test_adafactor_continues_scanned_and_listed(tmp_path):
    kind = {"optimizer__name": "adafactor", "schedule__name": "constant", "mixup": 0.0}
    vit_jax.train(tiny_config(total_steps=2, **kind), tmp_path, devices=ONE, quiet=True)
    for total, scan in ((4, True), (6, False)):
        config = tiny_config(total_steps=total, model__scan=scan, **kind)
        assert vit_jax.train(config, tmp_path, devices=ONE, quiet=True)["steps"] == total


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer__name": "lamb", "model__scan": True}, "norms of whole parameters.*scan=False"),
        ({"optimizer__name": "schedule_free", "schedule__name": "constant",
          "optimizer__layer_decay": 0.5}, "no optimizer.layer_decay"),
        ({"optimizer__name": "madgrad"}, "no optimiser 'madgrad'"),
        ({"optimizer__name": "sophia"}, "no optimiser 'sophia'"),
        ({"optimizer__name": "lion", "optimizer__kwargs": {"b1": "abc"}}, "cannot update the para"),
        ({"optimizer__b1": 1.5}, r"optimizer.b1 is a number in \[0, 1\)"),
        ({"optimizer__lr_per": 0}, "lr_per is a whole number of at least 1"),
        ({"optimizer__name": "lamb", "optimizer__decay_by": "schedule"}, "means nothing to lamb"),
        ({"loss__class_weights": [0.0] * 10}, "not all 0"),
        ({"loss__class_weights": [1.0] * 9 + [float("inf")]}, "a number, 0 or more"),
        ({"evaluators": "nonsense('x')"}, "unknown evaluator 'nonsense'"),
        ({"evaluators": "knn(pipeline='nonsense')"}, "must begin with decode"),
        ({"evaluators": "knn(pipeline='decode|shift(1)')"}, "knn: its pipeline .* is random"),
        ({"evaluators": "knn(pipeline='decode|resize(5)')"}, r"but the model takes \[8, 8, 1\]"),
        ({"evaluators": "classification(name='val_ema')", "ema": 0.9}, "are called 'val_ema'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_the_run(changes, says, tmp_path):
    with pytest.raises(UserError, match=says):
        vit_jax.train(tiny_config(**changes), tmp_path / "run", devices=ONE, quiet=True)
    assert not (tmp_path / "run").exists()
