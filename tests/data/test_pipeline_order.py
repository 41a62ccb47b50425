"""Training batches are a function of (seed, examples seen), whatever reads them."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from numbered import EXAMPLES, SHAPE, assert_same, joined, numbered, training

from vit_jax.data.pipeline import rows_of_process
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import BATCH

# -- what a batch is ---------------------------------------------------------------------------


def test_a_batch_has_pixels_labels_and_numbers():
    (batch,) = training(steps=1)
    kinds = {name: (array.dtype, array.shape) for name, array in batch.items()}
    assert kinds == {
        "image": (np.uint8, (8, *SHAPE)),
        "label": (np.int32, (8,)),
        "id": (np.int64, (8,)),
        "damaged": (np.int64, (8,)),
    }
    assert (batch["damaged"] == -1).all()


def test_a_row_is_the_example_that_its_number_names():
    source = numbered()
    for batch in training(source, text="decode"):
        for image, label, index in zip(batch["image"], batch["label"], batch["id"], strict=True):
            np.testing.assert_array_equal(image, source[index]["image"])
            assert label == source[index]["label"]


def test_a_run_has_as_many_batches_as_steps():
    for steps in (0, 1, 7):
        assert len(training(steps=steps)) == steps


# -- epochs ------------------------------------------------------------------------------------


def test_an_epoch_has_each_example_once_and_the_next_another_order():
    epochs = joined(training(text="decode", steps=EXAMPLES)).reshape(8, EXAMPLES)
    for epoch in epochs:
        assert sorted(epoch) == list(range(EXAMPLES))
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_orders_are_shuffled_rather_than_turned():
    """Neighbours of one epoch are not those of the next."""
    ids = joined(training(steps=EXAMPLES, batch_size=2))
    one, two = (set(itertools.pairwise(epoch)) for epoch in (ids[:EXAMPLES], ids[EXAMPLES:]))
    assert len(one & two) < 10
    assert len(one & set(itertools.pairwise(range(EXAMPLES)))) < 10


def test_an_example_is_augmented_anew_in_every_epoch():
    batches = training(steps=2 * EXAMPLES, batch_size=4, text="decode|rotate(20)")
    ids, images = joined(batches), joined(batches, "image")
    for index in range(5):
        seen = [image.tobytes() for image in images[ids == index]]
        assert len(seen) == len(set(seen)) == 8


def test_examples_of_a_batch_are_augmented_apart():
    batches = training(steps=4, text="decode|shift(1)")
    moved = joined(batches, "image")[:, 3, 3]  # inside, where only the shift shows
    assert len({tuple(pixel) for pixel in moved}) > 4


# -- the seed ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_batches():
    assert_same(training(seed=3), training(seed=3))


def test_another_seed_gives_another_order_and_other_augmentations():
    runs = [training(seed=seed, steps=EXAMPLES, batch_size=1) for seed in range(4)]
    assert len({joined(run).tobytes() for run in runs}) == 4
    of_example_0 = [joined(run, "image")[joined(run) == 0].tobytes() for run in runs]
    assert len(set(of_example_0)) == 4


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
def test_large_seeds_are_seeds(seed):
    assert_same(training(seed=seed, steps=1), training(seed=seed, steps=1))


# -- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 12), (8, 12), (50, 3)])
def test_a_run_resumed_at_any_step_goes_on_bit_for_bit(batch_size, steps):
    whole = training(batch_size=batch_size, steps=steps)
    for done in range(steps):
        rest = training(batch_size=batch_size, seen=done * batch_size, steps=steps - done)
        assert_same(rest, whole[done:])


def test_the_order_does_not_depend_on_the_batch_size():
    for name in ("id", "image"):
        by_one = joined(training(batch_size=1, steps=48), name)
        np.testing.assert_array_equal(joined(training(batch_size=16, steps=3), name), by_one)
        np.testing.assert_array_equal(
            joined(training(batch_size=8, seen=16, steps=4), name), by_one[16:]
        )


def test_a_run_that_is_far_along_resumes_as_well():
    seen = 10**9
    whole = training(seen=seen, steps=4)
    assert_same(training(seen=seen + 16, steps=2), whole[2:])
    assert set(joined(whole)) <= set(range(EXAMPLES))


# -- threads, workers, processes -----------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2, 5])
def test_threads_change_nothing(threads):
    assert_same(training(threads=threads, steps=12), training(threads=1, steps=12))


def test_worker_processes_change_nothing():
    wanted = training(seen=24, steps=5)
    assert_same(training(seen=24, steps=5, workers=2), wanted)


def shares(batch_size, processes, rows_of):
    """The batches of each process, put back into the rows of the global batch."""
    whole = [{} for _ in range(6)]
    parts = [
        (rows_of(process), training(batch_size=batch_size, steps=6, rows=rows_of(process)))
        for process in range(processes)
    ]
    for step, batch in enumerate(whole):
        for rows, batches in parts:
            for name, array in batches[step].items():
                if name not in batch:
                    batch[name] = np.full((batch_size, *array.shape[1:]), 99, array.dtype)
                batch[name][rows] = array
    return whole


@pytest.mark.parametrize("processes", [2, 4])
def test_contiguous_shares_of_the_processes_make_up_the_global_batch(processes):
    def rows_of(process):
        return np.split(np.arange(16), processes)[process]

    assert_same(shares(16, processes, rows_of), training(batch_size=16, steps=6))


@pytest.mark.parametrize("processes", [2, 4])
def test_interleaved_shares_of_the_processes_make_up_the_global_batch(processes):
    def rows_of(process):
        return np.arange(16)[process::processes]

    assert_same(shares(16, processes, rows_of), training(batch_size=16, steps=6))


def test_processes_that_share_rows_read_the_same_ones():
    one, two = (training(rows=np.arange(4, 8), steps=3) for _ in range(2))
    assert_same(one, two)
    assert [list(batch["id"]) for batch in one] == [list(b["id"][4:]) for b in training(steps=3)]


# -- the rows of a process -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_a_single_process_holds_every_row(sizes):
    sharding = NamedSharding(make_mesh(sizes, jax.devices()), BATCH)
    np.testing.assert_array_equal(rows_of_process(sharding, 16), np.arange(16))


class SomeDevices:
    """Stands for a sharding of which this process holds the devices with these slices."""

    def __init__(self, *slices):
        self.slices = slices

    def addressable_devices_indices_map(self, shape):
        return dict(enumerate((where,) for where in self.slices))


def test_a_process_holds_the_rows_of_its_devices_in_order_and_once():
    of_two_fsdp_rows = SomeDevices(slice(6, 8), slice(2, 4))
    assert list(rows_of_process(of_two_fsdp_rows, 8)) == [2, 3, 6, 7]
    tensor_replicas = SomeDevices(slice(4, 8), slice(4, 8))
    assert list(rows_of_process(tensor_replicas, 8)) == [4, 5, 6, 7]
    everything = SomeDevices(slice(None), slice(None))
    assert list(rows_of_process(everything, 4)) == [0, 1, 2, 3]
