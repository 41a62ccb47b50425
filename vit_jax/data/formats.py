"""The image formats that are read. The first bytes of a file decide its format, never its name."""

from pathlib import PurePath

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

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\x93NUMPY", "NumPy"),
)  # fmt: skip

# Sizes of a BMP's second header. Its first bytes are not enough: BM also begins the word BMW.
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_NETPBM = tuple(bytes([kind]) for kind in b"123456Ff")  # after the P, as in P6


def format_of(head: bytes) -> str | None:
    """The format of a file by its first `HEAD` bytes, a key of `ENDINGS`; None if it has none."""
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in _NETPBM and (head[2:3].isspace() or head[2:3] == b"#"):
        return "PPM"
    return None


def named_as_image(name: str) -> bool:
    """Whether a file's name has an ending of images."""
    return PurePath(name).suffix.lower() in FORMAT_OF
