"""Models are found in what training scripts save: below any prefix, beside optimisers, averages and
the parts of other tasks; in Flax's msgpack; and a pointer of Git LFS is named."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from linen_google import GoogleViT
from made_weights import fill, names_and_shapes
from safetensors.numpy import save_file

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.pretrained import flax_files
from vit_jax.pretrained.weights import open_weights

GOLDEN = Path(__file__).parent / "golden"
VIT = GoogleViT(8, 32, 2, 2, 48, 5)


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def timm():
    return fill(golden("timm_vit")["shapes"], layout="torch")


def saved(path: Path, tensors: dict) -> Path:
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return path


def opened(path: Path):
    return open_weights(path, num_heads=4)


def values(weights) -> dict:
    return {path: weights.read(path) for path in weights.shapes}


def assert_same(ours: dict, wanted: dict) -> None:
    assert ours.keys() == wanted.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(ours[path], x, err_msg=path)


def line_of(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        opened(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


PREFIXES = ("_orig_mod.", "net.", "trunk.vit.", "module.base_encoder.", "lit.ddp.model.core.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_model_is_found_below_any_prefix(timm, tmp_path, prefix):
    wanted = values(opened(saved(tmp_path / "bare.safetensors", timm)))
    wrapped = {prefix + name: x for name, x in timm.items()} | {"step": np.zeros(1, "f")}
    weights = opened(saved(tmp_path / "wrapped.safetensors", wrapped))
    assert weights.layout == "timm"
    assert_same(values(weights), wanted)
    assert weights.unused == {"step": f"outside of {prefix}"}


@pytest.mark.parametrize("prefix", ["model.", "module.student."])
def test_a_model_of_transformers_is_found_with_its_head(tmp_path, prefix):
    told = golden("hf_vit")
    tensors = fill(told["shapes"], layout="torch")
    found = []
    for name, pre in (("bare", ""), ("wrapped", prefix)):
        folder = tmp_path / name
        folder.mkdir()
        saved(folder / "model.safetensors", {pre + n: x for n, x in tensors.items()})
        (folder / "config.json").write_text(json.dumps(told["config"]))
        found.append(opened(folder))
    assert found[1].layout == "huggingface"
    assert found[1].model.config.num_classes == 5
    assert_same(values(found[1]), values(found[0]))


def test_the_trained_model_is_taken_before_its_copies_and_the_others_are_named(timm, tmp_path):
    copies = ("student.backbone.", "teacher.backbone.")
    both = {pre + n: x + k for k, pre in enumerate(copies) for n, x in timm.items()}
    path = saved(tmp_path / "both.safetensors", both)
    weights = opened(path)
    (note,) = weights.notes
    assert note == (
        f"{path} holds several models; student.backbone is taken (others: {path}/teacher.backbone)"
    )
    np.testing.assert_array_equal(weights.read("norm/scale"), timm["norm.weight"])
    other = opened(path / "teacher.backbone")
    np.testing.assert_array_equal(other.read("norm/scale"), timm["norm.weight"] + 1)
    with pytest.raises(UserError, match="is one set of tensors, without parts"):
        opened(path / "teacher.trunk")


def test_models_of_two_layouts_beside_each_other_are_told_apart_by_their_prefixes(timm, tmp_path):
    both = {f"{pre}.backbone.{n}": x for pre in ("student", "teacher") for n, x in timm.items()}
    both |= {"student.backbone.mask_token": np.zeros((1, 48), "f")}  # DINOv2's, in one of them
    path = saved(tmp_path / "both.safetensors", both)
    assert opened(path).layout == "dinov2"
    assert opened(path / "teacher.backbone").layout == "timm"


def test_what_other_tasks_left_beside_the_model_is_unused_with_the_reason(timm, tmp_path):
    left = {
        "projector.0.weight": "a projector", "predictor.layers.1.bias": "a projector",
        "dino_head.last_layer.weight": "the head of another", "decoder_blocks.0.norm1.bias":
        "the decoder", "decoder_pos_embed": "the decoder", "mask_token": "the decoder",
        "model_ema.norm.weight": "a moving average", "optimizer.state.0": "the state of an optimi",
        "queue_ptr": "the state of a loss", "criterion.center": "the state of a loss",
    }  # fmt: skip
    path = saved(tmp_path / "a.safetensors", timm | {name: np.zeros(3, "f") for name in left})
    weights = opened(path)
    assert weights.layout == "timm"  # and not DINOv2's, which has a mask token and no decoder
    assert weights.unused.keys() == left.keys()
    for name, why in left.items():
        assert weights.unused[name].startswith(why)


def test_inspect_names_each_reason_once_if_it_has_many_tensors(timm, tmp_path, capsys):
    state = {f"optimizer.state.{i}.exp_avg": np.zeros(2, "f") for i in range(40)}
    decoder = dict.fromkeys(("decoder_x", "mask_token"), np.zeros(2, "f"))
    path = saved(tmp_path / "a.safetensors", timm | state | decoder)
    assert cli.main(["inspect", str(path), "--config.model.num_heads=4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "unused" in line]
    assert sorted(lines) == [
        "  unused: 40 tensors, such as optimizer.state.0.exp_avg (the state of an optimiser)",
        "  unused: decoder_x (the decoder of another task)",
        "  unused: mask_token (the decoder of another task)",
    ]


def test_a_head_of_several_layers_is_unused_and_the_model_has_none(timm, tmp_path):
    body = {name: x for name, x in timm.items() if not name.startswith("head")}
    probe = {"head.0.running_mean": 48, "head.1.weight": 48, "head.1.bias": 7}
    path = saved(tmp_path / "a.safetensors", body | {n: np.zeros(k, "f") for n, k in probe.items()})
    weights = opened(path)
    assert weights.model.config.num_classes == 0
    assert set(weights.unused.values()) == {"the head of another task"}


@pytest.mark.parametrize("name", ["blocks.0.attn.rel_pos_h", "head.extra", "adapter.weight"])
def test_a_tensor_that_may_be_a_part_of_the_model_is_still_an_error(timm, tmp_path, name):
    path = saved(tmp_path / "a.safetensors", timm | {name: np.zeros(3, "f")})
    assert f"1 superfluous: {name} [3]" in line_of(path)


# -- Flax's msgpack --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def google():
    return fill(names_and_shapes(VIT, (16, 16)))


def nested(flat: dict) -> dict:
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize(
    "tree",
    [
        lambda params: params,
        lambda params: {"step": 7, "params": params, "opt_state": {"0": {"mu": params}}},
        lambda params: {"0": params, "1": {"0": {"trace": params}, "lr": 0.5}, "2": np.int32(3)},
        lambda params: {"optimizer": {"target": params, "state": {"step": [1, None, True, "x"]}}},
    ],
)
def test_a_checkpoint_of_flax_reads_as_the_npz_of_the_same_arrays(google, tmp_path, tree):
    np.savez(tmp_path / "same.npz", **google)
    path = tmp_path / "checkpoint_70"
    path.write_bytes(serialization.msgpack_serialize(tree(nested(google))))
    weights = open_weights(path)
    assert weights.layout == "google"
    assert_same(values(weights), values(open_weights(tmp_path / "same.npz")))


def pieces(x: np.ndarray) -> dict:
    """An array as Flax writes those of more than 1 GiB."""
    parts = np.split(x.reshape(-1), 3)
    return {
        flax_files.CHUNKED: True, "shape": {str(i): n for i, n in enumerate(x.shape)},
        "chunks": {str(i): part for i, part in enumerate(parts)},
    }  # fmt: skip


def test_arrays_of_flax_in_bfloat16_and_in_pieces_are_read(google, tmp_path):
    halves = {name: np.asarray(x, jnp.bfloat16) for name, x in google.items()}
    name = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"
    path = tmp_path / "checkpoint_1"
    for tree in (halves, halves | {name: pieces(halves[name])}):
        path.write_bytes(serialization.msgpack_serialize(nested(tree)))
        found = open_weights(path).read("encoder/block01/mlp/fc1/kernel")
        np.testing.assert_array_equal(found, halves[name])


def test_a_folder_of_transformers_in_flax_reads_as_the_one_in_pytorch(tmp_path):
    told = golden("hf_vit")
    tensors = fill(told["shapes"], layout="torch")
    flax = {}
    for name, x in tensors.items():
        parts = name.split(".")
        if parts[-1] == "weight":  # Flax: inputs first, then outputs; norms have a scale
            parts[-1] = "scale" if x.ndim == 1 else "kernel"
            x = x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
        flax["/".join(parts)] = np.ascontiguousarray(x)
    for name in ("torch", "flax"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(told["config"]))
    saved(tmp_path / "torch" / "model.safetensors", tensors)
    file = tmp_path / "flax" / "flax_model.msgpack"
    file.write_bytes(serialization.msgpack_serialize(nested(flax)))
    weights = open_weights(tmp_path / "flax")
    assert weights.layout == "huggingface"
    assert_same(values(weights), values(open_weights(tmp_path / "torch")))


def array(shape: bytes, name: bytes, size: int, there: int) -> bytes:
    """A map of one array, whose bytes are said to be `size`."""
    name = bytes([0xA0 + len(name)]) + name
    inside = b"\x93" + shape + name + b"\xc6" + size.to_bytes(4, "big") + b"\0" * there
    return b"\x81\xa1x\xc9" + len(inside).to_bytes(4, "big") + b"\x01" + inside


HOSTILE = {
    "a shape of more than is there": (array(b"\x91\xce" + b"\xff" * 4, b"float32", 8, 8), "shape"),
    "bytes of more than is there": (array(b"\x91\x02", b"float32", 2**31, 8), "shape"),
    "an array of more than is there": (b"\x81\xa1x\xc9\xff\xff\xff\xff\x01", "within an array"),
    "objects": (array(b"\x91\x01", b"object", 8, 8), "object"),
    "fields": (array(b"\x91\x01", b"f4,f4", 8, 8), "f4,f4"),
    "a text of more than is there": (b"\x81\xdb\xff\xff\xff\xff", "within a value"),
    "maps without end": (b"\x81\xa1x" * 5000, "maps within each other"),
    "values without end": (b"\x81\xa1x\xdd\x7f\xff\xff\xff" + b"\x01" * 1_100_000, "values"),
    "a key that is a map": (b"\x81\x80\x80", "the key of a map is a map"),
    "no value": (b"\x81\xa1x\xc1", "begins no value"),
    "more behind its end": (b"\x81\xa1x\x01rest", "follow its end"),
    "one name twice": (b"\x82" + array(b"\x91\x01", b"int8", 1, 1)[1:] * 2, "two tensors"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", HOSTILE)
def test_lengths_of_msgpack_are_compared_with_what_is_there(tmp_path, wrong):
    data, says = HOSTILE[wrong]
    (tmp_path / "checkpoint_3").write_bytes(data)
    line = line_of(tmp_path / "checkpoint_3")
    assert "checkpoint_3 is damaged or cut short" in line
    assert says in line


@pytest.mark.parametrize("where", [3, 40, 1000, 0.5, 0.99, -1])
def test_a_checkpoint_of_flax_cut_anywhere_is_refused(google, tmp_path, where):
    data = serialization.msgpack_serialize({"params": nested(google)})
    cut = data[: int(where * len(data)) if isinstance(where, float) else where]
    (tmp_path / "checkpoint_3").write_bytes(cut)
    assert "checkpoint_3 is damaged or cut short" in line_of(tmp_path / "checkpoint_3")


# -- Git LFS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"])
def test_a_pointer_of_git_lfs_is_named_with_the_command_that_fetches(tmp_path, capsys, name):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'9' * 64}\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / name):
        assert cli.main(["inspect", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(rf"{name} is a Git LFS pointer.*git lfs pull", line)
