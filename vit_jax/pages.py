"""Writes tables and pages: text in aligned columns, CSV, and HTML with charts as SVG and pictures.

A page is one file that needs no network. It follows the browser's light or dark colours. All texts
may come from files: they are escaped here.
"""

import base64
import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.errors import printable

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 16, 24, HEIGHT - 36  # edges of a chart's area
COLOURS = (  # told apart by colour-blind readers, on white and on black
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "currentColor",
)  # fmt: skip
FEW = 7  # an axis of parallel coordinates marks each number if there are fewer different ones
MARKS = 5  # spaces between the marks of an axis, at most
APART = 11  # pixels between marks of an axis of parallel coordinates, at least
NAME_WIDTH, BAR_STEP = 220, 24  # of a bar chart: space for names, distance of bars

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
td, th { overflow-wrap: normal }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8884; text-align: left }
svg { max-width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: currentColor }
svg text { paint-order: stroke; stroke: Canvas; stroke-width: 3px; stroke-linejoin: round }
polyline { fill: none } a:hover polyline { stroke-width: 4; stroke-opacity: 1 }
.grid { stroke: #8884 } .axis { stroke: currentColor }
.wide { overflow-x: auto } summary { cursor: pointer }
.tiles { display: grid; gap: 6px; margin: .5rem 0 }
figure { margin: 0 } figcaption { font-size: 12px; overflow-wrap: anywhere }
img { width: 100%; height: auto; display: block; image-rendering: pixelated }
img.smooth { image-rendering: auto }
"""


def aligned(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as lines with aligned columns."""
    lines = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_csv(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as CSV, for programs."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def page(title: str, *parts: str) -> str:
    """A whole HTML document; the parts are HTML."""
    device = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    head = f'<meta charset="utf-8">{device}{_element("title", title)}{style(STYLE)}'
    body = "\n".join([_element("h1", title), *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n</body></html>\n'


def heading(text: str) -> str:
    """The heading of a part of a page."""
    return _element("h2", text)


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return _element("p", text)


class Link(NamedTuple):
    """A cell of a table that leads to an address, such as a file beside the page."""

    text: object
    address: str


def table(rows: Sequence[Sequence[object]]) -> str:
    """A table of plain texts, and of links; the first row is its head."""
    lines = ["".join(_cell("td" if number else "th", cell) for cell in row)
             for number, row in enumerate(rows)]  # fmt: skip
    return '<div class="wide"><table>\n<tr>' + "</tr>\n<tr>".join(lines) + "</tr>\n</table></div>"


def _cell(tag: str, cell: object) -> str:
    if isinstance(cell, Link):
        return f"<{tag}>{_element('a', cell.text, href=cell.address)}</{tag}>"
    return _element(tag, cell)


def picture(encoded: bytes, title: str = "", kind: str = "") -> str:
    """An image, as a file of PNG or JPEG, that stands in the page itself; the title is shown when
    it is pointed at. `kind` is a class of CSS: `smooth` for photographs."""
    address = data_address(encoded)
    image = _element("img", src=address, title=title, alt=title, **{"class": kind})
    return image.removesuffix("></img>") + "/>"


def data_address(encoded: bytes) -> str:
    """A file of PNG or JPEG as an address that holds it."""
    of = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{of};base64,{base64.b64encode(encoded).decode()}"


def style(css: str) -> str:
    """CSS that stands where it is needed. It is not escaped: no text from a file goes there."""
    return f"<style>{css}</style>"


def figure(inside: str, caption: str) -> str:
    """HTML with a caption below it."""
    return f"<figure>{inside}{_element('figcaption', caption)}</figure>"


def tiles(parts: Iterable[str], columns: int, least: int = 0) -> str:
    """Parts in rows of equal width. With `least` pixels of a part, there are fewer columns on a
    narrow screen; without, always as many."""
    of_one = f"minmax(max({least}px, {100 // columns - 1}%), 1fr)"
    grid = f"repeat(auto-fill, {of_one})" if least else f"repeat({columns}, minmax(0, 1fr))"
    style = f"grid-template-columns: {grid}"
    return f'<div class="tiles" style="{style}">{"".join(parts)}</div>'


def details(summary: str, *parts: str) -> str:
    """Parts that are shown when the summary is chosen."""
    return f"<details>{_element('summary', summary)}{''.join(parts)}</details>"


def points(columns: Mapping[str, Sequence[float]], x: str, y: str) -> str:
    """A chart with a point for each number of each column, in the order of the columns."""
    up, y_marks = _axis([v for column in columns.values() for v in [*column, 0.0]], BOTTOM, TOP)
    gap = (RIGHT - LEFT) / max(1, len(columns))
    parts = [_line(LEFT, at, RIGHT, at, "grid") + _text(LEFT - 6, at + 4, mark, "end")
             for at, mark in y_marks]  # fmt: skip
    for number, (name, column) in enumerate(columns.items()):
        across = LEFT + (number + 0.5) * gap
        parts.append(_text(across, HEIGHT - 18, name, "middle"))
        for value in column:
            circle = _element("circle", cx=across, cy=up(value), r=3, fill=COLOURS[0])
            title = _element("title", f"{name}: {value:.4g}")
            parts.append(circle.removesuffix("</circle>") + title + "</circle>")
    parts += [_text((LEFT + WIDTH) / 2, HEIGHT - 4, x, "middle"), _text(LEFT - 40, TOP - 10, y)]
    return _svg(parts)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x: str, log: bool = False) -> str:
    """Named lines through points (x, y) in one chart, with a legend below it. A point whose y is
    not finite is left out. With `log`, the axis of x is logarithmic."""
    lines = {name: [p for p in line if math.isfinite(p[1])] for name, line in lines.items()}
    points = [point for line in lines.values() for point in line]
    across, x_marks = _axis([point[0] for point in points], LEFT, RIGHT, log)
    up, y_marks = _axis([point[1] for point in points], BOTTOM, TOP)
    parts = [_line(LEFT, y, RIGHT, y, "grid") + _text(LEFT - 6, y + 4, mark, "end")
             for y, mark in y_marks]  # fmt: skip
    parts += [_text(place, HEIGHT - 18, mark, "middle") for place, mark in x_marks]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 4, x, "middle"))
    legend = []
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across(a), up(b)) for a, b in line]
        parts.append(_polyline(places, name, stroke=colour, stroke_width=1.5))
        parts += [_element("circle", cx=a, cy=b, r=2, fill=colour)
                  for a, b in (places if len(places) < 40 else ())]  # fmt: skip
        legend.append(_element("span", f"━ {name}", style=f"color:{colour}"))
    return _svg(parts) + f"<p>{' &nbsp; '.join(legend)}</p>"


