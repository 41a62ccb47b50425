"""Charts as SVG, for pages that need nothing but a browser: curves, parallel coordinates, bars."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.errors import printable

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 24, 36  # margins
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000",
)  # fmt: skip

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
svg { max-width: 100%; height: auto; font: 11px system-ui, sans-serif }
"""


def page(title: str, *parts: str) -> str:
    """A whole HTML document of parts that are HTML."""
    name = _safe(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n"
        + "\n".join(parts) + "\n</body></html>\n"
    )  # fmt: skip


def heading(text: str) -> str:
    """A heading of a page's part."""
    return f"<h2>{_safe(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{_safe(text)}</p>"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain texts."""
    cells = [(f"<{tag}>" + f"</{tag}><{tag}>".join(map(_safe, row)) + f"</{tag}>")
             for tag, row in [("th", head), *(("td", row) for row in rows)]]  # fmt: skip
    return "<table>\n<tr>" + "</tr>\n<tr>".join(cells) + "</tr>\n</table>"


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x: str) -> str:
    """Named lines through (x, y) in one chart, with a legend below it."""
    points = [p for line in lines.values() for p in line if math.isfinite(p[1])]
    across, up = _Scale([p[0] for p in points]), _Scale([p[1] for p in points])
    parts = [_axes(across, up, x)]
    legend = []
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        at = [(across.x(a), up.y(b)) for a, b in line if math.isfinite(b)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5">'
                     f"<title>{_safe(name)}</title></polyline>")  # fmt: skip
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="{colour}"/>'
                  for a, b in (at if len(at) < 40 else ())]  # fmt: skip
        legend.append(f'<span style="color:{colour}">━ {_safe(name)}</span>')
    return _svg(parts) + f"<p>{' &nbsp; '.join(legend)}</p>"


def bars(shares: Mapping[str, float]) -> str:
    """Horizontal bars of shares of a whole."""
    step, left = 24, 220
    parts = []
    for number, (name, share) in enumerate(shares.items()):
        y = 8 + number * step
        width = max(1.0, share * (WIDTH - left - 60))
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{_safe(name)}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="16" fill="{COLOURS[0]}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 13}">{share:.2f}</text>'
        )
    return _svg(parts, 16 + step * len(shares))


def parallel(
    axes: Mapping[str, Sequence[object]], values: Sequence[float], log: Sequence[str] = ()
) -> str:
    """A line for each trial through its value on each axis, in the colour of its last value: from
    grey, the worst, to blue, the best, which is the highest.

    Args:
      axes: name -> a number or text of each trial; the last axis is that of `values`.
      values: what decides the colour.
      log: names of the axes that are logarithmic.
    """
    scales: dict[str, Any] = {name: _axis(column, name in log) for name, column in axes.items()}
    gap = (WIDTH - 160) / max(1, len(axes) - 1)
    places = {name: 80 + gap * number for number, name in enumerate(axes)}
    ranks = sorted(range(len(values)), key=lambda i: values[i])
    parts = []
    for rank, i in enumerate(ranks):
        share = rank / max(1, len(ranks) - 1)
        path = " ".join(f"{places[n]:.1f},{scales[n].y(axes[n][i]):.1f}" for n in axes)
        red, green, blue = (round(200 + (end - 200) * share**2) for end in (0, 90, 178))
        told = _safe(", ".join(f"{name} {_short(axes[name][i])}" for name in axes))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="rgb({red},{green},{blue})" '
            f'stroke-width="{1 + share:.1f}"><title>{told}</title></polyline>'
        )
    for name, x in places.items():
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
                     'stroke="#333"/>'
                     f'<text x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle">'
                     f"{_safe(name)}</text>"
                     + "".join(f'<text x="{x + 4:.1f}" y="{y + 4:.1f}">{_safe(text)}</text>'
                               for y, text in scales[name].marks))  # fmt: skip
    return _svg(parts)


class _Scale:
    """Numbers to places; a range of nothing lies in the middle."""

    def __init__(self, numbers: Sequence[float], log: bool = False):
        self._log, self._numbers = log, sorted(set(numbers))
        told = [self._at(n) for n in numbers] or [0.0]
        self.low, self.high = min(told), max(told)

    def _at(self, number: float) -> float:
        return math.log10(number) if self._log else float(number)

    def share(self, number: float) -> float:
        width = self.high - self.low
        return (self._at(number) - self.low) / width if width else 0.5

    def x(self, number: float) -> float:
        return LEFT + self.share(number) * (WIDTH - LEFT - RIGHT)

    def y(self, number: float) -> float:
        return HEIGHT - BOTTOM - self.share(number) * (HEIGHT - TOP - BOTTOM)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """(y, text) of the numbers where they are few, or else of five between the ends."""
        at = [self.low + (self.high - self.low) * i / 4 for i in range(5)]
        few = self._numbers if len(self._numbers) < 7 else [10**a if self._log else a for a in at]
        return [(self.y(number), f"{number:.3g}") for number in few]


class _Choices:
    """Texts to places, one below the other."""

    def __init__(self, column: Sequence[object]):
        texts = sorted({str(one) for one in column}, reverse=True)
        self._scale = _Scale(range(len(texts)))
        self._places = {text: number for number, text in enumerate(texts)}

    def y(self, one: object) -> float:
        return self._scale.y(self._places[str(one)])

    @property
    def marks(self) -> list[tuple[float, str]]:
        return [(self._scale.y(place), text[:20]) for text, place in self._places.items()]


def _axis(column: Sequence[object], log: bool) -> "_Scale | _Choices":
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in column):
        return _Scale(column, log)  # type: ignore[arg-type]
    return _Choices(column)


def _axes(across: _Scale, up: _Scale, x: str) -> str:
    lines = [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>'
             f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
             for y, text in up.marks]  # fmt: skip
    for part in range(5):
        number = across.low + (across.high - across.low) * part / 4
        lines.append(f'<text x="{across.x(number):.1f}" y="{HEIGHT - 18}" '
                     f'text-anchor="middle">{number:,.4g}</text>')  # fmt: skip
    return "".join(lines) + (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{_safe(x)}</text>'
    )


def _svg(parts: Sequence[str], height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'xmlns="http://www.w3.org/2000/svg" role="img">{"".join(parts)}</svg>'
    )


def _short(one: object) -> str:
    if isinstance(one, float):
        return f"{one:.4g}"
    return f"{one:,}" if isinstance(one, int) and one > 9999 else str(one)


def _safe(text: object) -> str:
    return html.escape(printable(_short(text)))
