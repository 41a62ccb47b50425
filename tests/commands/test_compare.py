"""`vit compare`: curves of several runs in one picture, and where their configs differ."""

import html.parser
import json
import math
import re

import pytest
from PIL import Image

from vit_jax import cli


def run(folder, losses, accuracies, **config):
    """A work folder of rows: a loss every ten steps, an accuracy every twenty."""
    folder.mkdir(parents=True)
    rows = [{"step": 10 * i, "loss": y, "seconds": 5.0 * i, "epoch": i / 2}
            for i, y in enumerate(losses, 1)]  # fmt: skip
    rows += [{"step": 20 * i, "eval/val/accuracy": y} for i, y in enumerate(accuracies, 1)]
    rows.sort(key=lambda row: row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"seed": 0, "optimizer.lr": 1e-3} | config))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [
        run(tmp_path / "one" / "run", [2, 1, 0.5, 0.25], [0.5, 0.75], **{"optimizer.lr": 3e-3}),
        run(tmp_path / "two" / "run", [2, 1.5, 1, 0.75], [0.6, 0.55]),
    ]


def table(capsys) -> dict[str, list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in lines)}


def test_the_table_has_the_keys_that_differ_and_no_others(runs, capsys):
    assert cli.main(["compare", *runs]) == 0
    assert table(capsys) == {
        "": ["one/run", "two/run"],
        "optimizer.lr": ["0.003", "0.001"],
        "loss, last": ["0.2500", "0.7500"], "loss, best": ["0.2500", "0.7500"],
        "eval/val/accuracy, last": ["0.7500", "0.5500"],
        "eval/val/accuracy, best": ["0.7500", "0.6000"],
    }  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a page draws, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.lines, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.fetched += [v for k, v in attributes.items() if k in ("src", "href")]
        self.fetched += [tag] if tag in ("script", "link", "img", "iframe") else []
        if tag == "polyline":
            points = attributes["points"].split()
            self.lines.append([tuple(map(float, p.split(","))) for p in points])


def test_the_page_draws_every_curve_and_fetches_nothing(runs, tmp_path):
    page = tmp_path / "compare.html"
    assert cli.main(["compare", *runs, f"--output={page}"]) == 0
    drawn = Page(page.read_text())
    assert drawn.fetched == []
    loss, other, *accuracies = drawn.lines
    assert [len(line) for line in drawn.lines] == [4, 4, 2, 2]
    # One scale for both: places are linear in step and loss, the lower loss further down.
    slope = (loss[3][1] - loss[0][1]) / (0.25 - 2)
    assert slope < 0
    for line, losses in ((loss, [2, 1, 0.5, 0.25]), (other, [2, 1.5, 1, 0.75])):
        for (x, y), value, step in zip(line, losses, (10, 20, 30, 40), strict=True):
            assert y - loss[0][1] == pytest.approx(slope * (value - 2), abs=0.11)
            assert x - loss[0][0] == pytest.approx((loss[3][0] - loss[0][0]) * (step - 10) / 30,
                                                   abs=0.11)  # fmt: skip
    assert accuracies[0][1][1] < accuracies[1][1][1]  # 0.75 above 0.55


def test_over_seconds_an_evaluation_lies_where_its_step_was(runs, tmp_path):
    page = tmp_path / "compare.html"
    arguments = ["--over=seconds", "--metric=eval/val/accuracy", "--metric=loss"]
    assert cli.main(["compare", runs[0], f"--output={page}", *arguments]) == 0
    accuracy, loss = Page(page.read_text()).lines
    ends = [10, 20]  # of steps 20 and 40, half a second each
    width = (accuracy[1][0] - accuracy[0][0]) / (ends[1] - ends[0])
    across = (loss[3][0] - loss[0][0]) / (20 - 5)
    # Each chart has its own scale, from its first to its last point.
    assert width * 10 == pytest.approx(across * 15, abs=0.2)


def test_a_picture_is_a_png(runs, tmp_path):
    picture = tmp_path / "compare.png"
    assert cli.main(["compare", *runs, f"--output={picture}"]) == 0
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 100


def test_rows_that_are_not_finite_leave_a_gap(tmp_path):
    page = tmp_path / "compare.html"
    folder = run(tmp_path / "run", [2, math.nan, 1], [])
    assert cli.main(["compare", folder, f"--output={page}"]) == 0
    assert [len(line) for line in Page(page.read_text()).lines] == [2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output=x.jpg"], "--output=x.jpg: a page is .html, a picture .png"),
        (["--metric=lss"], "no run has lss: there are loss"),
        (["--output=/not/there/x.html"], "cannot write /not/there/x.html"),
        (["not/there"], "not/there cannot be read: No such file"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_line(arguments, told, runs, capsys):
    assert cli.main(["compare", *runs, *arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_a_run_named_twice_and_one_without_rows_are_refused(runs, tmp_path, capsys):
    assert cli.main(["compare", runs[0], runs[0] + "/"]) == 2
    assert "named twice" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text("")
    assert cli.main(["compare", str(empty)]) == 2
    assert "no rows yet" in capsys.readouterr().err
