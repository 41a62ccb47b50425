"""A file read and written again in its own layout, compared tensor by tensor."""

import numpy as np

from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.save import save_pretrained
from vit_jax.pretrained.weights import open_weights


def assert_round_trip(source, target, layout, read, **given):
    """The file written from what was read holds the file's tensors, no more and no fewer."""
    weights = open_weights(source, **given)
    assert weights.layout == layout
    model, params, _ = load_pretrained(source, say=None, **given)
    save_pretrained(model, params, target, layout, dialect=weights.dialect, extras=weights.extras)
    before, after = read(source), read(target)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert (value.shape, value.dtype) == (after[name].shape, after[name].dtype), name
        assert value.tobytes() == after[name].tobytes(), name
    again = open_weights(target)  # nothing is given: the file says it itself
    assert again.model == model
    assert again.dialect == weights.dialect


def read_npz(path):
    with np.load(path) as arrays:
        return dict(arrays)
