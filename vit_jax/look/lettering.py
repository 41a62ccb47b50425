"""Text on pictures. Names of classes may be in any script: each character is drawn in the first
font of this machine that has it, and is escaped, as in `\\u72ac`, if none has it."""

import contextlib
import functools
import importlib.util
import itertools
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Files that Pillow looks for among the fonts of the system, those with the most scripts first.
FILES = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc",
    "Arial Unicode.ttf", "msyh.ttc",
)  # fmt: skip
NO_CHARACTER = "\U0010ffff"  # that no font has: it is drawn as what stands for missing ones


@functools.cache
def fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """The fonts that are here: matplotlib's, the system's, and the one that Pillow brings."""
    package = importlib.util.find_spec("matplotlib")
    folder = Path(package.origin).parent if package and package.origin else Path()
    found: list = []
    for file in (str(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"), *FILES):
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(file, size))
    return [*found, ImageFont.load_default(size)]


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    drawn, missing = font.getmask(character), font.getmask(NO_CHARACTER)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def runs(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The text in pieces, each with the font that has its characters."""
    known, pieces = fonts(size), []
    for character in text:
        font = next((f for f in known if character.isspace() or _has(f, character)), None)
        if font is None:
            character, font = character.encode("unicode_escape").decode(), known[0]
        pieces.append((character, font))
    groups = itertools.groupby(pieces, key=lambda piece: piece[1])
    return [("".join(piece[0] for piece in group), font) for font, group in groups]


def width(text: str, size: int) -> int:
    """Pixels from the left to the right end of a text."""
    return round(sum(font.getlength(piece) for piece, font in runs(text, size)))


def fitted(text: str, size: int, most: int) -> str:
    """The text, or its beginning and `…` where it is wider than `most` pixels."""
    if width(text, size) <= most:
        return text
    ends = range(len(text), 0, -1)
    return next((f"{text[:n]}…" for n in ends if width(f"{text[:n]}…", size) <= most), "…")


def write(
    sheet: Image.Image, place: tuple[float, float], text: str, size: int, colour: str = "black"
) -> None:
    """Writes a text whose baseline begins at a place (x, y)."""
    draw, (x, y) = ImageDraw.Draw(sheet), place
    for piece, font in runs(text, size):
        draw.text((x, y), piece, colour, font, anchor="ls")
        x += font.getlength(piece)


def write_upwards(sheet: Image.Image, place: tuple[float, float], text: str, size: int) -> None:
    """Writes a text from a place (x, y) upwards, with its baseline on the right."""
    below = round(size / 3)
    line = Image.new("RGB", (max(1, width(text, size)), size + below), "white")
    write(line, (0, size), text, size)
    upright = line.rotate(90, expand=True)
    sheet.paste(upright, (round(place[0]) - size, round(place[1]) - upright.height))
