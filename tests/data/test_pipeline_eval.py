"""Evaluation counts every example once, and damaged or misshapen images are named."""

import numpy as np
import pytest
from made_images import encoded, smooth
from numbered import EXAMPLES, SHAPE, assert_same, evaluation, joined, numbered, training

from vit_jax.data.pipeline import MAX_DAMAGED
from vit_jax.errors import UserError

# -- every example once ------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 8, 64])
def test_every_example_counts_once_in_order_and_the_rest_is_padding(batch_size):
    batches = evaluation(batch_size=batch_size)
    assert len(batches) == -(-EXAMPLES // batch_size)
    assert all(len(batch["id"]) == batch_size for batch in batches)
    ids, labels, images = (joined(batches, name) for name in ("id", "label", "image"))
    assert list(ids[:EXAMPLES]) == list(range(EXAMPLES))
    assert list(labels[:EXAMPLES]) == [number % 5 for number in range(EXAMPLES)]
    assert list(images[:EXAMPLES, 0, 0, 0]) == list(range(EXAMPLES))
    assert (labels[EXAMPLES:] == -1).all()
    assert (ids[EXAMPLES:] == -1).all()
    assert (images[EXAMPLES:] == 0).all()
    assert (joined(batches, "damaged") == -1).all()


def test_a_split_that_the_batch_divides_needs_no_padding():
    labels = joined(evaluation(numbered(16), batch_size=8), "label")
    assert len(labels) == 16
    assert labels.min() >= 0


@pytest.mark.parametrize("threads", [0, 4])
def test_threads_change_nothing(threads):
    assert_same(evaluation(batch_size=7, threads=threads), evaluation(batch_size=7))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_have_equally_many_batches_and_together_every_example_once(processes):
    parts = [evaluation(rows=rows) for rows in np.split(np.arange(8), processes)]
    assert {len(part) for part in parts} == {5}
    ids = np.concatenate([joined(part) for part in parts])
    assert sorted(ids[ids >= 0]) == list(range(EXAMPLES))
    assert (ids == -1).sum() == 5 * 8 - EXAMPLES


@pytest.mark.parametrize("text", ["decode|flip_lr", "decode|resize(9)|inception_crop"])
def test_a_random_pipeline_is_refused(text):
    with pytest.raises(UserError, match=r"data.eval.pipeline 'decode\|.* is random: evaluation"):
        evaluation(text=text)


# -- files -------------------------------------------------------------------------------------


class Files:
    """Encoded images in memory; those numbered in `damaged` are cut in half."""

    channels, classes, max_labels, notes = 3, list("abcde"), 1, ()

    def __init__(self, examples, damaged):
        whole = [
            encoded(np.full(SHAPE, 6 * number % 256, np.uint8), "PNG") for number in range(examples)
        ]
        self.files = [
            data[: len(data) // 2] if number in damaged else data
            for number, data in enumerate(whole)
        ]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return {"image": self.files[index], "label": index % 5}

    def describe(self, index):
        return f"file {index}"


def test_encoded_images_are_decoded():
    images = joined(evaluation(Files(10, ()), batch_size=5), "image")
    assert [int(image.mean()) for image in images] == [6 * number for number in range(10)]


@pytest.mark.parametrize("damaged", [{4}, {4, 5}, {9}], ids=str)
def test_the_next_image_takes_the_place_of_a_damaged_one_in_training(damaged):
    order = joined(training(Files(10, ()), text="decode", batch_size=5, steps=2))
    batches = training(Files(10, damaged), text="decode", batch_size=5, steps=2)
    for wanted, got, named, label, image in zip(
        order, *(joined(batches, n) for n in ("id", "damaged", "label", "image")), strict=True
    ):
        taken = wanted
        while taken in damaged:
            taken = (taken + 1) % 10
        assert (got, label, int(image.mean())) == (taken, taken % 5, 6 * taken)
        assert named == (wanted if wanted in damaged else -1)


def test_the_other_examples_of_a_run_with_damaged_images_are_as_without():
    text = "decode|rotate(20)|flip_lr"
    whole, broken = (training(Files(10, damaged), text=text) for damaged in ((), {3}))
    untouched = joined(whole) != 3
    for name in ("id", "label", "image"):
        np.testing.assert_array_equal(
            joined(whole, name)[untouched], joined(broken, name)[untouched]
        )


def test_a_damaged_image_is_masked_and_named_in_evaluation():
    batches = evaluation(Files(10, {2, 7}), batch_size=4)
    labels, ids, damaged = (joined(batches, name) for name in ("label", "id", "damaged"))
    assert [number for number in range(12) if labels[number] == -1] == [2, 7, 10, 11]
    assert list(damaged) == [-1, -1, 2, -1, -1, -1, -1, 7, -1, -1, -1, -1]
    assert sorted(ids[labels >= 0]) == [0, 1, 3, 4, 5, 6, 8, 9]


def test_too_many_damaged_images_in_a_row_end_the_run():
    examples = MAX_DAMAGED + 20
    with pytest.raises(UserError, match=r"100 images in a row are damaged, from file \d+"):
        training(Files(examples, set(range(examples))), steps=1)


# -- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [training, evaluation])
def test_a_pipeline_that_makes_another_shape_than_the_models_is_refused(read):
    with pytest.raises(UserError) as error:
        read(text="decode|resize((5, 6))")
    told = r"pipeline 'decode|resize((5, 6))' makes numbered example "
    assert str(error.value).startswith(told)
    assert str(error.value).endswith(" [5, 6, 3], but the model takes [8, 8, 3]")


def test_an_image_too_small_for_its_crop_is_named():
    small = Files(4, ())
    small.files[2] = encoded(smooth(6, 6), "PNG")
    with pytest.raises(UserError, match=r"makes file 2 \[6, 6, 3\], but the model takes \[8, 8"):
        evaluation(small, text="decode|central_crop", batch_size=4)


def test_a_workers_user_error_arrives_as_one():
    with pytest.raises(UserError, match=r"but the model takes \[8, 8, 3\]"):
        training(text="decode|resize(5)", workers=1)
