"""Each operation on images against its definition; images whose pixels tell where they were."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import smooth
from PIL import Image

from vit_jax.data.declared import DECLARED, OPS, op
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import UserError


def run(text, image, model_size=(32, 32), seed=0):
    return parse(text, model_size)(image, np.random.default_rng(seed))


def coordinates(height, width):
    """A pixel at (y, x) is [y, x, 7]."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y, x, np.full_like(y, 7)], axis=-1).astype(np.uint8)


def every_op(image):
    return {name: run(f"decode|{name}", image) for name in OPS}


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_type_and_channels_and_leaves_its_input_alone(channels):
    image = smooth(50, 60)[..., :channels].copy()
    before = image.copy()
    image.flags.writeable = False
    for name, made in every_op(image).items():
        assert made.dtype == np.uint8, name
        assert made.shape[2:] == (channels,), name
        assert made.flags.c_contiguous, name
    np.testing.assert_array_equal(image, before)


def test_an_operation_is_random_exactly_if_it_is_listed_as_such():
    image = smooth(50, 60)
    for name in OPS:
        draws = {run(f"decode|{name}", image, seed=seed).tobytes() for seed in range(12)}
        random = DECLARED[OPS[name]].random
        assert (len(draws) > 1) == random == parse(f"decode|{name}", (32, 32)).random


