"""What a file does not state, a user says: by one key in every command, and refusals name it."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_weights import fill
from safetensors.numpy import save_file

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.pretrained.load import fill as filled
from vit_jax.pretrained.weights import open_weights
from vit_jax.training.start import open_origin

SHAPES = json.loads((Path(__file__).parent / "golden/timm_vit.json").read_text())["shapes"]
WIDTH, PATCH = 80, 4  # of no published model


def timm_file(path: Path, patches: int, width: int = WIDTH) -> Path:
    """A bare file of timm: two blocks, positions for so many patches and a class token."""
    swap = {48: width, 144: 3 * width, 192: 4 * width}
    shapes = {name: [swap.get(n, n) for n in shape] for name, shape in SHAPES.items()}
    shapes["pos_embed"] = [1, patches + 1, width]
    shapes["patch_embed.proj.weight"] = [width, 3, PATCH, PATCH]
    save_file(fill(shapes, layout="torch"), path)
    return path


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    return timm_file(tmp_path_factory.mktemp("square") / "square.safetensors", 36)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Trained on 8 x 28 pixels: 2 x 7 patches."""
    return timm_file(tmp_path_factory.mktemp("wide") / "wide.safetensors", 14)


def origin(path, folder, **changes):
    """The weights of a run with `init`, as it opens them."""
    config = tiny_config(
        init=str(path), model__name="vit", model__hidden_size=WIDTH, model__mlp_dim=4 * WIDTH,
        model__patch_size=PATCH, **changes,
    )  # fmt: skip
    return open_origin(config, folder)


HEADS = "--config.model.num_heads=N (in Python: num_heads=N)"
SIZE = "--config.source_image_size='(HEIGHT, WIDTH)' (in Python: source_image_size=(HEIGHT, WIDTH))"


def refused(call, *arguments, **more) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_heads_are_said_by_one_key_everywhere(square, tmp_path, capsys):
    for call in (
        lambda **more: vit_jax.load_pretrained(square, say=None, **more),
        lambda **more: open_weights(square, **more),
        lambda **more: origin(
            square, tmp_path, model__image_size=24,
            **{f"model__{key}": value for key, value in more.items()},
        ),
    ):  # fmt: skip
        assert HEADS in refused(call)
        found = call(num_heads=5)
        model = found[0] if isinstance(found, tuple) else found.model
        assert model.config.num_heads == 5
    image, own, back = tmp_path / "image.npy", tmp_path / "own", tmp_path / "back.npz"
    np.save(image, np.zeros((24, 24, 3), np.uint8))
    for command in (
        ["inspect", square], ["convert", square, own, "--to=orbax"], ["predict", square, image],
    ):  # fmt: skip
        assert cli.main([*map(str, command)]) == 2
        assert HEADS in capsys.readouterr().err
    given = "--config.model.num_heads=5"
    assert cli.main(["inspect", str(square), given]) == 0
    assert cli.main(["convert", str(square), str(back), "--to=google", given]) == 0
    assert open_weights(back).model.config.num_heads == 5  # the written file states them


def test_the_grid_of_the_weights_is_said_by_one_key_everywhere(wide, tmp_path, capsys):
    run = {"model__num_heads": 5, "model__image_size": 24}
    for call in (
        lambda **more: open_weights(wide, num_heads=5, **more),
        lambda **more: origin(wide, tmp_path, **run, **more),
    ):
        assert SIZE in refused(call)
        assert call(source_image_size=(8, 28)).model.config.grid == (2, 7)
        assert "14 patches, not for the 2 x 6" in refused(call, source_image_size=(8, 24))
    line = refused(origin, wide, tmp_path, **run, source_image_size="8x28")
    assert line == "source_image_size is a number or (height, width), not '8x28'"
    heads = "--config.model.num_heads=5"
    assert cli.main(["inspect", str(wide), heads]) == 2
    assert SIZE in capsys.readouterr().err
    for key in ("source_image_size", "model.image_size"):  # in such commands they mean the same
        assert cli.main(["inspect", str(wide), heads, f"--config.{key}=(8, 28)"]) == 0
        assert "image_size=(8, 28)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("patches", "images", "grid"),
    [
        (36, (16, 36), (4, 9)),  # as many as the run's: not 6 x 6
        (36, (24, 24), (6, 6)),
        (36, (32, 32), (6, 6)),
        (14, (8, 28), (2, 7)),
        (14, (16, 56), (2, 7)),  # of the proportions of the run's
        (36, (16, 40), (6, 6)),  # a square, as most weights are
    ],
)
def test_a_silent_file_has_the_grid_of_the_runs_images_if_it_can(tmp_path, patches, images, grid):
    path = timm_file(tmp_path / "a.safetensors", patches)
    weights = origin(path, tmp_path, model__num_heads=5, model__image_size=images)
    assert weights.model.config.grid == grid
    notes = [note for note in weights.notes if "grid of its positions" in note]
    assert bool(notes) == (grid != (6, 6))
    assert all(SIZE in note for note in notes)


