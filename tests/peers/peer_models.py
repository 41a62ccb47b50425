"""Models of PyTorch packages with made weights, and what they compute, as NumPy arrays.

Imported by tests that have made sure that PyTorch is there.
"""

import contextlib
import functools

import jax
import numpy as np
import torch
from made_weights import fill
from safetensors.numpy import save_file

from vit_jax.pretrained.load import load_pretrained

LOGITS = 1e-4  # largest absolute difference allowed
BLOCKS = 1e-4  # of the largest value


@contextlib.contextmanager
def unmade():
    """Models made within hold no values: they get made ones, and their own would take time."""
    with torch.device("meta"):
        yield


def filled(model, seed=0):
    """The model with made values for every parameter, and those by name."""
    state = model.state_dict()
    flat = fill({name: tuple(x.shape) for name, x in state.items()}, seed, layout="torch")
    model.load_state_dict({name: torch.from_numpy(x) for name, x in flat.items()}, assign=True)
    return model.eval(), flat


def some_images(sides, batch=1, channels=3):
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (batch, *sides, channels)).astype(np.float32)


def run(model, images, blocks=None, logits=lambda out: out):
    """Logits and the outputs of some modules, channels last."""
    out = {}

    def keep(name, _module, _inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        out[name] = (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()

    hooks = [
        module.register_forward_hook(functools.partial(keep, name))
        for name, module in (blocks or {}).items()
    ]
    with torch.no_grad():
        result = logits(model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))).numpy()
    for hook in hooks:
        hook.remove()
    return result, out


def computed(model, params, images):
    """Our logits and intermediates, in full float32."""
    with jax.default_matmul_precision("highest"):
        logits, out = jax.jit(model.apply)(params, images)
    return np.asarray(logits), out


def assert_same(ours, theirs):
    """Logits to `LOGITS` absolute, every block to `BLOCKS` of its largest value; returns both."""
    (logits, out), (their_logits, their_out) = ours, theirs
    assert logits.shape == their_logits.shape
    worst = np.abs(logits - their_logits).max(), 0.0
    assert worst[0] <= LOGITS
    for name, value in their_out.items():
        assert out[name].shape == value.shape, name
        difference = np.abs(np.asarray(out[name]) - value).max() / np.abs(value).max()
        assert difference <= BLOCKS, f"{name}: {difference:.1e}"
        worst = worst[0], max(worst[1], difference)
    return worst


def assert_no_warning_but_of_images(report):
    """Tensors, or tensors and a config.json, do not say how images were shown: a guess is said."""
    assert [one for one in report.warnings if "does not say how images were shown" not in one] == []


def loaded(path, flat, **fields):
    """Model and parameters from a file of these tensors, gone afterwards; every one is loaded."""
    save_file(flat, path)
    model, params, report = load_pretrained(path, say=None, **fields)
    path.unlink()  # large
    assert set(report.counts()) <= {"loaded", "unused"}
    assert_no_warning_but_of_images(report)
    return model, params
