"""Files that cannot be read are refused in one line: what is wrong, where, and what would work.

Whatever reads weights goes through `open_weights`, so each mistake is made once as a file and held
to it, to `vit inspect` and to `vit convert`; that nothing is left behind is part of it.
"""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from linen_google import GoogleViT
from made_weights import fill, names_and_shapes, save_npz
from safetensors.numpy import save_file

import vit_jax
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.pretrained.download import fetch
from vit_jax.pretrained.files import open_tensors

VIT = GoogleViT(8, 32, 2, 2, 48, 5)
GOLDEN = Path(__file__).parent / "golden"
BLOCK = "Transformer/encoderblock_1"


def google(sides=(16, 16)) -> dict:
    return fill(names_and_shapes(VIT, sides))


def told(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def torch_names(name: str = "timm_vit") -> dict:
    """Tensors of a timm or Hugging Face file."""
    return fill(told(name)["shapes"], layout="torch")


def npz(folder: Path, tensors: dict) -> Path:
    save_npz(folder / "made.npz", tensors)
    return folder / "made.npz"


def safetensors(folder: Path, tensors: dict) -> Path:
    save_file(tensors, folder / "made.safetensors")
    return folder / "made.safetensors"


def huggingface(folder: Path, config=None, weights: bool = True) -> Path:
    """A folder of Transformers; `config` is the text of its config.json."""
    folder = folder / "hub"
    folder.mkdir()
    if weights:
        save_file(torch_names("hf_vit"), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


def shown(folder: Path, **preprocessor) -> Path:
    """A folder of Transformers with another preprocessor_config.json."""
    folder = huggingface(folder, hf_config())
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def timm_folder(folder: Path, **changes) -> Path:
    """A folder of timm with other values in its config.json."""
    save_file(torch_names("timm_folder"), folder / "model.safetensors")
    config = told("timm_folder")["config"] | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def hf_config(**changes) -> str:
    return json.dumps(told("hf_vit")["config"] | changes)


def without(tensors: dict, *names: str) -> dict:
    assert set(names) <= set(tensors)
    return {name: x for name, x in tensors.items() if name not in names}


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def damaged(path: Path, at: int) -> Path:
    """One byte changed."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    return path


def timm_of_width(width: int) -> dict:
    """A timm file of a width that no published model has."""
    swap = {48: width, 144: 3 * width, 192: 4 * width}
    shapes = {k: [swap.get(n, n) for n in shape] for k, shape in told("timm_vit")["shapes"].items()}
    return fill(shapes, layout="torch")


def index_of(folder: Path, text: str) -> Path:
    folder = huggingface(folder, hf_config(), weights=False)
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


# What is wrong: (makes the file or folder, what the line must say).
WRONG = {
    "nothing there": (lambda f: f / "none.npz", ["none.npz", "no file"]),
    "empty file": (lambda f: written(f, "made.npz", b""), ["made.npz", "empty"]),
    "text called npz": (
        lambda f: written(f, "made.npz", b"<html>404: not found</html>\n"),
        ["no .npz, .safetensors, .bin or .pth file", "<html>"],
    ),
    "text that looks like a header": (
        lambda f: written(f, "made.safetensors", b'{"a": 1}{"b": 2}'),
        ["made.safetensors", "damaged or cut short"],
    ),
    "a zip of something else": (
        lambda f: zipped(f / "made.zip", {"mimetype": b"text"}),
        ["made.zip", "neither"],
    ),
    "objects in an npz": (
        lambda f: npz(f, google() | {"x": np.array([{"a": 1}, None], object)}),
        ["'x'", "Python objects", "not read"],
    ),
    "a member that is no array": (
        lambda f: zipped(f / "made.npz", {"a.npy": b"not an array at all"}),
        ["made.npz", "damaged"],
    ),
    "a member shorter than its header says": (
        lambda f: zipped(f / "made.npz", {"cls.npy": npy(np.zeros((1, 1, 32), "f"))[:-8],
                                          "x.npy": npy(np.zeros(64))}),
        ["made.npz", "damaged", "cls"],
    ),
    "no tensors": (lambda f: safetensors(f, {}), ["no known layout", "no tensors at all"]),
    "an empty folder": (lambda f: f, ["holds no weights", "config.json"]),
    "names of no layout": (
        lambda f: npz(f, {"weights/dense": np.zeros(3), "other": np.zeros(2)}),
        ["no known layout", "google, big_vision, timm, dinov2, huggingface", "weights/dense"],
    ),
    "names of two layouts": (
        lambda f: npz(f, google() | torch_names()),
        ["ambiguous", "google", "timm", "keep the tensors of one"],
    ),
    "two towers of one layout's names": (
        lambda f: npz(f, google() | {f"img/{k}": x for k, x in google().items()}),
        ["does not add up", "img/"],
    ),
    "a tensor missing": (
        lambda f: npz(f, without(google(), f"{BLOCK}/LayerNorm_2/scale")),
        ["1 missing", f"{BLOCK}/LayerNorm_2/scale [32]"],
    ),
    "the first tensor that is looked at missing": (
        lambda f: npz(f, without(google(), "embedding/kernel")),
        ["lacks the tensor 'embedding/kernel'"],
    ),
    "many tensors missing": (
        lambda f: npz(f, without(google(), *(k for k in google() if "MlpBlock_3/Dense_1" in k))),
        ["4 missing", "MlpBlock_3/Dense_1/kernel [48, 32]"],
    ),
    "a layer missing in the middle": (
        lambda f: npz(f, {k.replace("encoderblock_1/", "encoderblock_3/"): x
                          for k, x in google().items()}),
        ["missing", "Transformer/encoderblock_1/", "and "],
    ),
    "a tensor too many": (
        lambda f: npz(f, google() | {"head/extra": np.zeros((2, 3), "f")}),
        ["1 superfluous", "head/extra [2, 3]"],
    ),
    "a tensor of another shape": (
        lambda f: npz(f, google() | {f"{BLOCK}/MlpBlock_3/Dense_0/bias": np.zeros(49, "f")}),
        ["1 of another shape", "Dense_0/bias [49], expected [48]"],
    ),
    "a tensor of another rank": (
        lambda f: npz(f, google() | {"embedding/kernel": np.zeros((8, 32), "f")}),
        ["names of google", "shapes"],
    ),
    "a transposed tensor": (
        lambda f: npz(f, google() | {"head/kernel": google()["head/kernel"].T}),
        ["of another shape"],
    ),
    "positions of no square": (
        lambda f: npz(f, google((16, 24))),
        ["6 patches", "no square", "source_image_size=(HEIGHT, WIDTH)"],
    ),
    "positions of no square in a timm file": (
        lambda f: safetensors(f, torch_names("timm_not_square")),
        ["6 patches", "no square", "source_image_size"],
    ),
    "a timm file of a width without known heads": (
        lambda f: safetensors(f, timm_of_width(90)),
        ["how many heads", "90", "num_heads"],
    ),
    "Hugging Face's tensors without config.json": (
        lambda f: huggingface(f, None),
        ["no config.json", "vit, deit, dinov2"],
    ),
    "Hugging Face's file alone": (
        lambda f: huggingface(f, hf_config()) / "model.safetensors",
        ["give the folder"],
    ),
    "config.json of another kind of model": (
        lambda f: huggingface(f, hf_config(model_type="swin")),
        ["'swin'", "vit, deit, dinov2"],
    ),
    "config.json cut short": (
        lambda f: huggingface(f, hf_config()[:100]),
        ["config.json", "damaged or cut short"],
    ),
    "config.json that is no object": (
        lambda f: huggingface(f, "[1, 2]"),
        ["config.json", "no JSON object"],
    ),
    "config.json without the number of heads": (
        lambda f: huggingface(f, json.dumps({"model_type": "vit", "num_hidden_layers": 2})),
        ["config.json", "num_attention_heads"],
    ),
    "config.json with a word for a number": (
        lambda f: huggingface(f, hf_config(num_hidden_layers="two")),
        ["config.json: num_hidden_layers is a whole number, not 'two'"],
    ),
    "config.json with a word for a width": (
        lambda f: huggingface(f, hf_config(hidden_size="abc")),
        ["config.json: hidden_size is a whole number, not 'abc'"],
    ),
    "config.json of another width": (
        lambda f: huggingface(f, hf_config(hidden_size=96)),
        ["config.json says hidden_size 96", "of 48"],
    ),
    "config.json with a number of a class left out": (
        lambda f: huggingface(f, hf_config(id2label=dict(zip("01239", "abcde", strict=True)))),
        ["id2label numbers 0, 1, 2, 3, 9, not 0 … 4"],
    ),
    "a mean that is a word": (
        lambda f: shown(f, image_mean="a"),
        ["preprocessor_config.json: image_mean is a number, or one for each channel, not 'a'"],
    ),
    "a size of a word": (
        lambda f: shown(f, size="x"), ["preprocessor_config.json: size is", "'x'"]
    ),
    "a size of the long side": (
        lambda f: shown(f, size={"longest_edge": 48}),
        ["preprocessor_config.json: ", "size {'longest_edge': 48}", "no counterpart"],
    ),
    "images that are not resized": (
        lambda f: shown(f, do_resize=False), ["preprocessor_config.json: do_resize False"]
    ),
    "images of another processor": (
        lambda f: shown(f, image_processor_type="FuyuImageProcessor"),
        ["FuyuImageProcessor is no processor of ViT, DeiT, Bit"],
    ),
    "a preprocessor that is a list": (
        lambda f: written(huggingface(f, hf_config()), "preprocessor_config.json", b"[]").parent,
        ["preprocessor_config.json cannot be read: it holds no JSON object"],
    ),
    "a pooling of timm by the maximum": (
        lambda f: timm_folder(f, model_args={"global_pool": "max"}), ["global_pool 'max'"]
    ),
    "a pooling of timm by two": (
        lambda f: timm_folder(f, global_pool="avgmax", model_args=None), ["global_pool 'avgmax'"]
    ),
    "a crop of timm with a border": (
        lambda f: timm_folder(f, pretrained_cfg={"crop_mode": "border"}), ["crop_mode 'border'"]
    ),
    "a number for timm's architecture": (
        lambda f: timm_folder(f, architecture=5), ["config.json: architecture is a word, not 5"]
    ),
    "a number for timm's pretrained_cfg": (
        lambda f: timm_folder(f, pretrained_cfg=3),
        ["config.json: pretrained_cfg is an object, not 3"],
    ),
    "two numbers for timm's input_size": (
        lambda f: timm_folder(f, pretrained_cfg={"input_size": [3, 48]}),
        ["config.json: input_size is channels, height and width, not [3, 48]"],
    ),
    "names of other classes": (
        lambda f: timm_folder(f, label_names=["a", "b"]), ["names 2 classes, its head has 5"]
    ),
    "config.json with a list for a number": (
        lambda f: huggingface(f, hf_config(image_size={"height": 48})),
        ["config.json"],
    ),
    "config.json with more layers than the file": (
        lambda f: huggingface(f, hf_config(num_hidden_layers=3)),
        ["config.json says num_hidden_layers 3", "of 2"],
    ),
    "config.json with fewer layers than the file": (
        lambda f: huggingface(f, hf_config(num_hidden_layers=1)),
        ["config.json says num_hidden_layers 1", "of 2"],
    ),
    "config.json of another image size": (
        lambda f: huggingface(f, hf_config(image_size=64)),
        ["9 patches", "4 x 4"],
    ),
    "config.json alone": (
        lambda f: huggingface(f, hf_config(), weights=False),
        ["holds no weights", "model.safetensors"],
    ),
    "an index of shards that is no index": (
        lambda f: index_of(f, '{"weights": []}'),
        ["index.json", "weight_map"],
    ),
    "an index of shards that are not there": (
        lambda f: index_of(f, '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        ["model-00001-of-00002.safetensors", "no such file"],
    ),
    "an index that leads out of the folder": (
        lambda f: index_of(f, '{"weight_map": {"a": "../../secret"}}'),
        ["index.json", "../../secret"],
    ),
    "metadata of ours that makes no sense": (
        lambda f: commented(npz(f, google()), b'{"vit_jax": {"fields": 3}}'),
        ["made.npz", "vit_jax"],
    ),
}  # fmt: skip


def npy(x: np.ndarray) -> bytes:
    from io import BytesIO

    file = BytesIO()
    np.save(file, x)
    return file.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def commented(path: Path, comment: bytes) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    return path


def line_of(call, *arguments, **more) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as refused:
        call(*arguments, **more)
    line = str(refused.value)
    assert "\n" not in line, line
    assert len(line) < 2000, line
    return line


def load(path, **arguments):
    return vit_jax.load_pretrained(path, say=None, **arguments)


@pytest.mark.parametrize("wrong", WRONG)
def test_load_pretrained_says_in_one_line_what_is_wrong(tmp_path, wrong):
    make, says = WRONG[wrong]
    line = line_of(load, make(tmp_path))
    for text in says:
        assert text in line, line


@pytest.mark.parametrize("wrong", WRONG)
def test_inspect_and_convert_exit_2_with_that_line_and_leave_nothing(tmp_path, capsys, wrong):
    make, says = WRONG[wrong]
    (tmp_path / "given").mkdir()
    path = make(tmp_path / "given")
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["inspect", str(path)],
        ["convert", str(path), f"{tmp_path}/new.npz", "--to=google"],
    ):
        assert cli.main(command) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("vit: error: ")
        assert len(said.err.splitlines()) == 1
        assert all(text in said.err for text in says), said.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong",
    ["text called npz", "names of two layouts", "objects in an npz", "config.json cut short"],
)
def test_the_process_itself_exits_2_with_one_line(tmp_path, wrong):
    make, says = WRONG[wrong]
    path = make(tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", "inspect", str(path)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("vit: error: ")
    assert all(text in line for text in says), line


CUTS = (1, 4, 8, 9, 60, 1000, 0.3, 0.6, 0.95, -100, -23, -22, -1)


def cut(path: Path, where: float) -> Path:
    """The first bytes: a count, a share of the whole, or all but the last few."""
    data = path.read_bytes()
    path.write_bytes(data[: int(where * len(data)) if isinstance(where, float) else where])
    return path


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("container", [npz, safetensors])
def test_a_file_cut_anywhere_is_refused_before_any_tensor_is_used(tmp_path, container, where):
    line = line_of(load, cut(container(tmp_path, google()), where))
    assert "made." in line
    assert "damaged or cut short" in line or "is no .npz" in line


@pytest.mark.parametrize("where", [1, 4, 60, 1000, 0.3, 0.6, 0.95, -100, -22, -1])
def test_a_compressed_npz_cut_anywhere_is_refused(tmp_path, where):
    np.savez_compressed(tmp_path / "made.npz", **google())
    line = line_of(load, cut(tmp_path / "made.npz", where))
    assert "damaged or cut short" in line or "is no .npz" in line


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_inside_the_tensors_is_noticed(tmp_path, save):
    path = tmp_path / "made.npz"
    save(path, **google())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.compress_size)
    line = line_of(load, damaged(path, largest.header_offset + largest.compress_size // 2))
    assert "made.npz is damaged or cut short" in line


def test_a_byte_changed_anywhere_ends_in_a_line_or_in_the_same_tensors(tmp_path):
    """Also in headers, the zip's directory and lengths: 200 places, from the ends inwards."""
    tensors = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    for container in (npz, safetensors):
        path, lines, same = container(tmp_path, tensors), [], 0
        whole = path.read_bytes()
        for at in range(min(200, len(whole))):
            for place in (at, len(whole) - 1 - at):
                path.write_bytes(whole)
                try:
                    opened = open_tensors(damaged(path, place))
                    read = {name: opened.read(name) for name in opened.shapes}
                    same += read.keys() == {"a"} and np.array_equal(read["a"], tensors["a"])
                except UserError as error:
                    lines.append(str(error))
        assert len(lines) > 100
        assert not any("\n" in line for line in lines)
        assert container is safetensors or len(lines) + same >= 395  # but for a name or a stamp


def test_depth_given_by_hand_is_held_to_the_file(tmp_path):
    path = npz(tmp_path, google())
    assert "16 missing: Transformer/encoderblock_2/" in line_of(load, path, num_layers=3)
    assert "16 superfluous: Transformer/encoderblock_1/" in line_of(load, path, num_layers=1)
    assert "hidden_size 32 is not divisible by num_heads 3" in line_of(load, path, num_heads=3)


def test_a_field_that_no_model_has_is_named(tmp_path):
    line = line_of(load, npz(tmp_path, google()), num_layer=3)
    assert "no field 'num_layer'" in line


def test_another_size_given_than_the_positions_have_is_refused(tmp_path):
    line = line_of(load, npz(tmp_path, google()), source_image_size=(32, 32))
    assert "4 patches" in line
    assert "4 x 4" in line


def test_a_config_json_says_that_images_were_no_squares(tmp_path):
    """Also through load_pretrained, whose own word is None then."""
    safetensors(tmp_path, torch_names("timm_not_square")).rename(tmp_path / "model.safetensors")
    said = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 32, 48]},
            "model_args": {"depth": 2}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert load(tmp_path)[0].config.image_size == (32, 48)


