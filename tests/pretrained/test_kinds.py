"""Tensors that are no floating-point numbers are refused by name; what a file does not say of its
images is said to be guessed; a head's classes in another order are put in ours."""

import json
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from made_weights import fill
from safetensors.numpy import load_file, save_file

import vit_jax
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.models.data_config import IMAGENET
from vit_jax.pretrained.load import check_finite, order_of
from vit_jax.pretrained.weights import open_weights

GOLDEN = Path(__file__).parent / "golden"
NORM = "blocks.0.norm1.weight"


@pytest.fixture(scope="module")
def tensors():
    """Those of a bare timm file of four heads."""
    return fill(json.loads((GOLDEN / "timm_vit.json").read_text())["shapes"], layout="torch")


@pytest.fixture(scope="module")
def bare(tensors, tmp_path_factory):
    """Without metadata and without a config.json."""
    path = tmp_path_factory.mktemp("bare") / "plain.safetensors"
    save_file(tensors, path)
    return path


def opened(path, **given):
    return open_weights(path, **{"num_heads": 4} | given)


def refusal(path, **given) -> str:
    with pytest.raises(UserError) as refused:
        opened(path, **given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "dtype", ["c8", "?", "M8[s]", "m8[ns]", "S4", "U2", "V4", [("a", "f4"), ("b", "f4")]]
)
def test_an_npz_of_other_kinds_of_values_is_refused_by_its_name(tensors, tmp_path, dtype):
    np.savez(tmp_path / "a.npz", **tensors | {NORM: np.zeros(48, dtype)})
    line = refusal(tmp_path / "a.npz")
    assert f"a.npz: {NORM} is " in line
    assert "dense arrays of floating-point numbers" in line


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", ">i8", "u2"])
def test_integers_are_quantised_weights_without_scales(tensors, tmp_path, dtype):
    array = np.zeros(48, dtype)
    np.savez(tmp_path / "a.npz", **tensors | {NORM: array})
    says = f"{NORM} is {array.dtype.name}: quantised weights without their scales"
    assert says in refusal(tmp_path / "a.npz")
    if array.dtype.isnative:
        save_file(tensors | {NORM: array}, tmp_path / "a.safetensors")
        assert says in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL"])
