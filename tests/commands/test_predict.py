"""What `vit predict` shows follows the loss of the weights, in every layout; names that come from
files, and code that a file names, are obeyed by nobody."""

import csv
import dataclasses
import json
import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.made_images import encoded, smooth
from tests.refusals import refused
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.models.data_config import DataConfig
from vit_jax.pretrained.save import save_pretrained
from vit_jax.pretrained.weights import open_weights

NAMES = ["roof", "tree, tall", "water"]


def made(num_classes=3, **fields):
    """A tiny ViT whose parameters are random, and those."""
    model = vit_jax.create_model(
        "vit_mu_patch4_32", image_size=12, num_classes=num_classes, gelu="exact", **fields
    )
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, model.abstract_params)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "a.png"
    path.write_bytes(encoded(smooth(12, 12), "PNG"))
    return path


def logits_of(model, params, photo):
    pixels = np.asarray(smooth(12, 12), np.float32)[None] / 127.5 - 1
    return np.asarray(jax.jit(model.apply)(params, pixels)[0][0], np.float64)


WHOLE = DataConfig(crop=1.0, squash=True)  # images of 12 x 12 are shown as they are


def saved(folder, activation, to="huggingface", name="weights", num_classes=3, **fields):
    """Weights of an activation in a layout: their path and their model."""
    model, params = made(num_classes, **fields)
    model = dataclasses.replace(model, data_config=WHOLE, activation=activation)
    classes = NAMES if num_classes == 3 else None
    vit_jax.save_pretrained(model, params, folder / name, to, classes=classes)
    return folder / name, model, params


def table_of(vit, weights, photo, folder, *options) -> list[tuple[str, float]]:
    """(label, value) of each row of the table, whose ranks count from 1."""
    file = folder / "p.csv"
    code, _, err = vit("predict", weights, photo, f"--output={file}", *options)
    assert (code, err) == (0, "")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    return [(row["label"], float(row["probability"])) for row in rows]


@pytest.mark.parametrize(
    ("to", "name", "activation"),
    [
        ("google", "w.npz", "sigmoid"), ("timm", "w.safetensors", "none"),
        ("timm", "w", "sigmoid"), ("huggingface", "w", "none"), ("orbax", "w", "none"),
    ],
)  # fmt: skip
def test_what_logits_mean_survives_every_layout(vit, photo, tmp_path, to, name, activation):
    weights, model, params = saved(tmp_path, activation, to, name)
    assert open_weights(weights).model.activation == activation
    assert vit("inspect", weights)[1].splitlines()[-1].endswith(f"water; {activation}")
    logits = logits_of(model, params, photo)
    found = dict(table_of(vit, weights, photo, tmp_path, "--top=3"))
    wanted = logits if activation == "none" else 1 / (1 + np.exp(-logits))
    assert [found[name] for name in NAMES] == pytest.approx(list(wanted), abs=2e-5)
    assert vit("convert", weights, tmp_path / "again", "--to=huggingface")[0] == 0
    assert open_weights(tmp_path / "again").model.activation == activation


def test_a_run_of_several_labels_predicts_sigmoids_without_being_told(vit, tmp_path):
    from tests.digits_run import tiny_config

    config = tiny_config(
        loss__name="sigmoid", total_steps=2, batch_size=8, model__num_layers=1, eval_every_steps=2,
        checkpoint__every_steps=2, data__eval__split="", mixup=0.0,
    )  # fmt: skip
    vit_jax.train(config, tmp_path / "run", devices=jax.devices()[:1], quiet=True)
    assert open_weights(tmp_path / "run").model.activation == "sigmoid"
    (tmp_path / "a.png").write_bytes(encoded(smooth(8, 8)[..., 0], "PNG"))
    found = table_of(vit, tmp_path / "run", tmp_path / "a.png", tmp_path, "--top=10")
    assert sum(value for _, value in found) > 2  # of a softmax it would be 1
    assert vit("convert", tmp_path / "run", tmp_path / "own", "--to=orbax")[0] == 0
    about = json.loads((tmp_path / "own" / "about" / "metadata").read_text())
    assert about["config"]["loss.name"] == "sigmoid"  # so that it is evaluated by that


