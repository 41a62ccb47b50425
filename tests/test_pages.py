"""Pages: every text is escaped, a page needs no network, and charts show what they are given."""

import re
import xml.etree.ElementTree as ET

import pytest

from vit_jax import pages

HOSTILE = '</title><script>alert("1")</script>\n\x1b[2J'
LINES = {HOSTILE: [(1, 0.5), (2, 0.25), (3, float("nan"))]}


def marks(chart):
    svg = chart.partition("</svg>")[0] + "</svg>"
    return [text.text for text in ET.fromstring(svg).iter() if text.tag.endswith("text")]


@pytest.mark.parametrize(
    "part",
    [
        pages.heading(HOSTILE),
        pages.paragraph(HOSTILE),
        pages.table([[HOSTILE], [HOSTILE]]),
        pages.curves(LINES, HOSTILE),
        pages.bars({HOSTILE: 0.5}),
        pages.parallel({HOSTILE: [HOSTILE, "b"]}, [1, 2], links=[HOSTILE, "b"]),
        pages.table([["trial"], [pages.Link(HOSTILE, HOSTILE)]]),
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


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([56.4, 112.8, 169.2, 225.5], ["100", "150", "200"]),
        ([338, 676, 1014, 1352, 1690], ["500", "1,000", "1,500"]),
        ([0.70, 0.777, 0.81], ["0.7", "0.725", "0.75", "0.775", "0.8"]),
        ([0.0, 1.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([-3.0, 9.5], ["-2.5", "0", "2.5", "5", "7.5"]),
        ([1, 2, 3], ["1", "2", "3"]),
        ([20_000, 311_948], ["100,000", "200,000", "300,000"]),
        ([0.5, 0.5], ["0.5"]),
    ],
)
def test_a_chart_has_round_ticks(values, wanted):
    """Heckbert's nice numbers (Graphics Gems, 1990): 1, 2, 2.5 or 5 times a power of 10."""
    chart = pages.curves({"a": [(0, value) for value in values]}, "step")
    assert marks(chart)[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([3e12, 2e15], ["1e+13", "1e+14", "1e+15"]),
        ([1.5e9, 4e9], ["1.5e+09", "2e+09", "2.5e+09", "3e+09", "3.5e+09", "4e+09"]),
    ],
)
def test_a_logarithmic_chart_has_round_ticks(values, wanted):
    chart = pages.curves({"a": [(value, 0.5) for value in values]}, "FLOPs", log=True)
    assert marks(chart)[1:-1] == wanted


def test_values_of_trials_are_marked_where_they_are_short_and_apart():
    rates = [128, 256, 512]
    assert marks(pages.parallel({"batch": rates}, [1, 2, 3])) == ["batch", "128", "256", "512"]
    reached = marks(pages.parallel({"accuracy": [0.98871, 0.97762, 0.93521]}, [1, 2, 3]))
    assert reached == ["accuracy", "0.94", "0.96", "0.98"]
    close = marks(pages.parallel({"a": [0.0, 0.5, 0.502, 1.0]}, range(4)))
    assert close == ["a", "0", "0.5", "1"]


def test_lines_and_rows_of_trials_lead_to_their_folders():
    chart = pages.parallel({"a": [1, 2]}, [0.5, 0.9], links=["0000/", "0001/"])
    leads = re.findall(r'<a href="(\w+/)"><polyline[^>]*><title>a (\d)</title>', chart)
    assert leads == [("0000/", "1"), ("0001/", "2")]
    assert '<td><a href="0007/">7</a></td>' in pages.table([["trial"], [pages.Link(7, "0007/")]])


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