def test_a_timm_folder_of_another_depth_than_its_file_is_refused(tmp_path):
    safetensors(tmp_path, torch_names("timm_folder")).rename(tmp_path / "model.safetensors")
    said = told("timm_folder")["config"]
    said["model_args"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert "config.json says depth 3, the tensors are those of 2" in line_of(load, tmp_path)


def test_heads_of_an_odd_width_can_be_given(tmp_path):
    path = safetensors(tmp_path, timm_of_width(90))
    assert load(path, num_heads=5)[0].config.num_heads == 5
    assert cli.main(["inspect", str(path), "--config.model.num_heads=5"]) == 0


def test_a_wrong_sha256_is_refused_with_both(tmp_path):
    path = npz(tmp_path, google())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    for address in (str(path), f"file://{path}"):
        assert fetch(address, right.upper()) == path
        line = line_of(fetch, address, "0" * 64)
        assert f"{path} has the sha256 {right}" in line
        assert "0" * 64 in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused_with_the_parameters_that_hold_them(
    tmp_path, value
):
    tensors = google()
    tensors[f"{BLOCK}/LayerNorm_2/scale"][3] = value
    tensors[f"{BLOCK}/MultiHeadDotProductAttention_1/key/bias"][1, 1] = value
    line = line_of(load, npz(tmp_path, tensors))
    assert "NaN or infinite values in " in line
    assert "encoder/block01/attention/qkv/bias, encoder/block01/norm2/scale:" in line


def test_a_value_beyond_float32_counts_as_infinite(tmp_path):
    tensors = google() | {"cls": np.full((1, 1, 32), 1e300)}
    assert "infinite values in cls" in line_of(load, npz(tmp_path, tensors))


class Writes:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code ran"))


def test_no_pickle_is_ever_run(tmp_path):
    """Whether PyTorch is installed or not; inside an npz, and as a bare pickle."""
    ran = tmp_path / "ran"
    files = [
        npz(tmp_path, google() | {"x": np.array([Writes(ran)], object)}),
        written(tmp_path, "made.pth", pickle.dumps({"cls_token": Writes(ran)}, protocol=2)),
        written(tmp_path, "made.bin", pickle.dumps({"cls_token": Writes(ran)}, protocol=4)),
        written(tmp_path, "x.npy", pickle.dumps({"cls_token": Writes(ran)}, protocol=0)),
    ]
    for file in files:
        line_of(load, file)
    assert not ran.exists()
    pickle.loads(files[1].read_bytes())  # the test is one: unpickled in earnest, it writes
    assert ran.exists()


def test_a_pytorch_file_without_pytorch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` fails, installed or not
    legacy = pickle.dumps({"cls_token": [0.0] * 8}, protocol=2)
    for name, data in {"a.pth": legacy, "b.pth": None}.items():
        path = tmp_path / name
        if data is None:
            zipped(path, {"b/data.pkl": legacy, "b/version": b"3\n"})
        else:
            path.write_bytes(data)
        line = line_of(load, path)
        assert str(path) in line
        assert "pip install torch" in line
        assert ".safetensors" in line
