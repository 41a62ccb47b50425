"""Transformations against Pillow, SciPy or their definition; policies against what they draw.

A policy is counted by stand-ins for the rows of its table, each of which notes that it was
called. Limits on counts are four standard deviations, or the 0.999 quantile of chi-square; draws
are fixed by their seeds.
"""

import colorsys
import inspect
import itertools
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import smooth
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.data import augment
from vit_jax.data.declared import OPS
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import UserError

SIZE = (8, 8)
POLICY_OPS = ["randaug", "autoaugment", "trivialaugment", "color_jitter(0.4, 0.4, 0.4, 0.2)",
              "random_erasing(1.0)", "grey", "solarize", "blur", "three_augment"]  # fmt: skip
FACTORS = [0.0, 0.1, 0.37, 0.5, 1.0, 1.4, 1.99, 2.8]


def noise(seed, shape=(40, 56, 3), low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape, np.uint8)


# Noise, noise of few values, a smooth image, and one with a constant channel.
IMAGES = {
    "noise": noise(0),
    "dull": noise(1, low=60, high=90),
    "smooth": smooth(50, 60),
    "flat channel": noise(2) * np.uint8([1, 0, 1]) + np.uint8([0, 77, 0]),
    "grey": noise(3, (33, 20, 1)),
}
each_image = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES.keys())


def pillow(image, function, *arguments):
    """Pillow's `function` of the image, as an array of the same shape."""
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    return np.asarray(function(Image.fromarray(squeezed), *arguments)).reshape(image.shape)


def enhanced(image, kind, factor):
    return pillow(image, lambda picture: kind(picture).enhance(factor))


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


def rng(seed=0):
    return np.random.default_rng(seed)


# -- transformations of values --------------------------------------------------------------


@each_image
def test_auto_contrast_equalize_and_invert_are_pillows(image):
    for ours, theirs in [
        (augment.auto_contrast, ImageOps.autocontrast),
        (augment.equalize, ImageOps.equalize),
        (augment.invert, ImageOps.invert),
    ]:
        np.testing.assert_array_equal(ours(image), pillow(image, theirs))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_each_channel_is_stretched_and_equalized_on_its_own(channels):
    image = noise(4, (30, 40, channels), 20, 200) // np.arange(1, channels + 1, dtype=np.uint8)
    for function in (augment.auto_contrast, augment.equalize):
        alone = [function(image[..., c : c + 1]) for c in range(channels)]
        np.testing.assert_array_equal(function(image), np.concatenate(alone, axis=-1))


@each_image
def test_posterize_and_solarize_are_pillows(image):
    for bits in range(1, 9):
        theirs = pillow(image, ImageOps.posterize, bits)
        np.testing.assert_array_equal(augment.posterize(image, bits), theirs)
    for threshold in (0, 1, 128, 255, 256):
        theirs = pillow(image, ImageOps.solarize, threshold)
        np.testing.assert_array_equal(augment.solarize_above(image, threshold), theirs)


def test_posterize_to_no_bits_is_black_and_to_more_than_eight_changes_nothing():
    image = IMAGES["noise"]
    assert not augment.posterize(image, 0).any()
    for bits in (8, 9, 12):
        np.testing.assert_array_equal(augment.posterize(image, bits), image)


@pytest.mark.parametrize("addition", [0, 33, 110, 165])
def test_solarize_add_raises_the_dark_half(addition):
    image = IMAGES["noise"].astype(int)
    defined = np.where(image < 128, np.minimum(image + addition, 255), image)
    np.testing.assert_array_equal(augment.solarize_add(IMAGES["noise"], addition), defined)


@each_image
@pytest.mark.parametrize("factor", FACTORS)
def test_brightness_contrast_and_sharpness_are_pillows(image, factor):
    for ours, theirs in [
        (augment.brightness, ImageEnhance.Brightness),
        (augment.contrast, ImageEnhance.Contrast),
        (augment.sharpness, ImageEnhance.Sharpness),
    ]:
        np.testing.assert_array_equal(ours(image, factor), enhanced(image, theirs, factor))


