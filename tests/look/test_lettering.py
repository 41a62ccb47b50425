"""Names of classes on pictures, in any script, and the picture of a confusion matrix."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands.mistakes import LINE, tiles
from vit_jax.look import confusion, lettering

SIZE = 12
PRIVATE = "\ue123"  # a character of the private area, which no font here has


def written(text):
    sheet = Image.new("RGB", (160, 24), "white")
    lettering.write(sheet, (2, 16), text, SIZE)
    return np.asarray(sheet)


@pytest.mark.parametrize("text", ["Müller's", "ёжик", "άλφα", "ça și łódź", "naïve", "Ünlü ğ"])
def test_letters_of_every_alphabet_that_a_font_has_are_drawn(text):
    """A missing letter would look like one that no font has, or like its escape."""
    missing = bytes(lettering.fonts(SIZE)[0].getmask(PRIVATE))
    assert "".join(piece for piece, _ in lettering.runs(text, SIZE)) == text
    for letter in set(text) - {" "}:
        ((_, font),) = lettering.runs(letter, SIZE)
        assert bytes(font.getmask(letter)) != missing
    assert (written(text) < 255).any()


def test_a_letter_that_no_font_has_is_escaped():
    assert (written(f"a{PRIVATE}b") == written("a\\ue123b")).all()


def test_there_is_a_font_for_ascii_even_where_nothing_else_is_installed():
    own = lettering.fonts(SIZE)[-1]
    assert own.getname()[0] == "Aileron"  # Pillow brings it
    assert all(lettering._has(own, letter) for letter in "Az09\\'")


def test_a_long_name_is_cut_to_its_width():
    long = "ёж " * 40
    short = lettering.fitted(long, SIZE, 100)
    assert short.endswith("…")
    assert lettering.width(short, SIZE) <= 100 < lettering.width(long[: len(short) + 1], SIZE)
    assert lettering.fitted("ёж", SIZE, 100) == "ёж"


def test_a_text_upwards_is_the_text_turned():
    sheet = Image.new("RGB", (24, 160), "white")
    lettering.write_upwards(sheet, (16, 150), "Ёж", SIZE)
    turned = np.rot90(np.asarray(sheet), -1)
    level = written("Ёж")
    assert (turned < 128).sum() == (level < 128).sum()


# -- the confusion matrix -----------------------------------------------------------------
def shades(picture, count):
    """How light the cells of a picture are, at their corners, where no number stands."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    cell = confusion.SMALLEST_CELL
    left, top = (side - confusion.PAD - count * cell for side in picture.size)
    at = np.arange(count) * cell + 3
    return pixels[top + at][:, left + at]


def test_cells_are_the_darker_the_larger_their_share():
    counts = np.array([[9, 1, 0, 0], [0, 10, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0]])
    light = shades(confusion.picture(counts, ["cat", "dog", "frog", "newt"]), 4)
    blue = round(0.299 * 8 + 0.587 * 48 + 0.114 * 107)
    assert light[1, 1] == pytest.approx(blue, abs=1)
    assert (light[counts == 0] == 255).all()
    assert light[0, 0] < light[2, 0] == light[2, 1] < light[0, 1] < 255


def test_counts_and_names_are_written():
    counts = np.eye(2, dtype=int) * 7
    first = np.asarray(confusion.picture(counts, ["ёж", "犬"]))
    other_name = np.asarray(confusion.picture(counts, ["жё", "犬"]))
    other_count = np.asarray(confusion.picture(counts + np.diag([0, 1]), ["ёж", "犬"]))
    assert first.shape == other_name.shape == other_count.shape
    cells = slice(-2 * confusion.SMALLEST_CELL - confusion.PAD, None)
    assert (first[cells, cells] == other_name[cells, cells]).all()
    assert (first != other_name).any()
    assert (first[cells, cells] != other_count[cells, cells]).any()


def test_of_many_classes_those_with_the_most_mistakes_are_shown_and_the_rest_together():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (100, 100))
    bad = np.sort(rng.choice(100, confusion.MOST - 1, replace=False))
    counts[bad] += 40
    names = [f"class {i}" for i in range(100)]
    found, shown = confusion.of_the_worst(counts, names)
    assert shown == [*(names[i] for i in bad), "71 others"]
    assert (found.sum(axis=1)[:-1] == counts[bad].sum(axis=1)).all()
    assert (found.sum(axis=0)[:-1] == counts[:, bad].sum(axis=0)).all()
    assert (found[:-1, :-1] == counts[np.ix_(bad, bad)]).all()
    assert max(confusion.picture(counts, names).size) < 1500


def test_tiles_stand_under_the_lines_of_their_titles():
    grey = np.full((8, 8, 3), 100, np.uint8)
    sheet = np.asarray(tiles([grey] * 3, 64, 64, [("is ёж", "97% dog")] * 3))
    assert sheet.shape == (2 * (64 + 2 * LINE), 128, 3)
    assert (sheet[2 * LINE : 2 * LINE + 64, :128] == 100).all()
    for line in range(2):
        assert (sheet[line * LINE : (line + 1) * LINE, :64] < 100).any()
