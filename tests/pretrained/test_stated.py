"""What a file states beside its tensors is data: a value of another type, out of all proportion or
no number ends in one line that names it, before memory or time is taken."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_weights import fill
from safetensors.numpy import load_file, save_file

import vit_jax
from vit_jax import cli
from vit_jax.checkpoint import checksums
from vit_jax.data import pipeline_text
from vit_jax.errors import UserError
from vit_jax.pretrained.weights import open_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model():
    """A tiny ViT, with a value for each parameter."""
    model = vit_jax.create_model("vit_mu_patch4_24", num_classes=3)
    return model, model.init()


def saved(model, folder: Path, to: str, name: str = "") -> Path:
    path = folder / (name or {"google": "a.npz", "timm": "a.safetensors"}.get(to, "folder"))
    vit_jax.save_pretrained(*model, path, to, classes=["ant", "bee", "cow"])
    return path


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return saved(model, tmp_path_factory.mktemp("file"), "google")


@pytest.fixture(scope="module")
def own(model, tmp_path_factory):
    return saved(model, tmp_path_factory.mktemp("own"), "orbax")


def stating(file: Path, folder: Path, change) -> Path:
    """A copy of an .npz with other metadata."""
    path = folder / "changed.npz"
    shutil.copy(file, path)
    with zipfile.ZipFile(path, "a") as archive:
        metadata = json.loads(archive.comment)["vit_jax"]
        change(metadata)
        archive.comment = json.dumps({"vit_jax": metadata}).encode()
    return path


def line_of(path: Path, **given) -> str:
    with pytest.raises(UserError) as refused:
        open_weights(path, **given)
    line = str(refused.value)
    assert line.isprintable(), line
    assert len(line) < 2000, line
    assert str(path) in line
    return line


HUGE = 10**400
STATED = {
    "layers without end": ("fields", "num_layers", 10**9, "num_layers is a whole number"),
    "more layers than tensors": ("fields", "num_layers", 900, "900 layers, it holds 24 tensors"),
    "a layer more": ("fields", "num_layers", 2, "16 missing: Transformer/encoderblock_1/"),
    "layers that are a fraction": ("fields", "num_layers", 1.0, "num_layers is a whole number"),
    "layers that are true": ("fields", "num_layers", True, "num_layers is a whole number"),
    "no layers": ("fields", "num_layers", 0, "num_layers is 1 … 1000, not 0"),
    "a width beyond all": ("fields", "hidden_size", HUGE, "hidden_size is a whole number"),
    "a width below zero": ("fields", "hidden_size", -32, "hidden_size is a whole number"),
    "another width": ("fields", "hidden_size", 64, "of another shape"),
    "a list for a width": ("fields", "mlp_dim", [[[]]], "mlp_dim is a whole number"),
    "an object for a word": ("fields", "pool", {"a": 1}, "pool is a text, not {'a': 1}"),
    "a word of no meaning": ("fields", "pool", "\x1b[2J", "pool is one of cls, gap"),
    "a switch that is a number": ("fields", "qkv_bias", 1, "qkv_bias is true or false, not 1"),
    "an infinite epsilon": ("fields", "layernorm_eps", float("inf"), "layernorm_eps is a number"),
    "an epsilon that is none": ("fields", "layernorm_eps", float("nan"), "layernorm_eps is a num"),
    "an image of a million rows": ("fields", "image_size", [10**6, 4], "image_size is 1 … 16384"),
    "an image of too many pixels": ("fields", "image_size", [16000, 16000], "178,956,970 pixels"),
    "an image of three sides": ("fields", "image_size", [24, 24, 3], "image_size is 2 of a whole"),
    "units without end": ("fields", "resnet_layers", [10**6] * 3, "resnet_layers is 1 … 1000"),
    "units that are words": ("fields", "resnet_layers", ["a"], "resnet_layers is several of"),
    "a field of no model": ("fields", "num_layer", 1, "unknown key 'num_layer': did you mean num"),
    "a field of another family": ("fields", "width_factor", 1, "width_factor"),
    "a mean that is a word": ("data", "mean", "a", "mean is a number"),
    "a mean of words": ("data", "mean", ["a", 1, 2], "mean is a number"),
    "a mean that is none": ("data", "mean", [0.5, float("nan"), 0.5], "mean is a number"),
    "a mean of nothing": ("data", "mean", [], "mean is a number, or one for each channel"),
    "a deviation of zero": ("data", "std", 0.0, "std is 1e-06 … 1e+09, not 0.0"),
    "a deviation of zero in a channel": ("data", "std", [1, 1, 0], "std is 1e-06"),
    "no crop": ("data", "crop", 0, "crop is 0.001 … 1, not 0"),
    "a crop of more than the image": ("data", "crop", 1.5, "crop is 0.001 … 1"),
    "a crop that enlarges an image": ("data", "crop", 0.001, "24000 x 24000 pixels"),
    "an unknown filter": ("data", "interpolation", "random", "interpolation is one of nearest"),
    "a size beyond memory": ("data", "image_size", [10**7, 10**7], "image_size is 1 … 16384"),
    "a setting that there is not": ("data", "flip", True, "unknown key 'flip'"),
    "a pipeline that is a number": ("data", "written", 5, "written is a text, not 5"),
    "a pipeline beyond memory": ("data", "written", "decode|resize(1_000_000)", "1000000"),
    "a number for the classes": (None, "classes", 3, "classes are a list of names, not 3"),
    "numbers for classes": (None, "classes", [0, 1, 2], "class 0 is a name, not 0"),
    "too few classes": (None, "classes", ["a"], "names 1 classes, its head has 3"),
    "a part that there is not": (None, "weights", {}, "unknown key 'weights'"),
    "fields that are a list": (None, "fields", [], "has no object 'fields'"),
    "data that are null": (None, "data", None, "has no object 'data'"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", STATED)
def test_metadata_of_another_type_or_size_is_refused_by_its_name(file, tmp_path, wrong):
    part, key, value, says = STATED[wrong]

    def change(metadata):
        (metadata[part] if part else metadata)[key] = value

    line = line_of(stating(file, tmp_path, change))
    assert says in line, line


def test_names_of_tensors_alone_cannot_ask_for_layers_without_end(tmp_path):
    """No metadata: the number of layers is read off the names."""
    tensors = fill(json.loads((GOLDEN / "timm_vit.json").read_text())["shapes"], layout="torch")
    for path, name in (("a.npz", "blocks.999999.norm1.weight"), ("b.npz", "blocks.99.norm1.bias")):
        np.savez(tmp_path / path, **tensors, **{name: np.zeros(48, "f")})
    assert "num_layers is 1 … 1000" in line_of(tmp_path / "a.npz", num_heads=4)
    assert "100 layers, it holds" in line_of(tmp_path / "b.npz", num_heads=4)


def test_stacked_layers_without_values_are_no_layers(tmp_path):
    name = "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    np.savez(tmp_path / "a.npz", **{name: np.zeros((10**9, 0, 4), "f")})
    assert "stacks no number of layers from 1 to 1000" in line_of(tmp_path / "a.npz")


def test_an_operation_by_import_path_is_shown_and_never_imported(
    file, tmp_path, capsys, monkeypatch
):
    """The module is there to be imported: it would leave a file."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nop = abs\n")
    written = "decode|planted:op"
    path = stating(file, tmp_path, lambda m: m["data"].update(written=written))
    assert open_weights(path).model.data_config.written == written
    assert cli.main(["inspect", str(path)]) == 0
    assert written in capsys.readouterr().out
    np.save(tmp_path / "image.npy", np.zeros((24, 24, 3), np.uint8))
    assert cli.main(["predict", str(path), str(tmp_path / "image.npy")]) == 2
    assert "is not imported" in capsys.readouterr().err
    with pytest.raises(UserError, match="not imported"):
        pipeline_text.parse(open_weights(path).model.data_config.pipeline((24, 24)), (24, 24))
    own = tmp_path / "own"  # whose config would be taken for the user's own word
    assert cli.main(["convert", str(path), str(own), "--to=orbax"]) == 2
    assert "is not imported" in capsys.readouterr().err
    assert not own.exists()
    assert not (tmp_path / "ran").exists()