@each_image
def test_grey_is_pillows_to_the_last_bit_of_its_weights(image):
    """Pillow's weights have 16 bits, OpenCV's 15: a few pixels in a thousand round otherwise."""
    theirs = pillow(image, lambda picture: picture.convert("L").convert(picture.mode))
    assert difference(augment.greyscale(image), theirs) <= 1
    assert (augment.greyscale(image) != theirs).mean() < 0.005


@each_image
@pytest.mark.parametrize("factor", FACTORS)
def test_color_is_pillows_but_for_that_bit_of_grey(image, factor):
    ours, theirs = augment.color(image, factor), enhanced(image, ImageEnhance.Color, factor)
    assert difference(ours, theirs) <= math.ceil(abs(1 - factor))
    assert (ours != theirs).mean() < 0.005


@pytest.mark.parametrize("fraction", [-0.5, -0.1, 0.0, 0.07, 1 / 3, 0.5])
def test_a_shifted_hue_is_that_of_colorsys(fraction):
    image = noise(5, (9, 11, 3))
    defined = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place] / 255)
        defined[place] = colorsys.hsv_to_rgb((hue + fraction) % 1, saturation, value)
    assert np.abs(augment.shift_hue(image, fraction) - 255 * defined).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_without_three_channels_colours_are_left_alone(channels):
    image = noise(6, (20, 30, channels))
    for made in (
        augment.greyscale(image), augment.color(image, 2.8), augment.shift_hue(image, 0.3),
    ):  # fmt: skip
        np.testing.assert_array_equal(made, image)


# -- transformations of neighbourhoods and places ---------------------------------------------


@each_image
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_a_blur_is_a_gaussian_filter(image, sigma):
    """To rounding, and what four standard deviations leave out."""
    exact = scipy.ndimage.gaussian_filter(
        image.astype(float), (sigma, sigma, 0), mode="nearest", truncate=8
    )
    assert np.abs(augment.gaussian_blur(image, sigma) - exact).max() <= 0.52


def sources(matrix, height, width):
    """Where each pixel of an affine image comes from: float [2, height, width], x before y."""
    y, x = np.mgrid[:height, :width]
    return np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]))


def between_pixels(matrix, height, width):
    """Pixels whose source is within a hundredth of the border between two, where rounding rules."""
    return (np.abs(sources(matrix, height, width) % 1 - 0.5) < 0.01).any(axis=0)


@given(
    st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4),
    st.lists(st.floats(-30, 30), min_size=2, max_size=2),
    st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([0, 128]),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_affine_takes_the_nearest_pixel_or_the_fill(turn, move, channels, fill):
    height, width = 31, 45
    image = noise(7, (height, width, channels))
    matrix = np.column_stack([np.reshape(turn, (2, 2)), move])
    x, y = np.floor(sources(matrix, height, width) + 0.5).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    defined = np.where(
        inside[..., None], image[y.clip(0, height - 1), x.clip(0, width - 1)], np.uint8(fill)
    )
    clear = ~between_pixels(matrix, height, width)
    made = augment.affine(image, matrix, fill)
    np.testing.assert_array_equal(made[clear], defined[clear])


@pytest.mark.parametrize("matrix", [
    [[1, 0.45, 0], [0, 1, 0]], [[1, 0, 0], [-0.3, 1, 0]], [[1, 0, 11], [0, 1, 0]],
    [[1, 0, 0], [0, 1, -7]], [[0.8, 0.6, -3], [-0.6, 0.8, 5]],
])  # fmt: skip
@each_image
def test_affine_is_pillows_transform(image, matrix):
    """Pillow counts from the corner of the first pixel, so that centres are at halves."""
    matrix = np.array(matrix, float)
    height, width = image.shape[:2]
    corners = matrix.copy()
    corners[:, 2] += 0.5 - matrix[:, :2].sum(axis=1) / 2
    fill = 128 if image.shape[-1] == 1 else (128, 128, 128)
    theirs = pillow(image, lambda picture: picture.transform(
        picture.size, Image.Transform.AFFINE, corners.ravel(), fillcolor=fill
    ))  # fmt: skip
    clear = ~between_pixels(matrix, height, width)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(augment.affine(image, matrix, 128)[clear], theirs[clear])


