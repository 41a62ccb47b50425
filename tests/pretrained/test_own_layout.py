"""A layout of the user's own, in one file and without a change of the package.

The toy layout is a text file: a line for each tensor, with its name and its values. Its tensors are
those of a ViT with a class token, and its kernels are transposed.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.checkpoint.tree import flatten
from vit_jax.errors import UserError
from vit_jax.pretrained import layouts
from vit_jax.pretrained.weights import open_weights

TOY = """
import dataclasses
import json

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.configs import ViTConfig
from vit_jax.models.data_config import DataConfig
from vit_jax.pretrained import Description, Layout, Reader, Tensors, Writer, row
from vit_jax.pretrained.rows import DENSE, POSITIONS

SIGN = "a toy file"
BLOCK, OURS = "layer{i}", "encoder/block{i:02d}"


def rows(config, dialect):
    table = [
        row("cls", "token"),
        row(("pos_embed/grid", "pos_embed/prefix"), "places", POSITIONS),
        row("embed/kernel", "patches.w"), row("embed/bias", "patches.b"),
        row("norm/scale", "end.w"), row("norm/bias", "end.b"),
        row("head/kernel", "out.w", DENSE), row("head/bias", "out.b"),
    ]
    for part in ("attention/qkv", "attention/out", "mlp/fc1", "mlp/fc2"):
        codec = {"codec": DENSE} if part.startswith("mlp") else {}
        table.append(row(f"{OURS}/{part}/kernel", f"{BLOCK}.{part[-3:]}.w", **codec))
        table.append(row(f"{OURS}/{part}/bias", f"{BLOCK}.{part[-3:]}.b"))
    for part in ("norm1", "norm2"):
        table.append(row(f"{OURS}/{part}/scale", f"{BLOCK}.{part}.w"))
        table.append(row(f"{OURS}/{part}/bias", f"{BLOCK}.{part}.b"))
    return table


def write(path, tensors, metadata):
    lines = [json.dumps([name, x.tolist()]) for name, x in tensors.items()]
    path.write_text("\\n".join([SIGN, json.dumps(metadata["classes"]), *lines]) + "\\n")


def open_toy(path):
    if path.suffix != ".toy" or not path.is_file():
        return None
    first, classes, *lines = path.read_text().splitlines()
    if first != SIGN:
        raise UserError(f"{path} is no toy file")
    held = {name: np.array(x, np.float32) for name, x in map(json.loads, lines)}
    shapes = {name: x.shape for name, x in held.items()}
    dtypes = dict.fromkeys(held, "float32")
    return Tensors(
        path, "toy", shapes, dtypes, held.__getitem__, config={"toy_classes": json.loads(classes)}
    )


def describe(tensors, given):
    shapes = tensors.shapes
    patch, _, channels, width = shapes["patches.w"]
    side = int((shapes["places"][1] - 1) ** 0.5) * patch
    fields = {
        "hidden_size": width, "patch_size": patch, "channels": channels,
        "image_size": (side, side), "num_layers": sum(n.endswith(".norm1.w") for n in shapes),
        "num_heads": shapes["layer0.qkv.w"][2], "mlp_dim": shapes["layer0.fc1.b"][0],
        "num_classes": shapes["out.b"][0], "gelu": "exact",
    }
    classes = tensors.config["toy_classes"]
    return Description(ViTConfig, fields, DataConfig(), classes)


TOY = Layout(
    "toy", rows,
    Reader(lambda names: {"token", "places"} <= set(names), describe, open=open_toy),
    Writer(
        ".toy", write, positions=lambda config: "class",
        assumes=lambda config, folder: {"gelu": "exact"},
    ),
)
"""
NAMES = [f"digit {number}" for number in range(10)]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The toy layout as a module of the user's; what a test registers is forgotten after it."""
    name = f"toy_layout_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(layouts, "_LAYOUTS", dict(layouts._LAYOUTS))
    return name


@pytest.fixture
def toy(module):
    """The layout, registered by a call."""
    layout = __import__(module).TOY
    vit_jax.pretrained.register(layout)
    return layout


@pytest.fixture(scope="module")
def model():
    """A tiny ViT with random parameters."""
    model = vit_jax.create_model(
        "vit_mu_patch4_8", num_layers=2, num_classes=10, channels=1, gelu="exact"
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.abstract_params
    )
    return model, params


def same(one, two) -> bool:
    """Whether two trees hold the same parameters with the same values."""
    one, two = flatten(one), flatten(two)
    return one.keys() == two.keys() and all(np.array_equal(one[path], two[path]) for path in one)


def test_a_toy_file_is_written_and_loaded_again(toy, model, tmp_path):
    notes = vit_jax.save_pretrained(*model, tmp_path / "a.toy", "toy", classes=NAMES)
    assert notes == []
    assert (tmp_path / "a.toy").read_text().startswith("a toy file\n")
    loaded, params, report = vit_jax.load_pretrained(tmp_path / "a.toy", say=None)
    assert loaded.config == model[0].config
    assert report.counts() == {"loaded": len(flatten(params))}
    assert same(params, model[1])
    assert open_weights(tmp_path / "a.toy").classes == NAMES


def test_the_commands_know_a_layout_by_its_import_path(module, model, tmp_path, capsys):
    vit_jax.save_pretrained(*model, tmp_path / "a.npz", "google", classes=NAMES)
    option = f"--layout={module}:TOY"
    made = [str(tmp_path / name) for name in ("a.npz", "a.toy", "b.safetensors")]
    assert cli.main(["convert", *made[:2], "--to=toy", option]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", made[1], "--json", option]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["layout"], shown["classes"]) == ("toy", NAMES)
    assert cli.main(["convert", *made[1:], "--to=timm", option]) == 0
    _, params, _ = vit_jax.load_pretrained(made[2], say=None)
    assert same(params, model[1])


def test_a_run_starts_from_a_toy_file(toy, model, tmp_path):
    vit_jax.save_pretrained(*model, tmp_path / "a.toy", "toy")
    config = tiny_config(init=str(tmp_path / "a.toy"), total_steps=1, schedule__warmup_steps=0)
    config.optimizer.lr = 1e-9  # so that the parameters stay those of the file
    vit_jax.train(config, tmp_path / "work", devices=jax.devices()[:1], quiet=True)
    _, params, _ = vit_jax.load_pretrained(tmp_path / "work", say=None)
    loaded, held = flatten(params), flatten(model[1])
    assert loaded.keys() == held.keys()
    body = [path for path in held if not path.startswith("head")]  # the file names no classes
    assert all(np.allclose(loaded[path], held[path], atol=1e-6) for path in body)


def test_a_registered_layout_takes_no_name_of_the_package(toy):
    named = dataclasses.replace(toy, name="timm")
    with pytest.raises(UserError, match="belongs to a layout of vit_jax"):
        vit_jax.pretrained.register(named)
    with pytest.raises(UserError, match=r"a layout is a vit_jax\.pretrained\.Layout"):
        vit_jax.pretrained.register("toy")


def test_a_layout_without_a_writer_is_read_and_not_written(toy, model, tmp_path):
    vit_jax.save_pretrained(*model, tmp_path / "a.toy", "toy")
    vit_jax.pretrained.register(dataclasses.replace(toy, writer=None))
    assert open_weights(tmp_path / "a.toy").layout == "toy"
    with pytest.raises(UserError, match="unknown layout 'toy'"):
        vit_jax.save_pretrained(*model, tmp_path / "b.toy", "toy")