def test_names_from_a_file_move_no_cursor(file, tmp_path, capsys):
    names = ["a\x1b[2J", "b\nvit: error", "c\ud800"]
    path = stating(file, tmp_path, lambda m: m.update(classes=names))
    assert open_weights(path).classes == names
    assert cli.main(["inspect", str(path)]) == 0
    assert r"3: a\x1b[2J, b\nvit: error, c\ud800" in capsys.readouterr().out
    hostile = dict(np.load(file)) | {"x\x1b[31m\ny": np.zeros(2, "f")}
    np.savez(tmp_path / "b.npz", **hostile)
    assert r"superfluous: x\x1b[31m\ny [2]" in line_of(tmp_path / "b.npz", num_classes=3)


# -- JSON of others --------------------------------------------------------------------------------

CONFIG = {
    "heads without end": ("num_attention_heads", 10**9, "num_attention_heads is a whole number"),
    "an epsilon without end": ("layer_norm_eps", float("inf"), "layer_norm_eps is a positive"),
    "an image too large": ("image_size", 10**6, "image_size is a size, not 1000000 (1 … 16384"),
    "names of no text": ("id2label", {"0": {}, "1": 5, "2": None}, "id2label: class 0 is a name"),
    "names that are nested": ("id2label", [["a"], ["b"]], "id2label is an object"),
}
PREPROCESSOR = {
    "a size beyond memory": ("size", 10**7, "size is a size, or an object of sizes"),
    "a deviation of zero": ("image_std", [0, 0, 0], "image_std is a positive number"),
    "a mean that is none": ("image_mean", [float("nan")] * 3, "image_mean is a number"),
    "a factor of almost nothing": ("rescale_factor", 5e-324, "mean is a number"),
    "a mean of nothing": ("image_mean", [], "image_mean is a number"),
}


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [("config.json", *one) for one in CONFIG.values()]
    + [("preprocessor_config.json", *one) for one in PREPROCESSOR.values()],
    ids=[*CONFIG, *PREPROCESSOR],
)
def test_json_of_a_folder_is_held_to_its_kinds(model, tmp_path, name, key, value, says):
    path = saved(model, tmp_path, "huggingface")
    save_file(load_file(path / "model.safetensors"), path / "model.safetensors")  # no metadata
    changed = json.loads((path / name).read_text()) | {key: value}
    (path / name).write_text(json.dumps(changed))
    assert says in line_of(path)


