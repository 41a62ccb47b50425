"""PyTorch's own files: tensors are read, code in them never runs, and damage is told from code."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import cli
from vit_jax.errors import UserError

torch = pytest.importorskip(
    "torch", reason="needs the peers extra: pip install vit_jax[peers]", exc_type=ImportError
)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Tensors of a timm ViT, and the file of them that no pickle is part of."""
    model = vit_jax.create_model(
        "vit_tiny_patch16_224", num_layers=2, mlp_dim=64, image_size=32, num_classes=5
    )
    file = tmp_path_factory.mktemp("state") / "vit.safetensors"
    vit_jax.save_pretrained(model, model.init(), file, "timm")
    from safetensors.torch import load_file

    return load_file(file), file


class Writes:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        vit_jax.load_pretrained(path, say=None)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_code_in_a_pickle_is_refused_and_never_runs(state, tmp_path, capsys, zipped, suffix):
    ran, path = tmp_path / "ran", tmp_path / f"made{suffix}"
    torch.save(state[0] | {"x": Writes(ran)}, path, _use_new_zipfile_serialization=zipped)
    line = refused(path)
    assert str(path) in line
    assert "could run code" in line
    assert "torch.save(model.state_dict(), FILE)" in line
    assert cli.main(["convert", str(path), f"{tmp_path}/new", "--to=timm"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vit: error: ")
    assert len(said.splitlines()) == 1
    assert not ran.exists()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    torch.load(path, weights_only=False)  # the test is one: unpickled in earnest, it writes
    assert ran.exists()


def test_the_command_refuses_code_in_a_process_of_its_own(state, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "made.pth"
    torch.save(state[0] | {"x": Writes(ran)}, path)
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", "inspect", str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"vit: error: {path} holds more than tensors")
    assert not ran.exists()


def test_a_whole_saved_module_is_refused_with_what_to_save_instead(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert "save its state dict alone" in refused(tmp_path / "module.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("inside", [None, "model", "state_dict", "state_dict_ema", "teacher"])
def test_a_state_dict_is_read_wherever_training_scripts_put_it(state, tmp_path, inside, zipped):
    tensors, file = state
    tree = {inside: tensors, "epoch": 3, "lr": 1e-3} if inside else tensors
    torch.save(tree, tmp_path / "made.pth", _use_new_zipfile_serialization=zipped)
    _, wanted, _ = vit_jax.load_pretrained(file, say=None)
    _, params, report = vit_jax.load_pretrained(tmp_path / "made.pth", say=None)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert set(report.counts()) == {"loaded"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_and_strides_become_float32(state, tmp_path, dtype):
    kind = getattr(torch, dtype)
    # Views of a larger, transposed storage, as tied or sliced tensors are.
    tensors = {
        name: x.to(kind).t().contiguous().t() if x.ndim == 2 else x.to(kind)
        for name, x in state[0].items()
    }
    torch.save(tensors, tmp_path / "made.pth")
    _, params, _ = vit_jax.load_pretrained(tmp_path / "made.pth", say=None)
    wanted = state[0]["blocks.1.mlp.fc1.weight"].to(kind).float().numpy().T
    np.testing.assert_array_equal(params["encoder"]["block01"]["mlp"]["fc1"]["kernel"], wanted)


CUTS = (1, 15, 16, 40, 1000, 0.3, 0.6, 0.95, -100, -22, -1)


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_file_cut_anywhere_is_damaged_and_not_called_code(state, tmp_path, zipped, where):
    path = tmp_path / "made.pth"
    torch.save(state[0], path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(where * len(data)) if isinstance(where, float) else where])
    line = refused(path)
    assert "made.pth is damaged or cut short" in line or "is no .npz" in line


@pytest.mark.parametrize("tree", [[1, 2], {"epoch": 3}, {0: 1.0}, {"model": {"a": {}}}], ids=str)
def test_a_file_without_tensors_is_told_by_what_it_holds(tmp_path, tree):
    torch.save(tree, tmp_path / "made.pth")
    line = refused(tmp_path / "made.pth")
    assert "no state dict but a list" in line or "no tensors at all" in line


def test_tensors_under_numbers_and_of_integers_are_no_weights(state, tmp_path):
    torch.save(state[0] | {0: torch.ones(2)}, tmp_path / "numbers.pth")
    _, _, report = vit_jax.load_pretrained(tmp_path / "numbers.pth", say=None)
    assert set(report.counts()) == {"loaded"}
    torch.save(state[0] | {"x": torch.ones(2, dtype=torch.int64)}, tmp_path / "integers.pth")
    assert "1 superfluous: x [2]" in refused(tmp_path / "integers.pth")


def test_one_of_several_state_dicts_is_taken_by_name_and_else_said(state, tmp_path, capsys):
    tensors, _ = state
    path = tmp_path / "run.pth"
    shifted = {name: x + 1 for name, x in tensors.items()}
    torch.save(
        {"model": tensors, "model_ema": shifted, "optimizer": {"state": {0: {}}}, "epoch": 3}, path
    )
    said = f"{path} holds several state dicts; model_ema is taken (others: {path}/model)"

    def norm(path):
        _, params, report = vit_jax.load_pretrained(path, say=None)
        return params["norm"]["scale"], [line for line in report.warnings if "state dict" in line]

    for name, values, lines in (
        ("run.pth", shifted, [said]), ("run.pth/model_ema", shifted, []),
        ("run.pth/model", tensors, []),
    ):  # fmt: skip
        scale, notes = norm(tmp_path / name)
        np.testing.assert_array_equal(scale, values["norm.weight"].numpy())
        assert notes == lines
    assert cli.main(["inspect", str(path)]) == 0
    assert f"warning: {said}" in capsys.readouterr().out.splitlines()
    assert "run.pth holds model, model_ema; did you mean model_ema" in refused(path / "model_emma")
    torch.save(tensors, tmp_path / "one.pth")
    assert "one.pth/model: it is one state dict" in refused(tmp_path / "one.pth" / "model")
    assert "vit.safetensors is one set of tensors" in refused(state[1] / "model")


def _quantised(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


KINDS = {
    "sparse_coo float32": lambda x: x.to_sparse(),
    "a tensor without values (meta)": lambda x: x.to("meta"),
    "qint8: quantised weights without their scales": _quantised,
    "float8_e4m3fn: quantised": lambda x: x.to(torch.float8_e4m3fn),
    "int8: quantised": lambda x: x.to(torch.int8),
    "complex64": lambda x: torch.complex(x, x).conj(),
    "bool": lambda x: x > 0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_dense_floats_are_refused_by_name(state, tmp_path, kind):
    tensors = state[0] | {"norm.weight": KINDS[kind](state[0]["norm.weight"])}
    torch.save(tensors, tmp_path / "made.pth")
    line = refused(tmp_path / "made.pth")
    assert f"norm.weight is {kind}" in line, line


def test_a_negative_view_is_resolved(state, tmp_path):
    x = state[0]["norm.weight"]
    negative = torch.complex(x, -x).conj().imag  # PyTorch marks it, and copies nothing
    assert negative.is_neg()
    torch.save(state[0] | {"norm.weight": negative}, tmp_path / "made.pth")
    _, params, _ = vit_jax.load_pretrained(tmp_path / "made.pth", say=None)
    np.testing.assert_array_equal(params["norm"]["scale"], x.numpy())