@pytest.mark.parametrize("degrees", [-45, -13.7, 30, 135])
def test_a_turn_is_pillows(degrees):
    image = IMAGES["noise"]
    theirs = pillow(image, lambda picture: picture.rotate(degrees, fillcolor=(128,) * 3))
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, -sin], [sin, cos]])
    middle = np.array([width - 1, height - 1]) / 2
    clear = ~between_pixels(np.column_stack([turn, middle - turn @ middle]), height, width)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(augment.rotate(image, degrees, 128)[clear], theirs[clear])


def test_quarter_turns_are_exact():
    image = noise(8, (9, 9, 3))
    for quarters in range(-3, 4):
        turned = augment.rotate(image, 90 * quarters, 0)
        np.testing.assert_array_equal(turned, np.rot90(image, quarters))


def test_a_move_by_half_a_pixel_doubles_none():
    image = noise(9)
    moved = augment.affine(image, [[1, 0, 2.5], [0, 1, -0.5]], 0)
    np.testing.assert_array_equal(moved[:, :-3], image[:, 3:])
    assert not moved[:, -3:].any()


def test_a_cutout_is_a_clipped_square_about_any_pixel():
    height, width, half = 9, 12, 3
    image = noise(10, (height, width, 2), 0, 128)
    y, x = np.mgrid[:height, :width]
    squares = {
        ((abs(y - cy + 0.5) <= half) & (abs(x - cx + 0.5) <= half)).tobytes(): (cy, cx)
        for cy in range(height)
        for cx in range(width)
    }
    seen = Counter()
    draws = rng()
    for _ in range(20 * height * width):
        made = augment.cutout(image, half, draws, 128)
        cut = (made == 128).all(axis=-1)
        np.testing.assert_array_equal(made[~cut], image[~cut])
        seen[squares[cut.tobytes()]] += 1
    assert_uniform(seen, height * width)


# -- what holds for all ----------------------------------------------------------------------

TABLES = {
    "RANDAUGMENT": (augment.RANDAUGMENT, 1.5),
    "AUTOAUGMENT": (augment.AUTOAUGMENT, 0.9),
    "TRIVIALAUGMENT": (augment.TRIVIALAUGMENT, 0.8),
}
ROWS = [(row, s) for table, s in TABLES.values() for row in table.values()]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_row_and_operation_keeps_shape_type_and_its_input(height, width, channels, seed):
    image = noise(seed, (height, width, channels))
    before = image.copy()
    image.flags.writeable = False
    made = [row(image, strength, rng(seed)) for row, strength in ROWS]
    made += [parse(f"decode|{text}", SIZE)(image, rng(seed)) for text in POLICY_OPS]
    for one in made:
        assert one.dtype == np.uint8
        assert one.shape == before.shape
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", TABLES)
def test_one_channel_gives_what_three_equal_channels_give(name):
    table, strength = TABLES[name]
    image = smooth(40, 50)[..., :1] // 2 + noise(11, (40, 50, 1), 0, 60)
    for key, row in table.items():
        one = row(image, strength, rng(3))
        three = row(np.repeat(image, 3, axis=-1), strength, rng(3))
        np.testing.assert_array_equal(np.repeat(one, 3, axis=-1), three, err_msg=key)