def place_after(text, height, width, seed):
    """Where, in shares of height and width, an image changes most after an operation if it changes
    in a block around (0.52, 0.3) before it; None if nothing changes."""
    image = smooth(height, width)
    other = image.copy()
    block = slice(round(0.51 * height), round(0.53 * height)), slice(width // 4, width // 4 + 2)
    other[block] = 255 - other[block]
    one, two = (run(f"decode|{text}", each, seed=seed).astype(int) for each in (image, other))
    change = np.abs(one - two).sum(axis=2)
    if not change.any():
        return None
    y, x = np.unravel_index(change.argmax(), change.shape)
    return np.array([(y + 0.5) / change.shape[0], (x + 0.5) / change.shape[1]])


# So far that it shows; a strip is cut where it would become very large.
FAR = {
    "shift": "shift(20)", "rotate": "rotate(90)", "resize_small": "resize_small(300)",
    "central_crop": "central_crop(60)", "random_crop": "random_crop(60)",
    "corner_crop": "corner_crop(1, 0, 60)",
    "randaug": "randaug(4, 30)", "pad": "pad((120, 300))",
    "fit": "fit((4800, 300))", "random_resize": "random_resize((12, 18), 9999)",
    "size_crop": "size_crop(30, 50, 1.0, (80,))",
}  # fmt: skip


def test_an_operation_moves_what_an_image_shows_exactly_if_it_declares_that():
    for name, function in OPS.items():
        places = [
            place_after(FAR.get(name, name), height, width, seed)
            for height, width in ((80, 100), (2400, 6))
            for seed in range(16)
        ]
        far = [p for p in places if p is not None and np.abs(p - (0.52, 0.3)).max() > 0.1]
        assert bool(far) == DECLARED[function].moves, (name, far)


def mirror_with_point(entries, rng, model_size):
    """Mirrors the image and the column of a point in it."""
    image = entries["image"][:, ::-1]
    changed = {"image": image}
    if "point" in entries:
        row, column = entries["point"]
        changed["point"] = (row, image.shape[1] - 1 - column)
    return changed


def test_an_operation_changes_the_entries_that_it_declares_and_no_others():
    op(moves=True, changes=("image", "point"))(mirror_with_point)
    try:
        pipeline = parse("decode|mirror_with_point", (4, 6), placed=("point",))
        image = coordinates(4, 6)
        example = {"image": image, "point": (1, 2), "label": 3}
        changed = pipeline.example(example, None)
        assert changed["point"] == (1, 3)
        assert changed["label"] == 3
        np.testing.assert_array_equal(changed["image"][1, 3], image[1, 2])
        np.testing.assert_array_equal(pipeline(image, None), image[:, ::-1])
        assert example["point"] == (1, 2)
    finally:
        del OPS["mirror_with_point"]


@pytest.mark.parametrize(
    ("text", "part"),
    [("decode|flip_lr", "flip_lr"), ("decode|grey|central_crop(3)", "central_crop(3)")],
)
def test_an_operation_that_would_leave_a_place_behind_is_refused(text, part):
    said = f"operation '{part}' in pipeline moves what the image shows, but not the example's boxes"
    with pytest.raises(UserError, match=re.escape(said)):
        parse(text, (4, 4), placed=("boxes",))
    parse("decode|grey|resize(8)|blur", (4, 4), placed=("boxes",))
    parse(text, (4, 4))


def test_no_operation_takes_the_name_of_another():
    def flip_lr(image, rng, model_size):
        return image

    with pytest.raises(ValueError, match="has an operation 'flip_lr' already"):
        op()(flip_lr)
    assert parse("decode|flip_lr", (4, 4)).random


def test_the_same_random_state_gives_the_same_image():
    text = "decode|inception_crop|flip_lr|rotate(5)|shift(3)"
    for seed in range(3):
        one, two = (run(text, smooth(50, 60), seed=seed) for _ in range(2))
        np.testing.assert_array_equal(one, two)


# -- sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["decode|resize", "decode|inception_crop"])
def test_the_models_size_is_taken_where_none_is_given(text):
    assert run(text, smooth(50, 60), (24, 40)).shape == (24, 40, 3)


@pytest.mark.parametrize("name", ["resize", "inception_crop"])
@pytest.mark.parametrize(("size", "shape"), [("20", (20, 20, 3)), ("(20, 28)", (20, 28, 3))])
def test_a_given_size_is_a_number_or_height_and_width(name, size, shape):
    assert run(f"decode|{name}({size})", smooth(50, 60)).shape == shape


@pytest.mark.parametrize("size", [(32, 24), (100, 120), (64, 20)])
def test_resizing_a_smooth_image_agrees_with_pillow(size):
    image = smooth(64, 80)
    theirs = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    ours = run(f"decode|resize({size})", image)
    assert np.abs(ours.astype(int) - np.asarray(theirs)).mean() < 2


def test_shrinking_averages_over_all_pixels():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    means = image.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(run("decode|resize(8)", image) - means).max() <= 0.51


def test_an_image_of_the_right_size_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(run("decode|resize", image), image)


@given(st.integers(4, 200), st.integers(4, 200), st.integers(4, 120))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_resize_small_sets_the_short_side_and_cuts_the_long_one(height, width, short):
    made = run(f"decode|resize_small({short})", np.zeros((height, width, 3), np.uint8))
    # torchvision, _compute_resized_output_size
    low, high = min(height, width), max(height, width)
    sides = (short, int(short * high / low))
    assert made.shape[:2] == (sides if height <= width else sides[::-1])


@given(st.integers(4, 200), st.integers(4, 200))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_resize_small_to_no_square_covers_it_with_the_aspect_kept(height, width):
    made = run("decode|resize_small((30, 50))", np.zeros((height, width, 3), np.uint8))
    scale = max(30 / height, 50 / width)
    assert abs(made.shape[0] - scale * height) <= 0.5 + 1e-9
    assert abs(made.shape[1] - scale * width) <= 0.5 + 1e-9
    assert made.shape[0] == 30 or made.shape[1] == 50


def test_resize_small_for_224_is_the_256_of_the_papers():
    assert run("decode|resize_small", smooth(300, 400), (224, 224)).shape == (256, 341, 3)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 90_000)])
