"""`load_pretrained`: weights into another head, resolution, number of channels, layout or mesh."""

import jax
import numpy as np
import pytest
from linen_big_vision import BigVisionViT
from linen_google import GoogleMixer, GoogleViT
from made_weights import fill, names_and_shapes, save_npz

import vit_jax
from tests.digits_run import tiny_config
from vit_jax.checkpoint.tree import flatten, nest, stack, unstack
from vit_jax.errors import UserError
from vit_jax.models.position import resize_grid
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import state_shardings
from vit_jax.pretrained.weights import open_weights

# Wide enough for parameters that the rules split: 128 x 512 is their smallest.
VIT = GoogleViT(8, 128, 2, 4, 512, 5, rep_size=128)
SIDES = (16, 24)


@pytest.fixture(scope="module")
def flat():
    return fill(names_and_shapes(VIT, SIDES))


@pytest.fixture(scope="module")
def file(flat, tmp_path_factory):
    """A file of Google's with a hidden layer before its head, trained on 16 x 24 pixels."""
    path = tmp_path_factory.mktemp("weights") / "made.npz"
    save_npz(path, flat)
    return path


@pytest.fixture
def load(file):
    """Loads it: (model, flat params, report)."""

    def load(path=file, **arguments):
        arguments = {"source_image_size": SIDES} | arguments
        model, params, report = vit_jax.load_pretrained(path, say=None, **arguments)
        assert_every_parameter_has_a_fate(model, report)
        return model, flatten(params), report

    return load


def assert_every_parameter_has_a_fate(model, report):
    """One each, and no fate but `unused` is that of something else."""
    parameters = unstack(flatten(model.abstract_params)).keys()
    assert {p for p, fate in report.fates.items() if not fate.startswith("unused")} == parameters
    assert sum(report.counts().values()) == len(report.fates)


