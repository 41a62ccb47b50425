"""What a weights file says beside its tensors is data: it runs nothing and takes nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import made

HUGE = 10**9
DELETED = NotImplemented  # stands for a field that is not there

# Where in the metadata, what stands there, and whether the file is read all the same.
LIES: list[tuple[str, Any]] = [
    ("data.written", 5), ("data.written", ["decode"]), ("data.written", "resize"),
    ("data.written", "decode|resize(10**9)"), ("data.written", "decode|resize(100000000)"),
    ("data.written", "decode|no_such"), ("data.written", "decode|" + "(" * 5000),
    ("data.mean", "a"), ("data.mean", {}), ("data.mean", float("nan")), ("data.mean", []),
    ("data.std", 0.0), ("data.std", -1), ("data.std", [0, 0, 0]), ("data.std", float("inf")),
    ("data.std", [1, "b", 1]), ("data.mean", True),
    ("data.crop", 0), ("data.crop", -1), ("data.crop", "x"), ("data.crop", 1e-300),
    ("data.interpolation", "random"), ("data.interpolation", 5), ("data.squash", "yes"),
    ("data.image_size", [10**7, 10**7]), ("data.image_size", "x"), ("data.image_size", [8]),
    ("data.image_size", [-8, 8]), ("data.image_size", 8.5), ("data.no_such", 1), ("data", []),
    ("data", DELETED), ("data", "x"),
    ("fields.num_layers", HUGE), ("fields.num_layers", 10**30), ("fields.num_layers", 3.5),
    ("fields.num_layers", "2"), ("fields.num_layers", -1), ("fields.num_layers", 0),
    ("fields.num_layers", None), ("fields.num_layers", True), ("fields.num_layers", [1]),
    ("fields.hidden_size", HUGE), ("fields.mlp_dim", HUGE), ("fields.num_heads", 0),
    ("fields.num_heads", 7), ("fields.patch_size", 0), ("fields.patch_size", 10**12),
    ("fields.image_size", [10**7, 10**7]), ("fields.image_size", [10**18, 10**18]),
    ("fields.image_size", "x"), ("fields.image_size", [0, 8]), ("fields.channels", HUGE),
    ("fields.num_classes", HUGE), ("fields.num_classes", -1), ("fields.registers", HUGE),
    ("fields.pool", "evil:pool"), ("fields.pool", 5), ("fields.gelu", {}),
    ("fields.posemb", "__import__('os')"), ("fields.layernorm_eps", -1),
    ("fields.layernorm_eps", float("nan")), ("fields.dropout", "x"), ("fields.no_such", 1),
    ("fields", []), ("fields", DELETED), ("fields", 5), ("fields.resnet_layers", [HUGE]),
    ("classes", {"a": 1}), ("classes", [0, 1]), ("classes", "ab"), ("classes", [["a"], ["b"]]),
    ("classes", ["a"]), ("classes", ["a", None]),
]  # fmt: skip
BARE: list[tuple[str, bytes]] = [
    ("a list", b'{"vit_jax": []}'), ("a number", b'{"vit_jax": 5}'),
    ("a text", b'{"vit_jax": "x"}'),
    ("nested", b'{"vit_jax": ' + b"[" * 60_000 + b"]" * 2), ("not UTF-8", b"\xff\xfe{}"),
    ("a surrogate", b'{"vit_jax": {"fields": {"\\ud800": 1}, "data": {}, "classes": null}}'),
    ("endless digits", b'{"vit_jax": {"fields": {"num_layers": ' + b"9" * 60_000 + b"}}}"),
]  # fmt: skip


CANARY = """
open("PWNED", "w").close()
def op(image, rng, size):
    return image
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        "npz": made.weights(folder / "w.npz", "google"),
        "safetensors": made.weights(folder / "w.safetensors", "timm"),
    }


def changed(metadata: dict, where: str, value: Any) -> dict:
    metadata = copy.deepcopy(metadata)
    *folders, last = where.split(".")
    inside = metadata
    for name in folders:
        inside = inside[name]
    if value is DELETED:
        del inside[last]
    else:
        inside[last] = value
    return metadata


def with_metadata(kind: str, source: Path, path: Path, where: str, value: Any) -> Path:
    if kind == "npz":
        tensors, comment = made.npz_parts(source)
        made.write_npz(path, tensors, {"vit_jax": changed(comment["vit_jax"], where, value)})
    else:
        header, body = made.safetensors_parts(source)
        told = changed(json.loads(header["__metadata__"]["vit_jax"]), where, value)
        header["__metadata__"]["vit_jax"] = json.dumps(told)
        made.write_safetensors(path, header, body)
    return path


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with an image, and a module that must not be run."""
    (tmp_path / "canary.py").write_text(
        "open('PWNED', 'w')\ndef op(image, rng, size):\n    return image"
    )
    (tmp_path / "cat.png").write_bytes(made.image())
    return tmp_path


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize(("where", "value"), LIES, ids=lambda one: repr(one)[:40])
def test_a_lie_beside_the_tensors_is_told_in_one_line(vit, whole, place, kind, where, value):
    file = with_metadata(kind, whole[kind], place / f"w.{kind}", where, value)
    vit.refused("predict", file, "cat.png", cwd=place, says=r"w\.")


@pytest.mark.parametrize("text", ["decode|canary:op", "decode|resize(8)|canary:op(3)",
                                  "decode|os:system('touch PWNED')"])  # fmt: skip
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_an_operation_by_import_path_is_not_run(vit, whole, place, kind, text):
    file = with_metadata(kind, whole[kind], place / f"w.{kind}", "data.written", text)
    vit.refused("predict", file, "cat.png", cwd=place, says="--trust-code")
    vit.read("inspect", file, cwd=place)
    vit.read("convert", file, "out", "--to=timm", cwd=place,
             writes=(place / "out", place / ".out.part"))  # fmt: skip


@pytest.mark.parametrize("command", ["inspect", "predict"])
@pytest.mark.parametrize(("name", "comment"), BARE, ids=[name for name, _ in BARE])
def test_metadata_that_is_no_metadata_is_told_or_passed_over(
    vit, whole, place, command, name, comment
):
    tensors, _ = made.npz_parts(whole["npz"])
    made.write_npz(place / "w.npz", tensors, comment)
    images = ["cat.png"] if command == "predict" else []
    answer = vit(command, "w.npz", *images, cwd=place)
    assert answer["code"] in (0, 2)
    assert answer["err"].count("vit: error: ") == (answer["code"] == 2)


def test_names_of_classes_are_escaped_where_they_are_shown(vit, whole, place):
    names = ["cat\x1b[2J\nvit: error: forged", "dog\u202e\x07<script>"]
    file = with_metadata("npz", whole["npz"], place / "w.npz", "classes", names)
    for out in (
        vit.read("inspect", file, cwd=place),
        vit.read("predict", file, "cat.png", "--top=2", cwd=place),
    ):
        assert "\\x1b[2J\\nvit: error: forged" in out
        assert "\\u202e\\x07<script>" in out
