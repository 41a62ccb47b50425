"""The image formats that are read. The first bytes of a file decide its format, never its name."""

import re

HEAD = 32  # first bytes, which decide the format

# Format, as Pillow names it (NumPy's files are read without Pillow): usual endings of file names.
# Pillow tries only these, because it starts programs for some others (Ghostscript for EPS).
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "NumPy": (".npy",),
}
BY_PILLOW = tuple(name for name in ENDINGS if name != "NumPy")
FORMAT_OF = {ending: name for name, endings in ENDINGS.items() for ending in endings}
NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM/PGM, AVIF, JPEG 2000, NumPy"

# How the files of a format begin. BM alone is not enough for a BMP, because it also begins the word
# BMW: the size of the second header must be one that there is, too.
_STARTS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "NumPy": rb"\x93NUMPY",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "WEBP": rb"RIFF.{4}WEBP",
    "AVIF": rb".{4}ftyp.*avi[fs]",
    "PPM": rb"P[1-6Ff][\s#]",
}


def format_of(head: bytes) -> str | None:
    """The format of a file by its first `HEAD` bytes, a key of `ENDINGS`; None if it has none."""
    return next((name for name, start in _STARTS.items() if re.match(start, head, re.S)), None)


def named_as_image(name: str) -> bool:
    """Whether a file's name has an ending of images."""
    return name[name.rfind(".") :].lower() in FORMAT_OF