def test_a_file_that_states_its_grid_is_believed(wide, tmp_path):
    model, params, _ = vit_jax.load_pretrained(
        wide, num_heads=5, source_image_size=(8, 28), say=None
    )
    vit_jax.save_pretrained(model, params, tmp_path / "told.safetensors", "timm")
    for images in ((28, 8), (24, 24)):
        weights = origin(tmp_path / "told.safetensors", tmp_path, model__image_size=images)
        assert weights.model.config.grid == (2, 7)
        assert weights.model.config.num_heads == 5


def test_another_pooling_than_the_weights_names_the_key_that_makes_it_fit(tmp_path):
    model = vit_jax.create_model("vit_mu_patch4_24", num_classes=0)
    params = model.init()
    for to, name in (("google", "a.npz"), ("timm", "a.safetensors")):
        vit_jax.save_pretrained(model, params, tmp_path / name, to)
        weights = open_weights(tmp_path / name)
        gap = vit_jax.create_model("vit_mu_patch4_24", num_classes=3, pool="gap")
        line = refused(filled, weights, gap, keep_head=False)
        assert "pools by 'cls', the model here by 'gap': it fits with " in line
        assert line.endswith("--config.model.idle_class_token=True")
        idle = vit_jax.create_model(
            "vit_mu_patch4_24", num_classes=3, pool="gap", idle_class_token=True
        )
        _, report = filled(weights, idle, keep_head=False)
        assert report.counts() == {"loaded": len(params_of(params)), "re-initialised": 2}
        line = refused(filled, weights, vit_jax.create_model("vit_mu_patch4_24", pool="map"))
        assert line.endswith("it fits with --config.model.pool=cls")
        # What is said of the weights themselves keeps the token.
        assert open_weights(tmp_path / name, pool="gap").model.config.idle_class_token


def params_of(params) -> list:
    import jax

    return jax.tree.leaves(params)


def test_a_bare_file_pools_as_the_run_that_starts_from_it(square, tmp_path):
    run = {"model__num_heads": 5, "model__image_size": 24, "model__pool": "gap"}
    config = origin(square, tmp_path, **run).model.config
    assert (config.pool, config.idle_class_token) == ("gap", True)


def test_a_value_that_the_file_contradicts_is_refused_with_the_files_own(tmp_path):
    model = vit_jax.create_model("vit_mu_patch4_24", num_layers=2)
    vit_jax.save_pretrained(model, model.init(), tmp_path / "a.npz", "google")
    line = refused(open_weights, tmp_path / "a.npz", num_layers=3)
    assert line.endswith("; model.num_layers=2 would fit")
    assert "16 missing" in line


@pytest.mark.parametrize("name", ["hf_vit", "timm_folder"])
def test_an_activation_without_a_counterpart_names_the_key_that_replaces_it(tmp_path, name):
    told = json.loads((Path(__file__).parent / f"golden/{name}.json").read_text())
    save_file(fill(told["shapes"], layout="torch"), tmp_path / "model.safetensors")
    config = told["config"]
    config |= {"hidden_act": "relu"}
    config["model_args"] = config.get("model_args", {}) | {"act_layer": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "--config.model.gelu=exact (in Python: gelu=exact)" in refused(open_weights, tmp_path)
    assert open_weights(tmp_path, gelu="tanh").model.config.gelu == "tanh"


def test_a_key_that_says_nothing_of_weights_is_refused(square, capsys):
    assert cli.main(["inspect", str(square), "--config.optimizer.lr=1"]) == 2
    assert "--config.optimizer.lr is not read here" in capsys.readouterr().err


def test_values_are_those_of_the_heads_that_were_said(square):
    kernel = open_weights(square, num_heads=5).read("encoder/block01/attention/qkv/kernel")
    other = open_weights(square, num_heads=4).read("encoder/block01/attention/qkv/kernel")
    assert (kernel.shape, other.shape) == ((80, 3, 5, 16), (80, 3, 4, 20))
    np.testing.assert_array_equal(kernel.reshape(80, 3, 80), other.reshape(80, 3, 80))