def test_safetensors_of_other_kinds_of_values_are_refused_by_their_name(tensors, tmp_path, dtype):
    """The bytes are written as they are, since NumPy has no such dtypes."""
    path = tmp_path / "a.safetensors"
    save_file(tensors | {NORM: np.zeros(48, np.uint8)}, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[NORM]["dtype"] = dtype
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
    line = refusal(path)
    assert f"{NORM} is {'bool' if dtype == 'BOOL' else dtype}: " in line
    assert ("quantised" in line) == (dtype != "BOOL")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_floats_of_other_widths_are_weights(tensors, tmp_path, dtype):
    save_file({name: x.astype(dtype) for name, x in tensors.items()}, tmp_path / "a.safetensors")
    read = opened(tmp_path / "a.safetensors").read("encoder/block00/norm1/scale")
    np.testing.assert_array_equal(np.asarray(read), tensors[NORM].astype(dtype))


def test_an_integer_that_the_layout_ignores_is_no_weight(tmp_path):
    shapes = json.loads((GOLDEN / "dinov2_hub.json").read_text())["shapes"]
    tensors = fill(shapes, layout="torch")
    assert "mask_token" in tensors
    tensors["mask_token"] = np.zeros(tensors["mask_token"].shape, np.int64)
    save_file(tensors, tmp_path / "a.safetensors")
    assert "mask_token" in open_weights(tmp_path / "a.safetensors", num_heads=4).unused


def test_parameters_already_on_devices_are_held_to_the_same(tmp_path):
    params = {"norm": {"scale": np.ones(3, "f"), "bias": np.array([0, np.inf], "f")}}
    with pytest.raises(UserError, match=r"infinite values in norm/bias: "):
        check_finite(params, tmp_path)
    check_finite({"norm": {"scale": np.ones(3, "f")}}, tmp_path)


def test_two_tensors_of_one_name_are_refused(tensors, tmp_path):
    np.savez(tmp_path / "a.npz", **tensors)
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr(f"{NORM}.npy", archive.read(f"{NORM}.npy"))
    assert f"two tensors of the name {NORM!r}" in refusal(tmp_path / "a.npz")


# -- guesses ---------------------------------------------------------------------------------------


def test_a_bare_file_says_what_is_guessed_and_takes_a_word_for_it(bare, capsys):
    weights = opened(bare)
    assert weights.guessed == ("mean", "std", "interpolation", "crop")
    (line,) = weights.guesses()
    assert f"{bare} does not say how images were shown, guessed: mean 0.5, std 0.5" in line
    assert "--config.data.mean='(0.485, 0.456, 0.406)'" in line
    assert cli.main(["inspect", str(bare), "--config.model.num_heads=4"]) == 0
    assert f"warning: {line}" in capsys.readouterr().out.splitlines()
    arguments = line.partition("were: ")[2].replace("'", "").split(" --")
    told = ["--" + one.removeprefix("--") for one in arguments]
    assert cli.main(["inspect", str(bare), "--config.model.num_heads=4", *told]) == 0
    out = capsys.readouterr().out
    assert "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)" in out
    assert "guessed: interpolation bicubic, crop 0.9" in out
    given = opened(bare, mean=IMAGENET.mean, std=0.25)
    assert (given.model.data_config.mean, given.model.data_config.std) == (IMAGENET.mean, 0.25)


def test_a_deviation_of_zero_given_by_hand_is_refused(bare):
    with pytest.raises(UserError, match="std is 1e-06"):
        opened(bare, std=0.0)


def test_load_pretrained_and_convert_warn_of_the_guess(bare, tmp_path, capsys):
    report = vit_jax.load_pretrained(bare, num_heads=4, say=None)[2]
    assert [line for line in report.warnings if "guessed: mean 0.5" in line]
    told = vit_jax.load_pretrained(bare, num_heads=4, mean=0.4, std=0.3, say=None)[2]
    assert not [line for line in told.warnings if "mean" in line]
    to = str(tmp_path / "new.safetensors")
    assert cli.main(["convert", str(bare), to, "--to=timm", "--config.model.num_heads=4"]) == 0
    assert "guessed: mean 0.5, std 0.5" in capsys.readouterr().err


def test_formats_that_define_how_images_are_shown_are_no_guess(tmp_path):
    model = vit_jax.create_model("vit_mu_patch4_32", num_classes=2)
    vit_jax.save_pretrained(model, model.init(), tmp_path / "a.npz", "google")
    arrays = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", **arrays)  # as Google writes it: without our metadata
    assert open_weights(tmp_path / "b.npz").guesses() == []
    assert open_weights(tmp_path / "a.npz").guesses() == []


def test_a_random_filter_of_timm_is_read_as_one_and_said(tensors, tmp_path, capsys):
    save_file(tensors, tmp_path / "model.safetensors")
    stated = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 4},
              "pretrained_cfg": {"mean": 0.5, "std": 0.5, "interpolation": "random"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert open_weights(tmp_path).guessed == ("interpolation",)
    assert cli.main(["convert", str(tmp_path), f"{tmp_path}/new", "--to=huggingface"]) == 0
    assert "guessed: interpolation bicubic" in capsys.readouterr().err


# -- the order of classes --------------------------------------------------------------------------


def test_the_order_of_classes_is_found_where_both_have_the_same():
    assert order_of(["a", "b", "c"], ["c", "a", "b"]) == [2, 0, 1]
    assert order_of(["a", "b"], ["a", "b"]) == [0, 1]
    for theirs, ours in ((["a", "b"], ["a", "c"]), (None, ["a"]), (["a", "a"], ["a", "a"])):
        assert order_of(theirs, ours) is None


@pytest.mark.parametrize("distilled", [False, True])
def test_a_head_in_another_order_gives_the_same_logits_permuted(tmp_path, distilled):
    from vit_jax.pretrained.load import fill as fill_model

    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    sizes = {"hidden_size": 32, "num_heads": 2, "mlp_dim": 48, "num_layers": 1, "image_size": 16}
    model = vit_jax.create_model(name, num_classes=3, **sizes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), model.abstract_params
    )
    theirs, ours = ["owl", "newt", "hare"], ["hare", "owl", "newt"]
    vit_jax.save_pretrained(model, params, tmp_path / "a.safetensors", "timm", classes=theirs)
    weights = open_weights(tmp_path / "a.safetensors")
    permuted, report = fill_model(weights, model, order=order_of(weights.classes, ours))
    fates = {p for p, fate in report.fates.items() if fate == "loaded (classes in another order)"}
    heads = ("head", "head_dist") if distilled else ("head",)
    assert fates == {f"{head}/{part}" for head in heads for part in ("kernel", "bias")}
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    before, after = (np.asarray(model.apply(p, images)[0]) for p in (params, permuted))
    expected = np.stack([before[:, theirs.index(name)] for name in ours], axis=1)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(after - before).max() > 0.1


def test_metadata_is_what_a_file_without_a_guess_has(bare, tmp_path):
    """Control: the bare file differs from one of ours by its metadata alone."""
    model, params, _ = vit_jax.load_pretrained(bare, num_heads=4, say=None)
    vit_jax.save_pretrained(model, params, tmp_path / "a.safetensors", "timm")
    assert load_file(tmp_path / "a.safetensors").keys() == load_file(bare).keys()
    assert open_weights(tmp_path / "a.safetensors").guessed == ()