def test_problem_type_decides_and_an_unknown_one_is_refused(vit, photo, tmp_path):
    weights, *_ = saved(tmp_path, "softmax")
    path = weights / "config.json"
    config = json.loads(path.read_text())
    assert config["problem_type"] == "single_label_classification"
    strip_metadata(weights / "model.safetensors")
    for problem, activation in (
        ("multi_label_classification", "sigmoid"), ("regression", "none"), (None, "softmax"),
        ("single_label_classification", "softmax"),
    ):  # fmt: skip
        path.write_text(json.dumps(config | {"problem_type": problem}))
        assert open_weights(weights).model.activation == activation
    path.write_text(json.dumps(config | {"problem_type": "multi-label"}))
    line = refused(vit, "predict", weights, photo)
    assert f"{path}: problem_type is one of single_label_classification, multi" in line
    assert "not 'multi-label'" in line


def strip_metadata(file):
    """As another package writes it: without what this one keeps beside the tensors."""
    from safetensors.numpy import load_file, save_file

    save_file(load_file(file), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("activation", "problem"),
    [("softmax", "multi_label_classification"), ("sigmoid", "multi_label_classification"),
     ("none", "regression")],
)  # fmt: skip
def test_one_output_is_a_sigmoid_or_a_value_and_never_all_of_one_class(
    vit, photo, tmp_path, activation, problem
):
    weights, model, params = saved(tmp_path, activation, num_classes=1)
    (logit,) = logits_of(model, params, photo)
    wanted = logit if activation == "none" else 1 / (1 + np.exp(-logit))
    ((label, value),) = table_of(vit, weights, photo, tmp_path)
    assert label == "0"
    assert value == pytest.approx(wanted, abs=2e-5)
    assert json.loads((weights / "config.json").read_text())["problem_type"] == problem
    shown = vit("predict", weights, photo)[1].split()[-1]
    assert shown.endswith("%") == (activation != "none")


def test_values_of_a_regression_are_shown_in_their_order_and_all_of_them(vit, photo, tmp_path):
    weights, model, params = saved(tmp_path, "none")
    logits = logits_of(model, params, photo)
    assert list(logits) != sorted(logits, reverse=True)
    found = table_of(vit, weights, photo, tmp_path)
    assert [label for label, _ in found] == NAMES
    lines = vit("predict", weights, photo)[1].splitlines()
    assert [float(line.split()[-1]) for line in lines] == pytest.approx(list(logits), rel=1e-4)
    for option in ("--top=1", "--threshold=0.5"):
        assert "leave out --top and --threshold" in refused(vit, "predict", weights, photo, option)


def test_a_new_head_has_a_meaning_of_its_own(tmp_path):
    weights, *_ = saved(tmp_path, "sigmoid", num_classes=3)
    assert vit_jax.load_pretrained(weights, say=None)[0].activation == "sigmoid"
    assert vit_jax.load_pretrained(weights, 7, say=None)[0].activation == "softmax"


# -- thresholds ------------------------------------------------------------------------------------


def test_a_threshold_shows_every_class_that_reaches_it_or_none(vit, photo, tmp_path):
    weights, model, params = saved(tmp_path, "sigmoid")
    chances = 1 / (1 + np.exp(-logits_of(model, params, photo)))
    low, middle, high = np.sort(chances)
    for threshold, count in ((low / 2, 3), ((low + middle) / 2, 2), ((high + 1) / 2, 0)):
        found = table_of(vit, weights, photo, tmp_path, f"--threshold={threshold}")
        assert [value for _, value in found] == pytest.approx(
            np.sort(chances)[::-1][:count].tolist(), abs=2e-5
        )
    assert len(table_of(vit, weights, photo, tmp_path, "--threshold=1e-6", "--top=2")) == 2
    written = str(table_of(vit, weights, photo, tmp_path, "--top=1")[0][1])
    assert len(table_of(vit, weights, photo, tmp_path, f"--threshold={written}")) == 1
    code, out, _ = vit("predict", weights, photo, f"--threshold={(high + 1) / 2}")
    assert code == 0
    assert out.startswith(f"{photo}: no class at or above ")
    code, out, _ = vit("predict", weights, photo, f"--threshold={low / 2}")
    assert len(out.splitlines()) == 3
    assert vit(
        "predict", weights, photo, "--threshold=0.999999", f"--output={tmp_path}/none.csv"
    )[1] == f"1 images: {tmp_path}/none.csv\n"  # fmt: skip