def bars(shares: Mapping[str, float]) -> str:
    """Horizontal bars for shares of a whole."""
    parts = []
    for number, (name, share) in enumerate(shares.items()):
        y, width = 8 + number * BAR_STEP, max(1.0, share * (WIDTH - NAME_WIDTH - 60))
        parts += [
            _text(NAME_WIDTH - 8, y + 13, name, "end"),
            _element("rect", x=NAME_WIDTH, y=y, width=width, height=16, fill=COLOURS[0]),
            _text(NAME_WIDTH + width + 6, y + 13, f"{share:.2f}"),
        ]
    return _svg(parts, 16 + BAR_STEP * len(shares))


def parallel(
    axes: Mapping[str, Sequence[Any]], scores: Sequence[float], log: Sequence[str] = (),
    links: Sequence[str] = (),
) -> str:  # fmt: skip
    """Parallel coordinates: one line for each trial through its value on each axis. The line of the
    best trial is the strongest, that of the worst the faintest.

    Args:
      axes: name -> the number or text of each trial.
      scores: one for each trial; more is better.
      log: names of the axes that are logarithmic.
      links: where the line of each trial leads; nowhere by default.
    """
    gap = (WIDTH - 160) / max(1, len(axes) - 1)
    scales = {
        name: _axis(column, BOTTOM, TOP, name in log, each=True) for name, column in axes.items()
    }
    places = {name: 80 + gap * number for number, name in enumerate(axes)}
    worst_first = sorted(range(len(scores)), key=lambda trial: scores[trial])
    parts = []
    for rank, trial in enumerate(worst_first):
        share = rank / max(1, len(worst_first) - 1)
        line = [(places[name], scales[name][0](axes[name][trial])) for name in axes]
        title = ", ".join(f"{name} {_short(axes[name][trial])}" for name in axes)
        drawn = _polyline(line, title, stroke=COLOURS[0], stroke_width=1 + share,
                          stroke_opacity=f"{0.2 + 0.8 * share**2:.2f}")  # fmt: skip
        parts.append(f'<a href="{_safe(links[trial])}">{drawn}</a>' if links else drawn)
    for name, x in places.items():
        parts += [_line(x, TOP, x, BOTTOM, "axis"), _text(x, HEIGHT - 12, name, "middle")]
        last = math.inf
        for y, mark in scales[name][1]:
            if abs(last - y) >= APART:
                parts.append(_text(x + 4, y + 4, mark))
                last = y
    return _svg(parts)


