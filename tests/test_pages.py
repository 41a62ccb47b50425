"""Pages: every text is escaped, a page needs no network, and charts show what they are given."""

import re
import xml.etree.ElementTree as ET

import pytest

from vit_jax import pages

HOSTILE = '</title><script>alert("1")</script>\n\x1b[2J'
LINES = {HOSTILE: [(1, 0.5), (2, 0.25), (3, float("nan"))]}


def marks(chart):
    return [text.text for text in ET.fromstring(chart).iter() if text.tag.endswith("text")]


@pytest.mark.parametrize(
    "part",
    [
        pages.heading(HOSTILE),
        pages.paragraph(HOSTILE),
        pages.table([[HOSTILE], [HOSTILE]]),
        pages.curves(LINES, HOSTILE),
        pages.bars({HOSTILE: 0.5}),
        pages.parallel({HOSTILE: [HOSTILE, "b"]}, [1, 2]),
        pages.points({HOSTILE: [1.0, 2.0]}, HOSTILE, HOSTILE),
        pages.picture(b"\x89PNG", HOSTILE, "smooth"),
        pages.tiles([pages.figure(pages.picture(b"", HOSTILE), HOSTILE)], 3, 90),
        pages.details(HOSTILE, pages.paragraph(HOSTILE)),
    ],
)
def test_no_text_is_markup_and_nothing_is_fetched(part):
    whole = pages.page(HOSTILE, part)
    assert "<script>" not in whole
    assert "\x1b" not in whole
    assert "http" not in whole.replace("http://www.w3.org/2000/svg", "")
    assert "color-scheme: light dark" in whole
    ET.fromstring(whole.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', "")
                  .replace("&nbsp;", " "))  # fmt: skip


def test_few_values_are_all_marked_and_many_are_marked_by_five():
    few = marks(pages.parallel({"rate": [1e-4, 1e-3, 1e-2]}, [1, 2, 3], ["rate"]))
    assert few == ["rate", "0.0001", "0.001", "0.01"]
    many = marks(pages.parallel({"rate": [10.0**-n for n in range(9)]}, range(9), ["rate"]))
    assert many == ["rate", "1e-08", "1e-06", "0.0001", "0.01", "1"]
    assert marks(pages.parallel({"name": ["b", "a", True]}, [1, 2, 3])) == [
        "name",
        "b",
        "a",
        "True",
    ]


def test_a_logarithmic_axis_places_numbers_by_their_logarithm():
    chart = pages.parallel({"rate": [1e-4, 1e-3, 1e-2]}, [1, 2, 3], ["rate"])
    points = [float(y) for y in re.findall(r'polyline points="[\d.]+,([\d.]+)"', chart)]
    assert points[0] - points[1] == pytest.approx(points[1] - points[2], abs=0.11)
    assert points[0] > points[2]  # the larger number is higher


def test_the_best_trial_is_the_strongest_line():
    chart = pages.parallel({"a": [1, 2, 3]}, [0.5, 0.9, 0.1])
    titles = re.findall(r'stroke-opacity="([\d.]+)"><title>a (\d)</title>', chart)
    assert [(trial, strength) for strength, trial in titles] == [
        ("3", "0.20"), ("1", "0.40"), ("2", "1.00"),
    ]  # fmt: skip


def test_columns_are_aligned_and_csv_keeps_every_text():
    assert pages.aligned([["a", "bb"], ["ccc", ""], [1, "\n"]]) == "a    bb\nccc\n1    \\n"
    assert pages.as_csv([["a", "b,c"], [1, None]]) == 'a,"b,c"\n1,\n'


def test_points_stand_in_their_columns_and_higher_for_more():
    chart = pages.points({"1": [0.0, 4.0], "2": [2.0]}, "layer", "pixels")
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (x1, low), (same, high), (x2, middle) = places
    assert x1 == same < x2
    assert low - middle == pytest.approx(middle - high, abs=0.11)
    assert low > high
    assert marks(chart)[-2:] == ["layer", "pixels"]