@pytest.mark.parametrize("text", POLICY_OPS)
def test_mirrored_and_transposed_views_are_taken_as_any_image(text):
    image = smooth(30, 40)
    pipeline = parse(f"decode|{text}", SIZE)
    for view in (image[:, ::-1], image[::-1], image.transpose(1, 0, 2)):
        for seed in range(20):
            made, same = pipeline(view, rng(seed)), pipeline(view.copy(order="C"), rng(seed))
            np.testing.assert_array_equal(made, same)


@pytest.mark.parametrize("text", POLICY_OPS)
def test_the_same_random_state_gives_the_same_image_and_others_differ(text):
    pipeline = parse(f"decode|{text}", SIZE)
    once, again = ([pipeline(smooth(), rng(seed)).tobytes() for seed in range(30)] for _ in "ab")
    assert once == again
    assert len(set(once)) > 1


def test_pipelines_know_these_operations_though_only_ops_is_imported():
    code = "from vit_jax.data.pipeline_text import parse; parse('decode|randaug|blur', (8, 8))"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- policies -------------------------------------------------------------------------------


def assert_uniform(counts, kinds):
    expected = sum(counts.values()) / kinds
    assert expected >= 5
    assert len(counts) == kinds
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < scipy.stats.chi2.ppf(0.999, kinds - 1)


def assert_share(count, number, probability):
    deviation = math.sqrt(number * probability * (1 - probability))
    assert abs(count - number * probability) <= 4 * deviation


@pytest.fixture
def calls(monkeypatch):
    """(name, strength) of each row that a policy applies, in place of applying it."""
    called = []

    def stand_in(name):
        def note(image, strength, rng):
            called.append((name, strength))
            return image

        return note

    for table, _ in TABLES.values():
        for name in table:
            monkeypatch.setitem(table, name, stand_in(name))
    return called


PIXEL = np.zeros((1, 1, 3), np.uint8)


def draw(name, number, *arguments, seed=0):
    draws = rng(seed)
    for _ in range(number):
        OPS[name](PIXEL, draws, SIZE, *arguments)


SIXTEEN = {
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout",
    "SolarizeAdd",
}  # fmt: skip


def test_randaugment_applies_each_of_sixteen_as_often_at_its_magnitude(calls):
    draw("randaug", 4000, 2, 15)
    assert len(calls) == 2 * 4000
    assert {strength for _, strength in calls} == {1.5}
    names = [name for name, _ in calls]
    assert set(names) == SIXTEEN
    assert_uniform(Counter(names), 16)
    # The second does not depend on the first.
    assert_uniform(Counter(zip(names[::2], names[1::2], strict=True)), 256)


@pytest.mark.parametrize("number", [1, 3])
def test_randaugment_applies_as_many_as_asked(calls, number):
    draw("randaug", 50, number)
    assert len(calls) == 50 * number


def test_randaugment_with_a_probability_applies_each_as_often(calls):
    draw("randaug", 3000, 2, 15, 0.5)
    assert_share(len(calls), 2 * 3000, 0.5)
    assert_uniform(Counter(name for name, _ in calls), 16)


@pytest.mark.parametrize(("policy", "magnitude", "name", "expected"), [
    ("RANDAUGMENT", 15, "Rotate", 45), ("RANDAUGMENT", 10, "Rotate", 30),
    ("RANDAUGMENT", 15, "ShearX", 0.45), ("RANDAUGMENT", 15, "ShearY", 0.45),
    ("RANDAUGMENT", 15, "TranslateX", 150), ("RANDAUGMENT", 23, "TranslateY", 230),
    ("RANDAUGMENT", 15, "Color", 2.8), ("RANDAUGMENT", 10, "Contrast", 1.9),
    ("RANDAUGMENT", 5, "Brightness", 1.0), ("RANDAUGMENT", 0, "Sharpness", 0.1),
    ("RANDAUGMENT", 15, "Posterize", 6), ("RANDAUGMENT", 9, "Posterize", 3),
    ("RANDAUGMENT", 15, "Solarize", 384), ("RANDAUGMENT", 5, "Solarize", 128),
    ("RANDAUGMENT", 15, "SolarizeAdd", 165), ("RANDAUGMENT", 15, "Cutout", 60),
    ("AUTOAUGMENT", 9, "TranslateY", 225), ("AUTOAUGMENT", 3, "Cutout", 30),
    ("AUTOAUGMENT", 7, "Rotate", 21), ("AUTOAUGMENT", 3, "SolarizeAdd", 33),
])  # fmt: skip
def test_a_level_of_ten_means(policy, magnitude, name, expected):
    first = strength_of(TABLES[policy][0][name].arguments(magnitude / 10, rng()), name)
    assert abs(first) == pytest.approx(expected, abs=1e-9)