def test_a_threshold_is_refused_where_classes_share_or_no_probability_is(vit, photo, tmp_path):
    weights, *_ = saved(tmp_path, "softmax")
    assert "several labels" in refused(vit, "predict", weights, photo, "--threshold=0.5")
    for wrong in ("0", "1", "-0.5", "1.5", "nan"):
        line = refused(vit, "predict", tmp_path / "gone", photo, f"--threshold={wrong}")
        assert "--threshold lies between 0 and 1" in line


# -- values and names that cannot be shown ---------------------------------------------------------


def test_logits_that_are_no_numbers_are_an_error_and_leave_no_table(vit, photo, tmp_path):
    model, params = made()
    params["head"]["kernel"][:] = 3e38  # finite, and their products are not
    vit_jax.save_pretrained(model, params, tmp_path / "w.npz", "google")
    for option in ("--top=3", f"--output={tmp_path}/p.csv"):
        line = refused(vit, "predict", tmp_path / "w.npz", photo, option)
        assert f"{photo}: the logits are NaN or infinite" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.npz"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are Unicode")
def test_names_of_any_bytes_are_escaped_in_the_terminal_and_whole_in_the_table(
    vit, photo, tmp_path
):
    model, params = made()
    names = ["\x1b[2Jgone", 'a "b",\nc', "\ud800"]
    vit_jax.save_pretrained(model, params, tmp_path / "w.npz", "google", classes=names)
    odd = tmp_path / os.fsdecode(b"x\xff\x1b.png")
    odd.write_bytes(photo.read_bytes())
    broken = tmp_path / os.fsdecode(b"y\xfe\n.png")
    broken.write_bytes(b"no image")
    code, out, err = vit("predict", tmp_path / "w.npz", odd, broken, "--top=3")
    assert code == 0
    assert "\x1b" not in out + err
    assert len(out.splitlines()) == 3
    assert out.startswith(f"{tmp_path}/x\\udcff\\x1b.png: ")
    assert err.startswith(f"skipped: {tmp_path}/y\\udcfe\\n.png (")
    out.encode(), err.encode()
    table = tmp_path / os.fsdecode(b"t\xff.csv")
    code, out, err = vit("predict", tmp_path / "w.npz", odd, "--top=3", f"--output={table}")
    assert (code, err) == (0, "")
    assert out == f"1 images: {tmp_path}/t\\udcff.csv\n"
    with table.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["label"] for row in rows} == {names[0], names[1], "\\ud800"}
    assert {row["image"] for row in rows} == {f"{tmp_path}/x\\udcff\x1b.png"}


def test_a_table_that_cannot_be_written_is_one_line(vit, photo, tmp_path):
    gone = tmp_path / "gone.npz"
    assert "names no file" in refused(vit, "predict", gone, photo, "--output=")
    for name in ("n" * 300, "n" * 252):  # the second is too long with the .part beside it alone
        model, params = made()
        weights = tmp_path / "w.npz"
        if not weights.exists():
            vit_jax.save_pretrained(model, params, weights, "google")
        line = refused(vit, "predict", weights, photo, f"--output={tmp_path}/{name}")
        assert line.startswith(f"vit: error: cannot write {tmp_path}/{name}: ")
    line = refused(vit, "predict", gone, photo, f"--output={tmp_path}/\x1b/p.csv")
    assert "there is no folder" in line
    assert "\x1b" not in line


def test_a_device_among_the_images_is_skipped_and_not_waited_for(vit, photo, tmp_path):
    weights, *_ = saved(tmp_path, "softmax")
    os.mkfifo(tmp_path / "pipe.png")
    for other in ("/dev/zero", tmp_path / "pipe.png"):
        (tmp_path / "link.png").unlink(missing_ok=True)
        (tmp_path / "link.png").symlink_to(other)
        found = tmp_path / "folder"
        found.mkdir(exist_ok=True)
        (found / "a.png").write_bytes(photo.read_bytes())
        (found / "b.png").unlink(missing_ok=True)
        (found / "b.png").symlink_to(other)
        code, out, err = vit("predict", weights, found)
        assert (code, len(out.splitlines())) == (0, 1)
        assert err == f"{found}: 1 file is left out: 1 pipe, device or broken link\n"