@pytest.mark.parametrize("how", ["", ", 'bicubic'"])
def test_a_strip_is_cut_before_it_is_enlarged_and_its_middle_stays(shape, how):
    strip = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    side = 400 * min(shape)
    made = run(f"decode|resize_small({side}{how})|central_crop({side})", strip)
    middle = tuple(slice(max(0, n // 2 - 300), n // 2 + 300) for n in shape)
    wanted = run(f"decode|resize_small({side}{how})|central_crop({side})", strip[middle])
    assert run(f"decode|resize_small({side}{how})", strip).size < 3 * 34 * side**2
    np.testing.assert_array_equal(made, wanted)


def test_a_strip_that_stays_small_is_whole():
    assert run("decode|resize_small(8)", smooth(3, 3000)).shape == (8, 8000, 3)


@pytest.mark.parametrize("text", ["resize(20000)", "resize((400000, 500))", "resize_small(50000)"])
def test_what_would_become_a_decompression_bomb_is_refused(text):
    with pytest.raises(UserError, match=r"resized, its \d+ x \d+ pixels are more than"):
        parse(f"decode|{text}", (32, 32))


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        ("value_range(1, 1)", "less than high, not 1 and 1"),
        ("value_range(1, -1)", "less than high"),
        ("value_range(0, 1e999)", "low is a finite number"),
        ("value_range('a', 1)", "low is a finite number"),
        ("normalise(0.5, 0)", "std is finite and positive, not 0"),
        ("normalise(0.5, (0.1, -0.1))", "std is finite and positive"),
        ("normalise(1e999, 0.5)", "mean is finite, not inf"),
        ("normalise((), 0.5)", "mean is finite"),
        ("normalise(0, 10**400)", "std"),
    ],
)
def test_ways_to_show_images_that_make_no_numbers_are_refused(shown, says):
    with pytest.raises(UserError, match=r"operation .* in pipeline") as error:
        parse(f"decode|{shown}", (32, 32))
    assert says in str(error.value)


# -- crops --------------------------------------------------------------------------------


@given(st.integers(10, 60), st.integers(10, 60), st.integers(1, 10), st.integers(1, 10))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_central_crop_leaves_as_much_on_either_side(height, width, h, w):
    made = run(f"decode|central_crop(({h}, {w}))", coordinates(height, width)).astype(int)
    assert made.shape == (h, w, 3)
    for axis, (whole, part) in enumerate([(height, h), (width, w)]):
        first = made[0, 0, axis]
        assert made[-1, -1, axis] == first + part - 1
        assert abs(first - (whole - first - part)) <= 1
        assert first == round((whole - part) / 2)  # torchvision's center_crop
    floor = run(f"decode|central_crop(({h}, {w}), floor=True)", coordinates(height, width))
    assert tuple(floor[0, 0, :2]) == ((height - h) // 2, (width - w) // 2)


def crops(height, width, number=300, arguments=""):
    """(top, left, bottom, right) of many inception crops, from the corner pixels' values.

    Scaled up, the corners of a bilinear image are the corner pixels of the crop themselves.
    """
    image = coordinates(height, width)
    pipeline = parse(f"decode|inception_crop(256{arguments})", (32, 32))
    found = []
    for seed in range(number):
        made = pipeline(image, np.random.default_rng(seed))
        found.append((*made[0, 0, :2], *made[-1, -1, :2]))
    return np.array(found, int)


@pytest.mark.parametrize(("low", "high"), [(0.05, 1.0), (0.4, 0.6), (0.9, 1.0)])
def test_inception_crops_have_the_areas_and_aspects_asked_for(low, high):
    height, width = 120, 100
    top, left, bottom, right = crops(height, width, arguments=f", {low}, {high}").T
    h, w = bottom - top + 1, right - left + 1
    central = (h == w) & (h == min(height, width))  # where ten draws did not fit
    assert central.mean() < 0.2
    h, w = h[~central], w[~central]
    # A side is rounded to whole pixels, half a pixel off at most.
    assert ((h + 0.5) * (w + 0.5) >= low * height * width).all()
    assert ((h - 0.5) * (w - 0.5) <= high * height * width).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()


def test_inception_crops_reach_the_whole_range_of_areas():
    height, width = 120, 100
    top, left, bottom, right = crops(height, width).T
    areas = (bottom - top + 1) * (right - left + 1) / (height * width)
    assert areas.min() < 0.1
    assert areas.max() > 0.85
    # Uniform areas, less the large ones that do not fit: half of them lie below a half or so.
    assert 0.35 < np.median(areas) < 0.55


def test_inception_crops_smaller_than_the_image_reach_every_border():
    height, width = 20, 16
    top, left, bottom, right = crops(height, width).T
    assert ((top == 0) & (bottom < height - 1)).any()
    assert ((top > 0) & (bottom == height - 1)).any()
    assert ((left == 0) & (right < width - 1)).any()
    assert ((left > 0) & (right == width - 1)).any()


def test_an_image_too_narrow_for_any_aspect_gives_its_central_square():
    assert {tuple(map(int, crop)) for crop in crops(200, 10, 20, ", 0.5, 1.0")} == {(95, 0, 104, 9)}


# -- flips, shifts, turns -----------------------------------------------------------------


def test_a_flip_mirrors_half_of_the_images():
    image = coordinates(5, 9)
    made = [run("decode|flip_lr", image, seed=seed) for seed in range(400)]
    flipped = [(m == image[:, ::-1]).all() for m in made]
    same = [(m == image).all() for m in made]
    assert all(one != other for one, other in zip(flipped, same, strict=True))
    assert abs(sum(flipped) - 200) < 4 * np.sqrt(400) / 2  # four standard deviations


def test_a_shift_is_a_translation_with_black_coming_in():
    image = coordinates(12, 16) + 1
    seen = set()
    for seed in range(200):
        made = run("decode|shift(2)", image, seed=seed)
        fits = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if (made == translated(image, dy, dx)).all()
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert seen == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def translated(image, dy, dx):
    """Every pixel moved down by dy and right by dx, one at a time."""
    moved = np.zeros_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if 0 <= y + dy < image.shape[0] and 0 <= x + dx < image.shape[1]:
                moved[y + dy, x + dx] = image[y, x]
    return moved


def test_a_turn_by_nothing_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    np.testing.assert_array_equal(run("decode|rotate(0)", image), image)


class Turn:
    """A random state whose uniform draw is its upper bound: the largest turn."""

    def uniform(self, low, high):
        return high


def test_a_quarter_turn_is_numpys():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    turned = OPS["rotate"](image, Turn(), (9, 9), 90.0)
    np.testing.assert_array_equal(turned, np.rot90(image))


def test_turns_go_both_ways_and_no_further_than_asked():
    """The angle of a turned bar, from its second moments."""
    y, x = np.mgrid[-32:33, -32:33]
    bar = (255 * ((abs(y) <= 3) & (abs(x) <= 25))).astype(np.uint8)[..., None]
    angles = []
    for seed in range(60):
        made = run("decode|rotate(10)", bar, seed=seed)[..., 0].astype(float)
        xx, yy, xy = (made * x * x).sum(), (made * y * y).sum(), (made * x * y).sum()
        angles.append(np.degrees(np.arctan2(2 * xy, xx - yy) / 2))
    assert np.abs(angles).max() <= 10.3
    assert min(angles) < -8
    assert max(angles) > 8
    assert abs(np.mean(angles)) < 4 * 10 / np.sqrt(3 * 60)


# -- what cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("decode|crop", r"unknown operation 'crop' in pipeline: did you mean "),
        ("decode|flip_rl", "did you mean flip_lr"),
        ("decode|inception-crop", "did you mean inception_crop"),
        ("decode|inception_crop(32", r"inception_crop takes \(size: int"),
        ("decode|decode", "unknown operation 'decode'"),
        ("", "must begin with decode, as in decode|resize"),
        ("resize|flip_lr", "must begin with decode"),
        ("decod|flip_lr", "must begin with decode"),
        ("decode|resize(1, 2, 3)", r"resize takes \(size: int"),
        ("decode|resize(big)", r"resize takes \(size: int"),
        ("decode|resize('big')", r"resize takes \(size: int"),
        ("decode|resize(-5)", r"resize takes \(size: int"),
        ("decode|central_crop(0)", r"central_crop takes \(size: int"),
        ("decode|flip_lr(1)", r"flip_lr takes \(\)"),
        ("decode|shift(0.5)", r"shift takes \(pixels: int = 1\)"),
        ("decode|rotate('ten')", r"rotate takes \(degrees: float = 10.0\)"),
        ("decode|inception_crop(32, 0.9, 0.1)", "area_min: float = 0.05, area_max: float = 1.0"),
    ],
)
def test_a_pipeline_that_cannot_be_read_is_answered_in_one_line(text, told):
    with pytest.raises(UserError, match=told) as error:
        parse(text, (32, 32))
    assert "\n" not in str(error.value)


def test_spaces_and_empty_brackets_do_not_matter():
    image = smooth(50, 60)
    spaced = run(" decode | inception_crop( 20 ) | flip_lr() ", image)
    np.testing.assert_array_equal(spaced, run("decode|inception_crop(20)|flip_lr", image))


def test_decode_alone_changes_nothing():
    image = smooth(8, 8)
    np.testing.assert_array_equal(run("decode", image), image)