def test_json_that_is_far_too_long_or_too_deep_is_not_read(model, tmp_path):
    path = saved(model, tmp_path, "huggingface")
    (path / "config.json").write_text("[" * 200_000)
    assert "damaged" in line_of(path)
    with (path / "config.json").open("wb") as sparse:
        sparse.truncate(2**40)
    assert "1,099,511,627,776 bytes" in line_of(path)


@pytest.mark.parametrize("name", ["", ".", "..", "../a.npz", "a/b", "n" * 5000, "a\0b", "a\ud800"])
def test_an_index_names_files_beside_it_and_nothing_else(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    assert "which is not beside it" in line_of(tmp_path)


def test_a_name_too_long_for_any_file_system_is_one_line(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        vit_jax.load_pretrained(tmp_path / ("n" * 5000))
    with pytest.raises(UserError, match="File name too long"):
        open_weights(tmp_path / ("n" * 5000))


# -- own checkpoints -------------------------------------------------------------------------------

ABOUT = {
    "a list": (lambda about: [], "it holds no JSON object"),
    "a config that is a list": (lambda about: about | {"config": []}, "config is an object"),
    "no name": ({"model.name": None}, "an object with at least model.name"),
    "a name with a size beyond all": ({"model.name": f"vit_mu_patch4_{'9' * 5000}"}, "makes no"),
    "another depth": ({"model.num_layers": 7}, "missing: encoder/block01/"),
    "a depth without end": ({"model.num_layers": 10**9}, "num_layers is a whole number"),
    "a width that is a word": ({"model.hidden_size": "32"}, "hidden_size is a whole number"),
    "a field of no model": ({"model.depth": 3}, "unknown key 'depth'"),
    "classes that are numbers": (
        lambda about: about | {"classes": [1, 2, 3]}, "classes is a list of texts"
    ),
    "no classes": (
        lambda about: {k: about[k] for k in about if k != "classes"}, "it has no classes"
    ),
    "data that are a list": (lambda about: about | {"data": [1]}, "data is an object"),
    "a pipeline that is a number": ({"data.eval.pipeline": 5}, "written is a text"),
    "a pipeline beyond memory": ({"data.eval.pipeline": "decode|resize(99999999)"}, "99999999"),
    "a deviation of zero": ({"data.std": [0, 0, 0]}, "std is 1e-06"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", ABOUT)
def test_what_a_checkpoint_states_is_checked_as_any_files(own, tmp_path, wrong):
    change, says = ABOUT[wrong]
    path = tmp_path / "run"
    shutil.copytree(own, path)
    (stated,) = (path / "about").rglob("metadata")
    about = json.loads(stated.read_text())
    if isinstance(change, dict):
        about = {k: v for k, v in about.items() if k != "data"}
        about["config"] |= change
    else:
        about = change(about)
    stated.write_text(json.dumps(about))
    checksums.write(path)
    line = line_of(path)
    assert re.search(re.escape(says), line), line
