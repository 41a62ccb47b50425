"""A run whose steps have images of several sizes: what each step learns, and what is compiled."""

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import rows, told
from vit_jax import cli
from vit_jax.config import base
from vit_jax.training.run import run_of

SIZES = ((16, 32), (32, 32))


def config(pipeline="decode|buckets((16, 32), 32)|shift(1)|resize", **changes):
    c = base()
    c.batch_size = 16
    c.total_steps = 6
    c.log_every_steps = 1
    c.model.name = "resnet14w8_gn"
    c.model.image_size = 32
    c.data.train.source = "digits"
    c.data.train.pipeline = pipeline
    c.data.eval.split = ""
    c.checkpoint.every_steps = 3
    c.optimizer.lr = 1e-3
    c.schedule.name = "constant"
    c.schedule.warmup_steps = 0
    with c.unlocked():
        for key, value in changes.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def steps(c, count, devices=1):
    """The sizes and losses of the first steps, which compile nothing, and the run."""
    run = run_of(c, devices=jax.devices()[:devices])
    sizes, losses, compiled = [], [], []
    batches, state = run.train_batches(0, count), run.init_state()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        step = run.compile_train_step()
        assert len(compiled) == len(run.sizes)
        for _, batch in batches:
            compiled.clear()
            state, metrics = step(state, batch)
            sizes.append(batch["image"].shape[1:3])
            losses.append(float(metrics["loss"]))
            assert not compiled
    finally:
        batches.close()
        jax.monitoring.clear_event_listeners()
    return sizes, losses, run


def test_a_step_is_that_of_a_run_with_images_of_its_size_alone():
    sizes, losses, run = steps(config(), 4)
    assert set(sizes) == set(SIZES)
    first, alone, _ = steps(config("decode|shift(1)|resize", model__image_size=sizes[0]), 1)
    assert first == sizes[:1]
    np.testing.assert_allclose(losses[0], alone[0], rtol=1e-6)
    macs = [vit_jax.create_model(
        "resnet14w8_gn", image_size=size, num_classes=10, channels=1
    ).macs for size in SIZES]  # fmt: skip
    assert run.macs == sum(macs) / 2 < run.model.macs
    measured = run.of_one_size  # by `vit bench`
    assert (measured.sizes, measured.macs) == ((SIZES[1],), run.model.macs)


def test_it_continues_bit_for_bit_and_is_evaluated_at_another_size(tmp_path, capsys):
    vit_jax.train(config(), tmp_path / "whole", quiet=True)
    vit_jax.train(config(total_steps=3), tmp_path / "parts", quiet=True)
    vit_jax.train(config(), tmp_path / "parts", quiet=True)
    assert len(rows(tmp_path / "whole")) >= 6
    assert told(tmp_path / "whole") == told(tmp_path / "parts")
    keys = ("model.image_size=48", "data.eval.split=val", "data.eval.pipeline=decode|resize")
    typed = [f"--config.{key}" for key in keys]
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'parts'}", *typed]) == 0
    assert "(355 examples of digits val)" in capsys.readouterr().out


@pytest.mark.long
def test_losses_agree_on_meshes():
    sizes, reference, _ = steps(config(), 4)
    for mesh in ((8, 1, 1), (2, 2, 2)):
        c = config(mesh__data=mesh[0], mesh__fsdp=mesh[1], mesh__tensor=mesh[2],
                   mesh__min_shard_size=64, microbatch=8)  # fmt: skip
        found, losses, _ = steps(c, 4, devices=8)
        assert found == sizes
        np.testing.assert_allclose(losses, reference, rtol=2e-6, err_msg=str(mesh))
