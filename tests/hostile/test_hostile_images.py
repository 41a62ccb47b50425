"""Images that are none, that are others, or that have no end."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile import made

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) = quit\n%%EOF\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def bomb(size: int) -> bytes:
    """A megabyte that becomes `size` bytes."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(2**20)) for _ in range(size >> 20)]
    return b"".join(parts) + packer.flush()


def npy(shape: str, descr: str = "'|u1'", body: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def tiff(width: int, height: int, **more: int) -> bytes:
    """A TIFF's directory alone, that claims a size."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 278: height, 279: 2**31 - 1}
    tags |= {int(key): value for key, value in more.items()}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def frames(count: int) -> bytes:
    """A GIF of many small frames."""
    file = io.BytesIO()
    still = [Image.fromarray(np.full((8, 8), i % 250, np.uint8)) for i in range(count)]
    still[0].save(file, "GIF", save_all=True, append_images=still[1:])
    return file.getvalue()


def gif_bomb() -> bytes:
    return b"GIF89a" + struct.pack("<HH", 65535, 65535) + made.image("GIF")[10:]


def objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    return file.getvalue()


BYTES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"", "zeros": lambda: bytes(4096), "a text": lambda: b"not an image\n" * 9,
    "PostScript": lambda: POSTSCRIPT,
    "PostScript for DOS": lambda: struct.pack("<8I", 0xC6D3D0C5, 32, 99, *[0] * 5) + POSTSCRIPT,
    "a PDF": lambda: b"%PDF-1.7\n", "an SVG": lambda: b"<svg onload='alert(1)'/>",
    "a PSD": lambda: b"8BPS\0\1" + bytes(64), "an icon": lambda: b"\0\0\1\0\1\0" + bytes(64),
    "a program": lambda: b"\x7fELF" + bytes(64), "a FITS": lambda: b"SIMPLE  =" + b" " * 80,
    "a PNG of 10**9 pixels": lambda: png(40_000, 40_000, chunk(b"IDAT", bomb(2**24))),
    "a PNG of 2**31 columns": lambda: png(2**31 - 1, 1), "a PNG of no rows": lambda: png(8, 0),
    "a PNG without pixels": lambda: png(8, 8), "a PNG of depth 3": lambda: png(8, 8, depth=3),
    "a PNG with a bomb of text": lambda: png(
        8, 8, chunk(b"zTXt", b"x\0\0" + bomb(2**27)), chunk(b"IDAT", zlib.compress(bytes(200)))),
    "a PNG with a bomb of a profile": lambda: png(
        8, 8, chunk(b"iCCP", b"x\0\0" + bomb(2**27)), chunk(b"IDAT", zlib.compress(bytes(20)))),
    "a BMP of 2**31 rows": lambda: b"BM" + bytes(12) + struct.pack("<IiiI", 40, 8, -(2**31), 2**16),
    "a TIFF of 10**9 pixels": lambda: tiff(60_000, 60_000),
    "a TIFF that ends": lambda: tiff(100, 100),
    "a TIFF that leads back": lambda: tiff(100, 100)[:-4] + struct.pack("<I", 8),
    "a GIF of 65,535": gif_bomb, "a JPEG 2000 that ends": lambda: made.image("JPEG2000")[:90],
    "a PPM of 10**9 pixels": lambda: b"P6 40000 40000 255\n" + bytes(99),
    "a PPM without numbers": lambda: b"P6 # " + b"x" * 4000,
    "a WebP that says 16,383": lambda: made.image("WEBP")[:26] + b"\xff\x3f\xff\x3f",
    "a NumPy file of 2**60": lambda: npy(f"({2**30}, {2**30}, 3)"),
    "a NumPy file of none": lambda: npy("(0, 0, 3)"), "a NumPy file of objects": objects,
    "a NumPy file of five axes": lambda: npy("(1, 1, 8, 8, 3)", body=bytes(192)),
    "a NumPy file of texts": lambda: npy("(8, 8)", "'|S4'", bytes(256)),
    "a NumPy header that is code": lambda: npy("__import__('os').system('touch PWNED')"),
    "a NumPy file of NaN": lambda: npy("(8, 8, 3)", "'<f4'", np.full(192, np.nan, "<f4").tobytes()),
    "a NumPy file of six channels": lambda: npy("(8, 8, 6)", body=bytes(384)),
    **{f"half a {kind}": lambda kind=kind: made.image(kind, 64)[: len(made.image(kind, 64)) // 3]
       for kind in FORMATS},
}  # fmt: skip

FILES: dict[str, Callable[[Path], object]] = {
    "a device": lambda p: p.symlink_to("/dev/zero"),
    "noise": lambda p: p.symlink_to("/dev/urandom"),
    "a pipe": os.mkfifo, "a link to itself": lambda p: p.symlink_to(p.name),
    "a link to nothing": lambda p: p.symlink_to("nowhere"),
    "a terabyte": lambda p: sparse(p, 2**40), "3 GB": lambda p: sparse(p, 3 * 2**30, made.image()),
    "a link to a folder": lambda p: p.symlink_to("/usr"),
    "memory": lambda p: p.symlink_to("/proc/self/mem"),
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return made.weights(tmp_path_factory.mktemp("weights") / "w.npz", "google")


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_image_are_refused_in_one_line(vit, weights, tmp_path, name):
    (tmp_path / "x.png").write_bytes(BYTES[name]())
    vit.refused("predict", weights, "x.png", cwd=tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_end_is_refused_before_it_is_read(vit, weights, tmp_path, name):
    (tmp_path / "images").mkdir()
    FILES[name](tmp_path / "images" / "x.png")
    vit.refused("predict", weights, "images", cwd=tmp_path)


def test_what_cannot_be_read_is_told_by_name_and_the_rest_is_predicted(vit, weights, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (name, data) in enumerate(BYTES.items()):
        if "six" not in name:
            (folder / f"{number:02d}.jpg").write_bytes(data())
    for name, make in FILES.items():
        make(folder / f"{name.replace(' ', '_')}.png")
    (folder / os.fsdecode(b"caf\xe9\x1b[2J\n.png")).write_bytes(made.image())
    answer = vit("predict", weights, "images", "--output=out.csv", cwd=tmp_path,
                 writes=(tmp_path / "out.csv", tmp_path / ".out.csv.part"))  # fmt: skip
    assert answer["code"] == 0, answer["err"]
    assert answer["err"].count("skipped: ") >= len(BYTES) - 1
    assert (tmp_path / "out.csv").read_bytes().count(b"caf") == 1


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("ending", ["png", "dat", ""])
def test_every_format_is_read_by_its_content(vit, weights, tmp_path, kind, ending):
    file = tmp_path / f"x.{ending}".rstrip(".")
    file.write_bytes(made.image(kind))
    assert f"{file.name}: " in vit.read("predict", weights, file.name, cwd=tmp_path)


def test_a_thousand_frames_are_one_image(vit, weights, tmp_path):
    (tmp_path / "x.gif").write_bytes(frames(1000))
    assert "x.gif: " in vit.read("predict", weights, "x.gif", cwd=tmp_path)


def test_pictures_do_not_start_ghostscript(vit, weights, tmp_path):
    """A program of that name stands on the path, and is not started (the watch would tell)."""
    (tmp_path / "x.jpg").write_bytes(POSTSCRIPT)
    vit.refused("predict", weights, "x.jpg", cwd=tmp_path)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "x.jpg").write_bytes(POSTSCRIPT)
    answer = vit("data", "check", "folder:set", cwd=tmp_path)
    assert answer["code"] in (1, 2)