def _axis(
    values: Sequence[Any], begin: float, end: float, log: bool = False, each: bool = False
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Returns the function from a value to its place between `begin` and `end`, and the marks:
    (place, text) of every text, or of round numbers. Texts stand in their order, numbers by their
    size. With `each`, the values themselves are marked if they are few and short. If all values
    are equal, their place is the middle."""
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    names = [] if numeric else sorted(set(map(str, values)), reverse=True)
    scale: Callable[[Any], float] = math.log10 if log else float
    scaled = [scale(v) for v in values] if numeric else list(range(len(names)))
    low, high = min(scaled, default=0.0), max(scaled, default=0.0)

    def place(value: Any) -> float:
        at = scale(value) if numeric else names.index(str(value))
        return begin + (end - begin) * ((at - low) / (high - low) if high > low else 0.5)

    marks: Sequence[Any] = names or sorted(set(values))
    short = numeric and all(isinstance(v, int) or float(f"{v:.3g}") == v for v in marks)
    if numeric and len(marks) > 1 and not (each and short and len(marks) < FEW):
        whole = all(isinstance(v, int) for v in values)
        marks = _decades(low, high) if log else _round(low, high, whole)
    return place, [(place(v), _number(v) if numeric else v[:20]) for v in marks]


def _round(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high` at equal distances: 1, 2, 2.5 or 5 times a power of 10."""
    least = (high - low) / MARKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(times * power for times in (1, 2, 2.5, 5, 10, 20) if times * power >= least * 0.999)
    step = max(1.0, float(math.ceil(step))) if whole else step
    return [
        step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _decades(low: float, high: float) -> list[float]:
    """Powers of 10 between two logarithms, or other round numbers where these are too few."""
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(powers) > 1:
        return [10.0**n for n in powers[:: -(-len(powers) // (MARKS + 1))]]
    return _round(10**low, 10**high)


def _number(value: float) -> str:
    whole = value == int(value) and abs(value) < 10**7
    return f"{int(value):,}" if whole else f"{value:,.4g}"


def _svg(parts: Sequence[str], height: float = HEIGHT) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg {box} xmlns="http://www.w3.org/2000/svg" role="img">{"".join(parts)}</svg>'


def _polyline(points: Iterable[tuple[float, float]], title: str, **attributes: object) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    start = _element("polyline", points=path, **attributes).removesuffix("</polyline>")
    return f"{start}{_element('title', title)}</polyline>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, **{"class": kind})


def _text(x: float, y: float, text: object, anchor: str = "start") -> str:
    return _element("text", text, x=x, y=y, text_anchor=anchor)


def _element(tag: str, text: object = "", **attributes: object) -> str:
    """`<tag name="value">text</tag>`; an underscore in a name stands for a dash."""
    pairs = "".join(
        f' {name.replace("_", "-")}="{f"{v:.1f}" if isinstance(v, float) else _safe(v)}"'
        for name, v in attributes.items()
    )
    return f"<{tag}{pairs}>{_safe(text)}</{tag}>"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def _safe(text: object) -> str:
    return html.escape(printable(_short(text)))