def images_for(model, seed=1):
    shape = (2, *model.config.image_size, model.config.channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def logits(model, params, images):
    return np.asarray(jax.jit(model.apply)(nest(params), images)[0])


def fates(report, *but):
    """Fates other than these."""
    return {path: fate for path, fate in report.fates.items() if fate not in but}


def assert_same(params, others, but=()):
    assert params.keys() == others.keys()
    for path in params:
        if path not in but:
            np.testing.assert_array_equal(params[path], others[path], err_msg=path)


# -- the head --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [None, 5])
def test_the_head_is_kept_for_the_same_number_of_classes(load, flat, num_classes):
    model, params, report = load(num_classes=num_classes)
    np.testing.assert_array_equal(params["head/kernel"], flat["head/kernel"])
    assert model.config.pre_logits
    assert fates(report, "loaded") == {}


def test_another_number_of_classes_gives_a_zero_head_without_the_hidden_layer(load):
    _, whole, _ = load()
    model, params, report = load(num_classes=7, head_bias=-3.0)
    assert params["head/kernel"].shape == (128, 7)
    assert not params["head/kernel"].any()
    np.testing.assert_array_equal(params["head/bias"], np.full(7, -3.0, np.float32))
    assert fates(report, "loaded") == {
        "head/kernel": "re-initialised (other classes)",
        "head/bias": "re-initialised (other classes)",
        "pre_logits/kernel": "unused (another head)",
        "pre_logits/bias": "unused (another head)",
    }
    body = {p for p in whole if not p.startswith(("head", "pre_logits"))}
    assert_same({p: params[p] for p in body}, {p: whole[p] for p in body})
    np.testing.assert_array_equal(logits(model, params, images_for(model)), np.full((2, 7), -3.0))


def test_no_classes_takes_the_head_away_and_gives_features(load):
    model, params, report = load(num_classes=0)
    assert not any(path.startswith(("head", "pre_logits")) for path in params)
    assert set(fates(report, "loaded").values()) == {"unused (another head)"}
    assert len(fates(report, "loaded")) == 4
    assert logits(model, params, images_for(model)).shape == (2, 128)


# -- resolution and channels -----------------------------------------------------------------------


def test_another_image_size_interpolates_positions_as_their_code_base_does(load):
    _, whole, _ = load()
    model, params, report = load(image_size=(40, 32))
    grid = whole["pos_embed/grid"]
    assert grid.shape == (2, 3, 128)
    wanted = resize_grid(np.asarray(grid), (5, 4), "google")
    np.testing.assert_array_equal(params["pos_embed/grid"], wanted)
    corners = np.ix_([0, -1], [0, -1])
    np.testing.assert_allclose(wanted[corners], np.asarray(grid)[corners], atol=1e-6)
    assert fates(report, "loaded") == {"pos_embed/grid": "resized (2 x 3 to 5 x 4, google)"}
    assert_same({**params, "pos_embed/grid": 0}, {**whole, "pos_embed/grid": 0})
    assert model.config.image_size == (40, 32)
    assert np.isfinite(logits(model, params, images_for(model))).all()


def test_an_image_size_that_patches_do_not_tile_is_refused_with_those_that_do(file):
    with pytest.raises(UserError, match=r"30.*patch_size 8; \(24, 24\) or \(32, 32\) would work"):
        vit_jax.load_pretrained(file, source_image_size=SIDES, image_size=30, say=None)


def test_a_mixer_at_another_resolution_is_refused_by_name(tmp_path):
    module = GoogleMixer(8, 32, 1, 20, 48, 5)
    save_npz(tmp_path / "mixer.npz", fill(names_and_shapes(module, 16)))
    with pytest.raises(UserError, match="does not fit the model: 3 tensors") as refused:
        vit_jax.load_pretrained(tmp_path / "mixer.npz", image_size=24, say=None)
    line = "encoder/block00/token_mixing/fc1/kernel [9, 20]: the weights have it as [4, 20]"
    assert line in str(refused.value)


def test_one_channel_for_three_sums_the_kernel_so_grey_images_look_the_same(load):
    model, params, report = load(channels=1)
    original, whole, _ = load()
    assert fates(report, "loaded") == {"embed/kernel": "adapted (3 to 1 channels)"}
    grey = images_for(model)
    np.testing.assert_allclose(
        logits(model, params, grey), logits(original, whole, np.repeat(grey, 3, -1)), atol=1e-5
    )


def test_four_channels_for_three_repeat_the_kernel_at_its_size(load):
    _, whole, _ = load()
    _, params, report = load(channels=4)
    assert fates(report, "loaded") == {"embed/kernel": "adapted (3 to 4 channels)"}
    kernel, wider = np.asarray(whole["embed/kernel"]), np.asarray(params["embed/kernel"])
    np.testing.assert_allclose(wider[:, :, :3], kernel * 0.75, rtol=1e-6)
    np.testing.assert_allclose(wider[:, :, 3], kernel[:, :, 0] * 0.75, rtol=1e-6)


def test_three_channels_for_one_see_grey_images_as_before(load, tmp_path):
    module = BigVisionViT(8, 32, 1, 2, 48, 5)
    save_npz(tmp_path / "grey.npz", fill(names_and_shapes(module, SIDES, channels=1)))
    original, whole, _ = load(tmp_path / "grey.npz")
    model, params, report = load(tmp_path / "grey.npz", channels=3)
    assert (original.config.channels, model.config.channels) == (1, 3)
    assert fates(report, "loaded") == {"embed/kernel": "adapted (1 to 3 channels)"}
    grey = images_for(original)
    np.testing.assert_allclose(
        logits(model, params, np.repeat(grey, 3, -1)), logits(original, whole, grey), atol=1e-5
    )


def test_a_hybrids_first_convolution_takes_other_channels_too(load, tmp_path):
    module = GoogleViT(2, 32, 1, 2, 48, 5, resnet=())
    save_npz(tmp_path / "hybrid.npz", fill(names_and_shapes(module, SIDES)))
    _, whole, _ = load(tmp_path / "hybrid.npz")
    _, params, report = load(tmp_path / "hybrid.npz", channels=1)
    root = "backbone/root/conv/kernel"
    assert fates(report, "loaded") == {root: "adapted (3 to 1 channels)"}
    np.testing.assert_allclose(params[root][:, :, 0], np.sum(whole[root], 2), atol=1e-6)


# -- the run's own fields, devices -----------------------------------------------------------------


def test_scanned_layers_are_the_listed_ones_stacked_and_compute_the_same(load):
    listed, whole, _ = load()
    model, params, report = load(scan=True)
    assert any(path.startswith("encoder/block/") for path in params)
    assert_same(params, stack(whole))
    assert fates(report, "loaded") == {}
    images = images_for(model)
    np.testing.assert_allclose(
        logits(model, params, images), logits(listed, whole, images), atol=1e-5
    )


def test_bfloat16_is_of_the_arithmetic_and_parameters_stay_float32(load):
    exact, whole, _ = load()
    model, params, report = load(dtype="bfloat16")
    assert_same(params, whole)
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    assert report.warnings == []
    images = images_for(model)
    rounded, wanted = (logits(m, p, images) for m, p in ((model, params), (exact, whole)))
    assert 0 < np.abs(rounded - wanted).max() < 0.2


@pytest.mark.parametrize("scan", [False, True], ids=["listed", "scanned"])
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 2, 4), (8, 1, 1)], ids=str)
def test_on_a_mesh_values_are_the_same_and_shardings_those_of_the_rules(load, sizes, scan):
    mesh = make_mesh(sizes)
    _, whole, _ = load(scan=scan)
    model, params, _ = load(scan=scan, mesh=mesh)
    assert_same(params, whole)
    state = {"params": model.abstract_params}
    rules = flatten(state_shardings(model.family, state, mesh, 2**16)["params"])
    for path, x in params.items():
        assert x.sharding == rules[path], path
    fc1 = params[f"encoder/{'block' if scan else 'block01'}/mlp/fc1/kernel"]
    assert len(fc1.addressable_shards) == 8
    of_one = (128 // sizes[1], 512 // sizes[2])
    assert {shard.data.shape[-2:] for shard in fc1.addressable_shards} == {of_one}


def test_a_fresh_head_and_resized_positions_reach_a_mesh(load):
    _, whole, _ = load(num_classes=7, image_size=32)
    _, params, _ = load(num_classes=7, image_size=32, mesh=make_mesh((1, 8, 1)))
    assert_same(params, whole)


def test_the_table_is_said_line_by_line_and_none_is_silence(file, capsys):
    lines = []
    vit_jax.load_pretrained(
        file, num_classes=7, image_size=32, source_image_size=SIDES, say=lines.append
    )
    assert lines[0].endswith("loaded, 2 re-initialised, 1 resized, 2 unused")
    assert "  resized (2 x 3 to 4 x 4, google): pos_embed/grid" in lines
    assert len(lines) == 1 + 1 + 2 + 2
    assert capsys.readouterr().out == ""
    vit_jax.load_pretrained(file, source_image_size=SIDES)
    assert capsys.readouterr().out.endswith(" loaded\n")


# -- own runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run of four steps that kept two checkpoints."""
    folder = tmp_path_factory.mktemp("work")
    config = tiny_config(total_steps=4, checkpoint__every_steps=2)
    vit_jax.train(config, folder, devices=jax.devices()[:1], quiet=True)
    return folder


def test_an_own_work_folder_is_its_last_checkpoint(work, load):
    model, params, report = load(work)
    assert (model.config.num_layers, model.config.scan) == (2, False)
    assert fates(report, "loaded") == {}
    assert report.source.endswith("checkpoints/4")
    for same in (work / "checkpoints", work / "checkpoints" / "4"):
        assert_same(load(same)[1], params)
    assert load(work / "checkpoints" / "2")[2].source.endswith("checkpoints/2")
    other = load(work / "checkpoints" / "2")[1]
    assert np.abs(params["head/kernel"] - other["head/kernel"]).max() > 0


def test_an_own_run_loads_into_another_head_size_and_layout_on_a_mesh(work, load):
    _, whole, _ = load(work)
    model, params, report = load(
        work, num_classes=3, image_size=(12, 16), scan=True, mesh=make_mesh((1, 8, 1))
    )
    assert model.config.image_size == (12, 16)
    assert set(fates(report, "loaded")) == {"pos_embed/grid", "head/kernel", "head/bias"}
    assert_same(
        {p: x for p, x in params.items() if p.startswith("encoder/")},
        {p: x for p, x in stack(whole).items() if p.startswith("encoder/")},
    )


def test_names_of_classes_are_those_of_the_run_and_go_into_every_layout_that_has_a_place(
    work, tmp_path
):
    weights = open_weights(work)
    assert weights.classes == [str(digit) for digit in range(10)]
    names = ["zero", "one", "two", *map(str, range(3, 10))]
    model, params, _ = vit_jax.load_pretrained(work, say=None)
    for layout, path in {
        "google": "digits.npz", "timm": "digits.safetensors", "huggingface": "hub", "orbax": "own"
    }.items():  # fmt: skip
        vit_jax.save_pretrained(model, params, tmp_path / path, layout, classes=names)
        assert open_weights(tmp_path / path).classes == names, layout


def test_nothing_there_and_a_name_misspelt_are_told(tmp_path):
    with pytest.raises(UserError, match=r"vit_jax.list_pretrained\(\) has the names"):
        vit_jax.load_pretrained(tmp_path / "none.npz")
    name = vit_jax.list_pretrained()[0]
    name = getattr(name, "name", name)
    with pytest.raises(UserError, match="did you mean") as refused:
        vit_jax.load_pretrained(name[:-1] + "_")
    assert name in str(refused.value)