# -- code that a file names ------------------------------------------------------------------------


def test_operations_that_a_file_names_run_only_where_the_user_trusts_it(
    vit, photo, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "canary_ops.py").write_text(
        "open('sang', 'w').close()\ndef turned(image, rng, size):\n    return image[::-1]\n"
    )
    model, params = made()
    data = dataclasses.replace(WHOLE, written="decode|canary_ops:turned")
    vit_jax.save_pretrained(
        dataclasses.replace(model, data_config=data), params, tmp_path / "w.npz", "google"
    )
    plain = dataclasses.replace(model, data_config=WHOLE)
    vit_jax.save_pretrained(plain, params, tmp_path / "plain.npz", "google")
    line = refused(vit, "predict", "w.npz", photo)
    assert "'canary_ops:turned' is not imported" in line
    assert "--trust-code" in line
    assert not (tmp_path / "sang").exists()
    assert "canary_ops" not in sys.modules
    upside_down = tmp_path / "u.png"
    upside_down.write_bytes(encoded(smooth(12, 12)[::-1], "PNG"))
    trusted = table_of(vit, "w.npz", photo, tmp_path, "--trust-code", "--top=3")
    assert (tmp_path / "sang").exists()
    assert trusted == table_of(vit, "plain.npz", upside_down, tmp_path, "--top=3")
    assert trusted != table_of(vit, "plain.npz", photo, tmp_path, "--top=3")


@pytest.mark.parametrize(("channels", "suffix"), [(6, ".npy"), (4, ".png")])
def test_images_of_more_channels_are_predicted_as_training_reads_them(channels, suffix, tmp_path):
    model = vit_jax.create_model(
        "vit_mu_patch4_8", image_size=8, channels=channels, num_classes=3, hidden_size=8,
        num_heads=2, num_layers=1, mlp_dim=8,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.abstract_params
    )
    save_pretrained(model, params, tmp_path / "weights", to="orbax")
    pixels = rng.integers(0, 256, (2, 8, 8, channels), dtype=np.uint8)
    files = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for file, one in zip(files, pixels, strict=True):
        if suffix == ".npy":
            np.save(file, one)
        else:
            Image.fromarray(one).save(file)
    found = vit_jax.predict(tmp_path / "weights", files, top=3)
    model, params, _ = vit_jax.load_pretrained(tmp_path / "weights", say=None)
    logits, _ = model.apply(params, model.prepare(list(pixels)))
    for row, image in zip(np.asarray(jax.nn.softmax(logits)), found, strict=True):
        assert [one.number for one in image] == np.argsort(-row).tolist()
        assert [one.value for one in image] == pytest.approx(np.sort(row)[::-1], abs=2e-6)
    wrong = tmp_path / "grey.npy"
    np.save(wrong, pixels[0, ..., :1])
    with pytest.raises(UserError, match=str(channels)):
        vit_jax.predict(tmp_path / "weights", [wrong])


def test_predictions_as_json_and_features_are_the_models_own(tmp_path, capsys):
    model = vit_jax.create_model("vit_mu_patch4_8", image_size=8, num_classes=3, hidden_size=8,
                                 num_heads=2, num_layers=1, mlp_dim=8)  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.abstract_params
    )
    save_pretrained(model, params, tmp_path / "weights", to="orbax")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    command = ["predict", str(tmp_path / "weights"), *files, "--batch-size=2"]
    assert cli.main([*command, "--json", "--top=2"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = vit_jax.predict(tmp_path / "weights", files, top=2)
    assert [one["image"] for one in told] == files
    assert [one["predictions"] for one in told] == [[p._asdict() for p in row] for row in found]
    assert cli.main([*command, f"--features={tmp_path}/features.npz"]) == 0
    arrays = np.load(tmp_path / "features.npz")
    model, params, _ = vit_jax.load_pretrained(tmp_path / "weights", say=None)
    _, out = model.apply(params, model.prepare(files))
    np.testing.assert_allclose(arrays["features"], out["pre_logits"], atol=1e-5)
    assert arrays["images"].tolist() == files
    capsys.readouterr()
    assert cli.main([*command, "--json", f"--features={tmp_path}/a.npz"]) == 2
    assert "name one of them" in capsys.readouterr().err
