"""What `vit data check --statistics` says, against NumPy on all values at once."""

import json

import numpy as np
import pytest
from made_images import encoded, folder_of_images
from PIL import Image

from tests.digits_run import tiny_config
from vit_jax.cli import main
from vit_jax.data.decode import decode
from vit_jax.data.levels import Levels
from vit_jax.errors import UserError
from vit_jax.preparing.check import check
from vit_jax.preparing.check import lines as of_check
from vit_jax.preparing.statistics import Tally, lines
from vit_jax.training.run import run_of

RNG = np.random.default_rng(0)
IMAGES = [RNG.gamma(2, scale, (n + 9, 11, 3)) * [1, 1.5, 2] for n, scale in enumerate([90, 200])]


def told(images):
    tally = Tally()
    for image in images:
        tally.add(image)
    return tally.report()


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(np.uint8, 1e-8), (np.uint16, 1e-8), (np.int16, 1e-8), (np.int32, 2**-7),
     (np.float32, 2**-7), (np.float64, 2**-7)],
)  # fmt: skip
def test_each_channel_is_described_as_numpy_does(dtype, rtol):
    images = [(image - 50 * np.issubdtype(dtype, np.signedinteger)).clip(-99, 250).astype(dtype)
              for image in IMAGES]  # fmt: skip
    (one,) = told(images)["values"].values()
    assert (one["images"], one["not_finite"]) == (2, 0)
    for channel, said in enumerate(one["channels"]):
        values = np.concatenate([image[..., channel].ravel() for image in images]).astype(float)
        exact = [values.min(), values.max(), values.mean(), values.std()]
        np.testing.assert_allclose([said[n] for n in ("min", "max", "mean", "std")], exact, 1e-6)
        tails = np.percentile(values, [0.1, 99.9], method="inverted_cdf")
        of_tails = [said["percentile_0.1"], said["percentile_99.9"]]
        np.testing.assert_allclose(of_tails, tails, rtol)


