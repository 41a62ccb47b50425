"""Runs on several labels, on other channels, on mixtures, and on pipelines that say how images are
shown: each trains, evaluates and continues as any other."""

import numpy as np
import pytest
from made_images import encoded
from PIL import Image

from tests.digits_run import rows, tiny_config, told
from vit_jax.errors import UserError
from vit_jax.training.loop import train
from vit_jax.training.run import run_of

pytestmark = pytest.mark.long


@pytest.fixture
def several_labels(tmp_path):
    """24 images of 8 x 8 with none to three of four labels."""
    rng = np.random.default_rng(0)
    lines = ["image,label,split"]
    for number in range(24):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels, "PNG"))
        labels = ";".join(sorted({"abcd"[i] for i in rng.integers(0, 4, number % 4)}))
        lines.append(f"{number}.png,{labels},{'val' if number % 3 == 0 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{tmp_path}/t.csv"


def config_on(source, **changes):
    changes = {
        "data__train__source": source, "data__train__pipeline": "decode|flip_lr",
        "model__num_layers": 1, "batch_size": 16, "total_steps": 6, "loss__name": "sigmoid",
        "eval_every_steps": 6, "checkpoint__every_steps": 3,
    } | changes  # fmt: skip
    return tiny_config(**changes)


@pytest.mark.parametrize("changes", [{}, {"cutmix": 1.0, "mix_each": True, "microbatch": 8}])
def test_several_labels_train_and_are_measured_by_the_definition(several_labels, changes, tmp_path):
    config = config_on(several_labels, **changes)
    result = train(config, tmp_path / "run", quiet=True)
    row = next(r for r in rows(tmp_path / "run") if "eval/val/accuracy" in r)
    assert row["eval/val/examples"] == 8
    from vit_jax.checkpoint import manager

    run = run_of(config)
    source = manager.find(tmp_path / "run")
    params = manager.restore(
        source, run.abstract_state["params"], run.shardings["params"], part="params"
    )
    images, labels = [], []
    for index in range(8):
        file = run.evaluators[0].test.path(index)
        images.append(np.asarray(Image.open(file)))
        labels.append(run.evaluators[0].test[index]["label"])
    logits, _ = run.model.apply(params, run.model.data_config.normalise(np.stack(images)))
    logits = np.asarray(logits, np.float64)
    hot = np.zeros_like(logits)
    for row_, of in enumerate(labels):
        hot[row_, of] = 1
    p = 1 / (1 + np.exp(-logits))
    nll = -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).sum(-1).mean()
    right = hot[np.arange(8), logits.argmax(-1)].mean()
    np.testing.assert_allclose(row["eval/val/loss"], nll, rtol=1e-5)
    np.testing.assert_allclose(row["eval/val/accuracy"], right, atol=1e-9)
    assert result["steps"] == 6


def test_several_labels_and_softmax_do_not_go_together(several_labels):
    with pytest.raises(UserError, match=r"up to 3 labels an example, loss=softmax takes one: --"):
        run_of(config_on(several_labels, loss__name="softmax"))


def test_a_run_with_mixup_and_cutmix_continues_bit_for_bit(tmp_path):
    changes = {"mixup": 0.4, "cutmix": 1.0, "mix_each": True, "total_steps": 6}
    changes |= {
        "checkpoint__every_steps": 3,
        "schedule__name": "constant",
        "schedule__warmup_steps": 2,
    }
    train(tiny_config(**changes), tmp_path / "whole", quiet=True)
    train(tiny_config(**changes | {"total_steps": 3}), tmp_path / "halves", quiet=True)
    train(tiny_config(**changes), tmp_path / "halves", quiet=True)
    assert told(tmp_path / "whole") == told(tmp_path / "halves")


def test_a_mixture_with_weights_trains_and_evaluates_on_all_of_its_parts(tmp_path):
    config = tiny_config(data__train__source="0.3*digits + 0.7*digits", total_steps=4)
    result = train(config, tmp_path, quiet=True)
    assert result["steps"] == 4
    row = next(r for r in rows(tmp_path) if "eval/val/accuracy" in r)
    assert row["eval/val/examples"] == 2 * 355


def test_six_channels_train(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["image,label,split"]
    for number in range(20):
        np.save(tmp_path / f"{number}.npy", rng.integers(0, 2**16, (8, 8, 6), np.uint16))
        lines.append(f"{number}.npy,{number % 2},{'val' if number % 5 == 0 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = config_on(f"csv:{tmp_path}/t.csv", loss__name="softmax")
    train(config, tmp_path / "run", quiet=True)
    assert run_of(config).model.config.channels == 6


def test_a_table_of_ids_trains_on_two_splits_and_continues_where_its_images_moved(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    lines = ["id;round;square;subset"]
    for number in range(30):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        (tmp_path / "photos" / f"{number:03d}.png").write_bytes(encoded(pixels, "PNG"))
        of = ("train", "valid", "test")[number % 3]
        lines.append(f"{number:03d};{number % 2};{1 - number % 2};{of}")
    (tmp_path / "shapes.csv").write_text("\n".join(lines))

    def config(photos, steps):
        return config_on(
            f"csv:{tmp_path}/shapes.csv?label=round,square&split=subset&root={photos}",
            loss__name="softmax", data__train__split="train+val", data__eval__split="test+valid",
            total_steps=steps, mixup=0.0, schedule__name="constant", schedule__warmup_steps=2,
        )  # fmt: skip

    train(config(tmp_path / "photos", 6), tmp_path / "whole", quiet=True)
    train(config(tmp_path / "photos", 3), tmp_path / "halves", quiet=True)
    (tmp_path / "photos").rename(tmp_path / "moved & away")
    train(config(f"{tmp_path}/moved %26 away", 6), tmp_path / "halves", quiet=True)
    assert told(tmp_path / "halves") == told(tmp_path / "whole")
    row = next(r for r in rows(tmp_path / "whole") if "eval/test+valid/accuracy" in r)
    assert row["eval/test+valid/examples"] == 20
