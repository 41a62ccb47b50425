"""Mixtures of sources: shares, epochs and classes; and sources and operations of one's own."""

import numpy as np
import pytest
from made_images import encoded, folder_of_images
from numbered import EXAMPLES, SHAPE, assert_same, joined, numbered, training

from vit_jax.data.pipeline_text import parse
from vit_jax.data.sources import Mixture, open_source
from vit_jax.errors import UserError

# -- mixtures --------------------------------------------------------------------------------------


def two(weights):
    return Mixture("a + b", [numbered(10), numbered(EXAMPLES)], weights, None)


def test_without_weights_an_epoch_has_every_example_of_all_once():
    ids = joined(training(two([None, None]), text="decode", batch_size=1, steps=2 * 47))
    assert sorted(ids[:47]) == sorted(ids[47:]) == list(range(47))


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_with_weights_training_draws_from_each_by_its_share_and_goes_round_in_it(weight):
    mixture = two([3 * weight, 3 - 3 * weight])
    np.testing.assert_allclose(mixture.weights, [weight, 1 - weight])
    ids = joined(training(mixture, text="decode", batch_size=10, steps=100))
    of_first = ids[ids < 10]
    assert abs(len(of_first) / 1000 - weight) < 0.01
    rounds = of_first[: len(of_first) // 10 * 10].reshape(-1, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in rounds)
    assert len({tuple(epoch) for epoch in rounds}) > 1


def test_a_mixture_resumes_bit_for_bit_with_workers_too():
    mixture = two([0.3, 0.7])
    whole = training(mixture, steps=8)
    assert_same(training(mixture, seen=24, steps=5), whole[3:])
    assert_same(training(mixture, seen=24, steps=5, workers=2), whole[3:])


def test_classes_are_joined_by_name(tmp_path):
    a = folder_of_images(tmp_path / "a", {"train/cat": 2, "train/dog": 1})
    b = folder_of_images(tmp_path / "b", {"train/emu": 1, "train/cat": 1})
    source = open_source(f"0.5*folder:{a} + 0.5*folder:{b}", "train")
    assert source.classes == ["cat", "dog", "emu"]
    of_file = {source.describe(i): source[i]["label"] for i in range(len(source))}
    assert sorted(of_file.values()) == [0, 0, 0, 1, 2]
    for file, label in of_file.items():
        assert f"/{source.classes[label]}/" in file
    same = open_source(f"folder:{a} + folder:{b}", "train", ["emu", "cat", "dog"])
    assert [same[i]["label"] for i in range(len(same))] == [1, 1, 2, 1, 0]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("0.5*digits + synthetic", "give every source of the mixture a weight, or none"),
        ("digits + synthetic", r"the sources have \[1, 3\] channels"),
        ("0*digits + 1*digits", "a weight is a positive number, not 0"),
        ("-1*digits + 1*digits", "a weight is a positive number, not -1"),
        ("digits + folder:/nowhere", "there is no folder /nowhere"),
    ],
)
def test_a_mixture_that_cannot_be_is_told_in_one_line(spec, told):
    with pytest.raises(UserError, match=told):
        open_source(spec, "train")


# -- one's own, by import path ---------------------------------------------------------------------