def test_the_mean_and_std_to_write_are_those_of_the_decoded_pixels():
    images = [image.astype(np.uint16) for image in IMAGES]
    report = told(images)
    levels = Levels.between(*report["decode"])
    pixels = np.concatenate([levels.eight_bits(image).reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(report["mean"], pixels.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(report["std"], pixels.std(axis=0), atol=1e-4)
    low, high = (ends[0] if len(ends) == 1 else tuple(ends) for ends in report["decode"])
    assert any(f"='decode({low}, {high})|…'" in line for line in lines("train", report))


def test_channels_of_very_different_widths_have_a_range_each_and_flat_ones_none():
    wide = RNG.integers(0, 4096, (40, 40, 2)).astype(np.uint16)
    wide[..., 1] //= 64
    low, high = told([wide])["decode"]
    assert (len(low), len(high)) == (2, 2)
    assert high[1] < 64 < high[0]
    flat = told([np.full((4, 4, 1), 700, np.uint16)])
    assert (flat["decode"], flat["mean"]) == (None, None)
    assert "no range can be proposed" in lines("train", flat)[-1]


def test_what_is_not_finite_is_counted_apart():
    values = RNG.random((8, 8, 1)).astype(np.float32)
    values[0, :3, 0] = np.nan, np.inf, -np.inf
    (one,) = told([values])["values"].values()
    assert one["not_finite"] == 3
    assert one["channels"][0]["max"] < 1


# -- as a command, and at a run's start ----------------------------------------------------


@pytest.fixture
def dim(tmp_path):
    """A folder of grey images of 16 bits with values up to 300."""
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "dim" / split / name).mkdir(parents=True)
            for number in range(3):
                values = RNG.integers(20, 301, (9, 8)).astype(np.uint16)
                file = tmp_path / "dim" / split / name / f"{number}.png"
                Image.fromarray(values).save(file)
    return f"folder:{tmp_path}/dim"


def test_the_command_prints_what_to_write_and_notes_values_that_hardly_use_the_range(dim, capsys):
    assert main(["data", "check", dim, "--statistics"]) == 0
    said = capsys.readouterr().out
    assert "train: note: values of uint16 from 2" in said
    assert said.count("--config.data.train.pipeline='decode(2") == 1
    assert said.count("--config.data.eval.pipeline='decode(2") == 1
    assert said.count("to write: --config.data.mean=0.") == 1
    assert main(["data", "check", dim, "--statistics", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [note["split"] for note in report["notes"]] == ["train", "val"]
    assert report["splits"]["train"]["statistics"]["values"]["uint16"]["images"] == 6
    assert "statistics" not in check(dim)["splits"]["train"]


def test_a_set_of_8_bits_has_no_notes_and_no_range(tmp_path):
    counts = {"train/a": 2, "train/b": 1}
    report = check(f"folder:{folder_of_images(tmp_path / 'p', counts)}", statistics=True)
    assert report["notes"] == []
    assert report["splits"]["train"]["statistics"]["decode"] is None
    assert not any("decode(" in line for line in of_check(report))


def test_files_of_floats_are_noted_with_what_training_needs(tmp_path):
    (tmp_path / "p/train/a").mkdir(parents=True)
    (tmp_path / "p/train/a/1.tif").write_bytes(encoded(np.ones((9, 9), np.float32), "TIFF"))
    report = check(f"folder:{tmp_path}/p")
    assert report["problems"] == 0
    assert "decode(low, high)" in report["notes"][-1]["note"]
    assert report["splits"]["train"]["kinds"]["float32"] == 1


def config_on(source, train="decode", evaluation="decode"):
    return tiny_config(
        data__train__source=source, data__train__pipeline=f"{train}|resize",
        data__eval__pipeline=f"{evaluation}|resize", model__channels=1, batch_size=8,
    )  # fmt: skip


def warned(config):
    return [line for line in run_of(config).said if line.startswith("warning")]


def test_a_run_warns_where_decoding_keeps_little_of_the_values(dim):
    (line,) = warned(config_on(dim))
    assert "of uint16" in line
    assert "become 0 to 1 of 255" in line
    assert warned(config_on(dim, "decode(0, 300)", "decode(0, 300)")) == []
    assert len(warned(config_on(dim, "decode(0, 65535)", "decode(0, 65535)"))) == 1
    assert len(warned(config_on(dim, "decode(400, 900)", "decode(400, 900)"))) == 1
    assert warned(config_on("digits")) == []


@pytest.mark.parametrize(
    ("train", "evaluation", "says"),
    [
        ("decode(0, 300)", "decode", "the same source by different ranges"),
        ("decode(0, 300)", "decode(0, 299)", "the same source by different ranges"),
        ("decode((0, 0), 300)", "decode((0, 0), 300)", "2 ranges, the images have 1 channel:"),
        ("decode(9, 3)", "decode(9, 3)", "low is less than high"),
    ],
)
def test_ranges_that_do_not_fit_are_refused_before_a_run_starts(dim, train, evaluation, says):
    with pytest.raises(UserError, match="decode") as error:
        run_of(config_on(dim, train, evaluation))
    assert says in str(error.value)


def test_floats_without_a_range_are_refused_before_a_run_starts(tmp_path):
    for folder in ("train/a", "train/b", "val/a"):
        (tmp_path / f"p/{folder}").mkdir(parents=True)
        np.save(tmp_path / f"p/{folder}/1.npy", RNG.random((8, 8)))
    with pytest.raises(UserError, match=r"1\.npy: its pixels are floats .*decode\(low, high\)"):
        run_of(config_on(f"folder:{tmp_path}/p"))
    assert warned(config_on(f"folder:{tmp_path}/p", "decode(0, 1)", "decode(0, 1)")) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", float("nan")), ("std", float("inf")), ("std", (0.5, 0.0)), ("mean", float("inf"))],
)
def test_a_mean_or_std_that_makes_no_numbers_is_refused_by_its_key(key, value):
    config = tiny_config()
    with config.unlocked():
        config.data[key] = value
    with pytest.raises(UserError, match=f"data.{key} is a"):
        run_of(config)


def test_the_range_of_a_runs_evaluation_is_what_its_weights_are_shown_with(dim):
    model = run_of(config_on(dim, "decode(0, 300)", "decode(0, 300)")).model
    assert model.data_config.pipeline((8, 8)).startswith("decode(0, 300)|")
    assert decode(np.full((2, 2, 1), 300, np.uint16), 1, Levels.between(0, 300)).max() == 255
