"""Batches on the devices: uint8, sharded by rows, made ahead in the background."""

import itertools
import os
import signal
import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from numbered import SHAPE, labels_of, numbered, training

from vit_jax.data import pipeline
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import Stopped
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import BATCH


def on_device(steps=5, *, sizes=(8, 1, 1), prefetch=2, text="decode|rotate(20)", workers=0):
    sharding = NamedSharding(make_mesh(sizes), BATCH)
    dataset = pipeline.train_batches(
        numbered(), parse(text, SHAPE[:2]), SHAPE, labels_of(numbered()), seed=0, batch_size=8,
        rows=pipeline.rows_of_process(sharding, 8), examples_seen=0, steps=steps, threads=2,
        workers=workers,
    )  # fmt: skip
    return pipeline.OnDevice(dataset, sharding, prefetch)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_every_device_holds_its_rows_as_uint8(sizes):
    batches = on_device(1, sizes=sizes)
    _, batch = next(batches)
    batches.close()
    image, label = batch["image"], batch["label"]
    assert (image.dtype, image.shape) == (np.uint8, (8, *SHAPE))
    assert (label.dtype, label.shape) == (np.int32, (8,))
    assert image.sharding == NamedSharding(make_mesh(sizes), BATCH)
    assert image.sharding.device_set == set(jax.devices())
    assert len(jax.devices()) == 8
    rows = 8 // (sizes[0] * sizes[1])
    assert {shard.data.shape for shard in image.addressable_shards} == {(rows, *SHAPE)}


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_the_devices_get_what_the_host_made_in_its_order(prefetch):
    batches = on_device(5, prefetch=prefetch)
    got = list(batches)
    batches.close()
    wanted = training(steps=5, text="decode|rotate(20)")
    assert len(got) == len(wanted) == 5
    for (host, device), batch in zip(got, wanted, strict=True):
        assert host.keys() == {"id", "damaged"}
        assert device.keys() == {"image", "label", "id", "damaged"}
        for name, array in (host | device).items():
            np.testing.assert_array_equal(np.asarray(array), batch[name])


def test_closing_ends_every_thread_that_was_started():
    before = set(threading.enumerate())
    batches = on_device(10_000)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=30)
    assert [thread.name for thread in started if thread.is_alive()] == []


def test_closing_before_the_first_batch_and_twice_is_fine():
    batches = on_device(10)
    batches.close()
    batches.close()


def test_an_error_of_the_reader_reaches_whoever_asks_for_the_batch():
    batches = on_device(3, text="decode|resize(5)")
    with pytest.raises(Exception, match="but the model takes"):
        next(batches)
    batches.close()


def test_a_killed_worker_ends_the_run_and_is_named():
    batches = on_device(10_000, workers=2)
    for _ in range(4):
        next(batches)
    killed = batches._workers[1].pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(Stopped, match=f"a data worker was killed .process {killed}") as stopped:
        list(itertools.islice(batches, 10_000))
    assert stopped.value.code == 75
    batches.close()