MODULE = """
import numpy as np
from vit_jax.data.declared import op

class Ours:
    classes = ["a", "b"]

    def __init__(self, split, size="8"):
        self.value, self.size = {"train": 1, "val": 2}[split], int(size)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        image = np.full((self.size, self.size, 3), self.value, np.uint8)
        return {"image": image, "label": LABELS[index]}

LABELS = [0, 1, 0, 1, 0]

class NotOne:
    def __init__(self, split):
        pass

def darker(image, rng, size, by=2):
    return image // by

@op()
def half_as_dark(image, rng, size):
    return image // 2
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "our_package").mkdir()
    (tmp_path / "our_package" / "__init__.py").write_text("")
    (tmp_path / "our_package" / "our_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # no entry of sys.path: a command is run from the user's folder
    return "our_package.our_module"


def test_a_source_of_ones_own_is_named_by_its_import_path(module):
    train, val = (open_source(f"{module}:Ours", split) for split in ("train", "val"))
    assert (len(train), train.classes, train.channels, train.max_labels) == (5, ["a", "b"], 3, 1)
    assert (train[0]["image"][0, 0, 0], val[0]["image"][0, 0, 0]) == (1, 2)
    assert train.describe(3) == f"{module}:Ours example 3"
    assert open_source(f"{module}:Ours:16", "train")[0]["image"].shape == (16, 16, 3)
    assert_same(training(train, workers=1, steps=2), training(train, steps=2))


def test_an_operation_of_ones_own_is_named_by_its_import_path(module):
    pipeline = parse(f"decode|{module}:darker(4)", SHAPE[:2], imports=True)
    assert pipeline.random  # whether it draws is not known
    made = pipeline(np.full(SHAPE, 200, np.uint8), None)
    np.testing.assert_array_equal(made, 50)
    assert_same(*(training(text=pipeline.text, workers=w, steps=2) for w in (0, 1)))


def test_an_operation_of_ones_own_that_declares_that_it_does_not_draw_serves_evaluation(module):
    pipeline = parse(f"decode|{module}:half_as_dark", SHAPE[:2], imports=True, placed=("boxes",))
    assert not pipeline.random
    np.testing.assert_array_equal(pipeline(np.full(SHAPE, 200, np.uint8), None), 100)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("our_package.our_module:None_such", "the module has no 'None_such'"),
        ("our_package.none:Ours", "a data source cannot be imported: No module named"),
        ("our_package.our_module:NotOne", "is no data source: it has no __len__, __getitem__, cl"),
    ],
)
def test_what_is_no_source_is_told_in_one_line(module, name, told):
    with pytest.raises(UserError, match=told):
        open_source(name, "train")


@pytest.mark.parametrize("label", [2, -1, 0.5, float("nan"), None, [0, 1]])
def test_a_label_that_is_none_is_named_with_its_example(label):
    source = numbered(4)
    source.__class__ = type("Wrong", (type(source),), {
        "__getitem__": lambda self, i: {"image": self.images[i], "label": label if i == 2 else 0}
    })  # fmt: skip
    source.classes = ["a", "b"]
    with pytest.raises(UserError, match=r"numbered example 2 has the label .* from 0 to 1"):
        training(source, text="decode", batch_size=4, steps=1)


def test_encoded_images_of_a_mixture_are_decoded(tmp_path):
    folder = folder_of_images(tmp_path, {"train/a": 2, "train/b": 2})
    source = open_source(f"folder:{folder} + folder:{folder}", "train")
    assert source[3]["image"][:2] == encoded(np.zeros((4, 4, 3), np.uint8))[:2]
    assert len(source) == 8


BROKEN = """
import numpy as np

class Base:
    classes = ["a", "b"]
    def __init__(self, split):
        pass
    def __len__(self):
        return 4

class Floats(Base):
    def __getitem__(self, index):
        return {"image": np.zeros((8, 8, 3), np.float32), "label": 0}

class Words(Base):
    def __getitem__(self, index):
        return {"image": np.zeros((8, 8, 3), np.uint8), "label": "cat"}

class NoLabel(Base):
    def __getitem__(self, index):
        return {"image": np.zeros((8, 8, 3), np.uint8)}

class Raises(Base):
    def __getitem__(self, index):
        raise RuntimeError("the server is down")
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Floats", "has pixels of float32: a source gives encoded bytes or uint8"),
        ("Words", "has the label 'cat': labels are whole numbers from 0 to 1"),
        ("NoLabel", "cannot be had: KeyError: 'label'"),
        ("Raises", "cannot be had: RuntimeError: the server is down"),
    ],
)
def test_what_a_source_of_ones_own_does_wrong_is_told_with_the_example(
    tmp_path, monkeypatch, name, told
):
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "module.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    source = open_source(f"broken_package.module:{name}", "train")
    with pytest.raises(UserError, match=told):
        training(source, text="decode", batch_size=4, steps=1)
    from vit_jax.preparing.check import check

    report = check(f"broken_package.module:{name}", "train")
    assert report["problems"] == 4 + 1  # and a class without images


def test_more_than_four_channels_are_resized_as_four_are():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 6), np.uint8)
    for text in ("decode|resize(9)", "decode|resize_small(9)", "decode|resize(40)"):
        made = parse(text, (8, 8))(image, None)
        apart = [parse(text, (8, 8))(np.ascontiguousarray(image[..., :3]), None),
                 parse(text, (8, 8))(np.ascontiguousarray(image[..., 3:]), None)]  # fmt: skip
        np.testing.assert_array_equal(made, np.dstack(apart))