def strength_of(arguments, name):
    """The one number that a row's strength becomes, out of the arguments of its transformation."""
    cells = {"ShearX": (0, 1), "ShearY": (1, 0), "TranslateX": (0, 2), "TranslateY": (1, 2)}
    if name not in cells:
        return arguments[0]
    matrix = np.array(arguments[0], float)
    strength = matrix[cells[name]]
    matrix[cells[name]] = 0
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 1, 0]])  # nothing else changes
    return strength


@pytest.mark.parametrize("policy", TABLES)
def test_turns_shears_and_moves_go_either_way_as_often(policy):
    table, strength = TABLES[policy]
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        draws = rng()
        ways = [strength_of(table[name].arguments(strength, draws), name) for _ in range(400)]
        assert len(set(ways)) == 2
        assert min(ways) == -max(ways)
        assert_share(sum(way > 0 for way in ways), 400, 0.5)


def test_at_magnitude_15_solarize_changes_nothing_and_posterize_keeps_six_bits():
    image = IMAGES["noise"]
    table = augment.RANDAUGMENT
    np.testing.assert_array_equal(table["Solarize"](image, 1.5, rng()), image)
    np.testing.assert_array_equal(table["Posterize"](image, 1.5, rng()), image // 4 * 4)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_what_comes_in_is_grey_but_black_in_trivialaugment(name):
    image = np.full((300, 300, 3), 9, np.uint8)
    for policy, fill in [("RANDAUGMENT", 128), ("AUTOAUGMENT", 128), ("TRIVIALAUGMENT", 0)]:
        table, strength = TABLES[policy]
        made = table[name](image, strength / 2, rng())
        assert set(np.unique(made)) == {9, fill}


@pytest.mark.parametrize("side", [56, 112, 224, 448])
def test_lengths_grow_with_the_image_and_are_the_references_at_224(side):
    image = np.full((side, side, 1), 9, np.uint8)
    moved = augment.RANDAUGMENT["TranslateX"](image, 1.0, rng())
    assert (moved == 128).all(axis=(0, 2)).sum() == 100 * side // 224
    cut = max((augment.RANDAUGMENT["Cutout"](image, 1.0, rng(n)) == 128).sum() for n in range(50))
    assert cut == (2 * (40 * side // 224)) ** 2


def test_autoaugments_v0_has_25_pairs_with_the_totals_of_the_published_table():
    policy = augment.POLICIES["v0"]
    assert [len(pair) for pair in policy] == [2] * 25
    totals = {}
    for name, probability, level in itertools.chain(*policy):
        times, probabilities, levels = totals.get(name, (0, 0.0, 0))
        totals[name] = times + 1, round(probabilities + probability, 1), levels + level
    assert totals == {  # times, probabilities, levels
        "AutoContrast": (2, 1.0, 9), "Equalize": (12, 8.0, 55), "Invert": (1, 0.4, 9),
        "Posterize": (2, 1.2, 8), "Solarize": (8, 4.6, 41), "SolarizeAdd": (2, 1.4, 10),
        "Color": (9, 5.0, 37), "Rotate": (7, 4.6, 39), "ShearX": (2, 0.2, 9),
        "ShearY": (4, 2.6, 14), "TranslateY": (1, 0.8, 9),
    }  # fmt: skip


def test_autoaugment_picks_each_pair_as_often_and_keeps_its_order(calls, monkeypatch):
    monkeypatch.setitem(
        augment.POLICIES, "v0", [(("Invert", 1.0, n), ("Color", 1.0, n)) for n in range(25)]
    )
    draw("autoaugment", 4000)
    assert [name for name, _ in calls] == ["Invert", "Color"] * 4000
    first, second = calls[::2], calls[1::2]
    assert [level for _, level in first] == [level for _, level in second]
    assert_uniform(Counter(level for _, level in first), 25)


def test_autoaugment_applies_each_with_its_probability(calls):
    draw("autoaugment", 20_000)
    expected = Counter()
    for name, probability, level in itertools.chain(*augment.POLICIES["v0"]):
        expected[name, level / 10] += probability / 25
    counts = Counter(calls)
    assert set(counts) == {key for key, mean in expected.items() if mean}
    for key, mean in expected.items():
        assert abs(counts[key] - 20_000 * mean) <= 4 * math.sqrt(20_000 * mean)


def test_trivialaugment_applies_one_of_fourteen_at_one_of_31_strengths(calls):
    draw("trivialaugment", 434 * 30)
    assert len(calls) == 434 * 30
    assert {name for name, _ in calls} == SIXTEEN - {"Invert", "Cutout", "SolarizeAdd"} | {
        "Identity"
    }
    assert {round(strength * 30, 9) for _, strength in calls} == set(range(31))
    assert_uniform(Counter(calls), 14 * 31)


@pytest.mark.parametrize(("name", "middle", "reach"), [
    ("ShearX", 0, 0.99), ("ShearY", 0, 0.99), ("TranslateX", 0, 32), ("TranslateY", 0, 32),
    ("Rotate", 0, 135), ("Color", 1, 0.99), ("Contrast", 1, 0.99), ("Brightness", 1, 0.99),
    ("Sharpness", 1, 0.99),
])  # fmt: skip
def test_trivialaugment_reaches_as_far_either_way(name, middle, reach):
    arguments = augment.TRIVIALAUGMENT[name].arguments
    drawn = {float(strength_of(arguments(1.0, rng(seed)), name)) for seed in range(20)}
    assert sorted(drawn) == pytest.approx([middle - reach, middle + reach])
    assert strength_of(arguments(0.0, rng()), name) == middle


def test_trivialaugment_moves_by_whole_pixels_cut_from_32():
    arguments = augment.TRIVIALAUGMENT["TranslateX"].arguments
    for bin, pixels in [(1, 1), (14, 14), (15, 16), (16, 17), (29, 30), (30, 32)]:
        assert abs(strength_of(arguments(bin / 30, rng()), "TranslateX")) == pixels


def test_trivialaugments_posterize_and_solarize_fall_with_the_strength():
    strengths = [bin / 30 for bin in range(31)]
    bits = [augment.TRIVIALAUGMENT["Posterize"].arguments(s, rng())[0] for s in strengths]
    assert bits == [8 - math.floor(bin / 5 + 0.5) for bin in range(31)]
    thresholds = [augment.TRIVIALAUGMENT["Solarize"].arguments(s, rng())[0] for s in strengths]
    np.testing.assert_allclose(thresholds, np.linspace(255, 0, 31), atol=1e-9)


# -- jitter, erasing, 3-Augment -------------------------------------------------------------


@pytest.fixture
def jitters(monkeypatch):
    """(which, factor) of each change that color_jitter makes, in place of making it."""
    made = []

    def stand_in(which):
        def note(image, factor):
            made.append((which, factor))
            return image

        return note

    table = tuple((stand_in(n), *rest) for n, (_, *rest) in enumerate(augment.JITTERED))
    monkeypatch.setattr(augment, "JITTERED", table)
    return made


@pytest.mark.parametrize("strengths", [(0.4, 0.3, 0.2, 0.1), (1.5, 1.0, 2.0, 0.5)])
def test_jitter_draws_each_factor_evenly_from_its_range(jitters, strengths):
    draw("color_jitter", 1500, *strengths)
    for which, strength in enumerate(strengths):
        factors = [factor for number, factor in jitters if number == which]
        low, high = (max(0, 1 - strength), 1 + strength) if which < 3 else (-strength, strength)
        assert len(factors) == 1500
        assert low <= min(factors) <= max(factors) <= high
        assert scipy.stats.kstest(factors, "uniform", (low, high - low)).pvalue > 0.001


def test_jitter_changes_in_any_order(jitters):
    draw("color_jitter", 2400, 0.4, 0.4, 0.4, 0.1)
    orders = [tuple(n for n, _ in jitters[start : start + 4]) for start in range(0, 9600, 4)]
    assert_uniform(Counter(orders), math.factorial(4))


def test_jitter_without_strength_changes_nothing(jitters):
    draw("color_jitter", 50, 0.4, 0.0, 0.0)
    assert {which for which, _ in jitters} == {0}


def test_jitters_arguments_are_brightness_contrast_saturation_and_hue():
    image = IMAGES["noise"]
    for which, theirs in enumerate(
        [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    ):
        strengths = [0.4 * (which == number) for number in range(4)]
        made = OPS["color_jitter"](image, Highest(), SIZE, *strengths)
        assert difference(made, enhanced(image, theirs, 1.4)) <= 1
    made = OPS["color_jitter"](image, Highest(), SIZE, 0.0, 0.0, 0.0, 0.3)
    np.testing.assert_array_equal(made, augment.shift_hue(image, 0.3))


class Highest:
    """A random state whose uniform draw is its upper bound."""

    def uniform(self, low, high):
        return high

    def permutation(self, number):
        return range(number)


def erased(image, seed, *arguments):
    """(top, left, height, width) of the rectangle that random_erasing changes; None for none."""
    made = OPS["random_erasing"](image, rng(seed), SIZE, *arguments)
    changed = (made != image).any(axis=-1)
    if not changed.any():
        return None
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    assert changed[top:bottom, left:right].all()
    return top, left, bottom - top, right - left


WHITE = np.full((80, 100, 3), 255, np.uint8)


@pytest.mark.parametrize(("low", "high"), [(0.02, 1 / 3), (0.1, 0.2)])
def test_erased_rectangles_have_the_areas_and_aspects_asked_for(low, high):
    found = [erased(WHITE, seed, 1.0, low, high, "grey") for seed in range(600)]
    top, left, h, w = np.array(found).T
    # A side is rounded to whole pixels, half a pixel off at most.
    assert ((h + 0.5) * (w + 0.5) >= low * 80 * 100).all()
    assert ((h - 0.5) * (w - 0.5) <= high * 80 * 100).all()
    assert ((w + 0.5) / (h - 0.5) >= 0.3).all()
    assert ((w - 0.5) / (h + 0.5) <= 1 / 0.3).all()
    assert (w / h).min() < 0.34
    assert (w / h).max() > 2.9
    areas = h * w / (80 * 100)
    assert areas.min() < low + 0.1 * (high - low)
    assert areas.max() > high - 0.1 * (high - low)
    for first, side, whole in [(top, h, 80), (left, w, 100)]:  # as far from one border as the other
        assert abs(np.mean(first - (whole - side - first))) < 4 * whole / math.sqrt(3 * 600)


def test_a_quarter_of_the_images_is_erased():
    found = [erased(WHITE, seed) for seed in range(2000)]
    assert_share(sum(box is not None for box in found), 2000, 0.25)


@pytest.mark.parametrize(("fill", "values"), [("grey", {128}), ("black", {0})])
def test_erasing_fills_with_grey_or_black(fill, values):
    made = OPS["random_erasing"](WHITE, rng(), SIZE, 1.0, 0.2, 0.3, fill)
    assert set(np.unique(made)) == values | {255}


def test_erasing_fills_with_noise_of_all_values():
    image = np.zeros((400, 400, 3), np.uint8)
    made = OPS["random_erasing"](image, rng(), SIZE, 1.0, 0.2, 0.3, "noise")
    noisy = made[(made != 0).any(axis=-1)]
    assert_uniform(Counter(noisy.ravel().tolist()), 256)


def test_an_image_too_narrow_for_any_aspect_is_not_erased():
    assert erased(np.full((200, 2, 3), 255, np.uint8), 0, 1.0, 0.5, 1.0, "grey") is None


@pytest.mark.parametrize(("name", "usual"), [("grey", 0.2), ("solarize", 0.2), ("blur", 0.5)])
def test_grey_solarize_and_blur_happen_as_often_as_asked(name, usual):
    image = noise(12, (6, 6, 3))
    for probability in (usual, 0.0, 0.7, 1.0):
        # The smallest sigmas blur nothing; from 1 on the change is seen.
        arguments = (probability, 1.0) if name == "blur" else (probability,)
        made = [OPS[name](image, rng(seed), SIZE, *arguments) for seed in range(800)]
        assert_share(sum((one != image).any() for one in made), 800, probability)
    assert inspect.signature(OPS[name]).parameters["probability"].default == usual


def test_three_augment_is_grey_solarised_or_blurred_each_as_often():
    image = noise(13, (12, 12, 3))
    solarised = pillow(image, ImageOps.solarize)
    counts = Counter()
    for seed in range(900):
        made = OPS["three_augment"](image, rng(seed), SIZE)
        if (made == made[..., :1]).all():
            counts["grey"] += 1
            assert difference(made[..., 0], np.asarray(Image.fromarray(image).convert("L"))) <= 1
        elif (made == solarised).all():
            counts["solarised"] += 1
        else:
            counts["blurred"] += 1
    assert_uniform(counts, 3)


def test_blurs_are_as_wide_as_asked():
    """Of a point, the second moment is sigma squared; 3-Augment's sigma is 0.1 … 2 pixels."""
    point = np.zeros((41, 41, 1), np.uint8)
    point[20, 20] = 255
    x = np.arange(41) - 20
    widths = []
    for seed in range(100):
        made = OPS["blur"](point, rng(seed), SIZE, 1.0)[..., 0].astype(float)
        widths.append(math.sqrt((made.sum(axis=0) * x * x).sum() / made.sum()))
    assert max(widths) < 2.05
    assert max(widths) > 1.7
    assert min(widths) < 0.4


# -- what cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize(("text", "told"), [
    ("randaug(0)", r"randaug takes \(num_ops: int = 2, magnitude: float = 15"),
    ("randaug(2, -1)", "randaug takes"), ("randaug(2, 'strong')", "randaug takes"),
    ("randaug(1.5)", "randaug takes"), ("randaug(2, 15, 2)", "randaug takes"),
    ("autoaugment('v1')", r"autoaugment takes \(policy: str = 'v0'\)"),
    ("trivialaugment(3)", r"trivialaugment takes \(\)"),
    ("color_jitter(-0.1)", "color_jitter takes"),
    ("color_jitter(0, 0, 0, -1)", "color_jitter takes"),
    ("random_erasing(1.2)", "random_erasing takes"),
    ("random_erasing(0.5, 0.4, 0.2)", "random_erasing takes"),
    ("random_erasing(0.5, 0, 2)", "random_erasing takes"),
    ("random_erasing(0.5, 0.1, 0.2, 'pink')", "random_erasing takes"),
    ("grey(-1)", "grey takes"), ("solarize('all')", "solarize takes"),
    ("blur(0.5, 2, 1)", "blur takes"), ("three_augment(1)", r"three_augment takes \(\)"),
    ("random_erase", "did you mean random_erasing"),
])  # fmt: skip
def test_arguments_that_an_operation_does_not_take_are_told(text, told):
    with pytest.raises(UserError, match=told):
        parse(f"decode|{text}", SIZE)
