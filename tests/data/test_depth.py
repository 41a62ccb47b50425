"""Values of more than 8 bits, by the formula of `decode(low, high)`; and bytes that lie."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, smooth
from PIL import Image, ImageOps

from vit_jax.data.decode import ORIENTATION, DamagedImage, decode
from vit_jax.data.formats import BY_PILLOW, NAMES
from vit_jax.data.levels import Levels, NeedsRange
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import UserError

LOW, HIGH = 100, 3_000
RANGE = Levels.between(LOW, HIGH)
DEEP = np.random.default_rng(0).integers(0, 4096, (34, 40, 3), np.uint16)  # 12 bits in 16


def by_formula(values, low=LOW, high=HIGH):
    """The specification, in float64."""
    share = (np.asarray(values, np.float64) - low) / (np.asarray(high, float) - low)
    return np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def by_cv2(ending, values, *options):
    """OpenCV takes blue first."""
    order = [2, 1, 0, 3][: values.shape[-1]] if values.ndim == 3 else slice(None)
    return cv2.imencode(ending, np.ascontiguousarray(values[..., order]), options)[1].tobytes()


def netpbm(head, values):
    return head + values.astype(">u2").tobytes()


def as_text(values):
    return b"P2 40 34 4095\n" + b"\n".join(b" ".join(b"%d" % v for v in row) for row in values)


LOSSLESS_JP2 = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)
GREY = DEEP[..., 0]
FILES = {
    "PNG, grey": (encoded(GREY, "PNG"), GREY), "PNG": (by_cv2(".png", DEEP), DEEP),
    "TIFF, grey": (encoded(GREY, "TIFF"), GREY), "TIFF": (by_cv2(".tiff", DEEP), DEEP),
    "TIFF, packed": (encoded(GREY, "TIFF", compression="tiff_deflate"), GREY),
    "TIFF, floats": (encoded(GREY.astype(np.float32), "TIFF"), GREY),
    "TIFF, 32 bits": (encoded(GREY.astype(np.int32), "TIFF"), GREY),
    "PGM": (netpbm(b"P5 40 34 4095\n", GREY), GREY),
    "PGM of 16 bits": (netpbm(b"P5\n# made\n40 34\n65535\n", GREY), GREY),
    "PGM, as text": (as_text(GREY), GREY), "PPM": (netpbm(b"P6 40 34 4095\n", DEEP), DEEP),
    "JPEG 2000, grey": (by_cv2(".jp2", GREY, *LOSSLESS_JP2), GREY),
    "JPEG 2000": (by_cv2(".jp2", DEEP, *LOSSLESS_JP2), DEEP),
    "NumPy": (npy(DEEP), DEEP), "NumPy, [H, W]": (npy(GREY), GREY),
    "NumPy, other bytes": (npy(DEEP.astype(">u2")), DEEP),
    "NumPy, by column": (npy(np.asfortranarray(DEEP)), DEEP),
    "NumPy, signed": (npy(DEEP.astype(np.int16)), DEEP),
    "NumPy, wide": (npy(DEEP.astype(np.int64)), DEEP),
    "NumPy, floats": (npy(DEEP.astype(np.float32)), DEEP),
    "NumPy, doubles": (npy(DEEP.astype(np.float64)), DEEP),
    "NumPy, bands": (npy(np.dstack([DEEP, DEEP])), np.dstack([DEEP, DEEP])),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_range_makes_pixels_of_the_values_that_a_file_holds(name):
    data, values = FILES[name]
    values = values.reshape(*values.shape[:2], -1)
    made = decode(data, values.shape[-1], RANGE)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, by_formula(values))


@pytest.mark.parametrize("name", FILES)
def test_without_a_range_16_bits_become_their_upper_eight_and_others_are_refused(name):
    data, values = FILES[name]
    values = values.reshape(*values.shape[:2], -1)
    if any(word in name for word in ("floats", "signed", "wide", "doubles", "32")):
        with pytest.raises(NeedsRange, match=r"(floats|integers) .*begin .* decode\(low, high\)"):
            decode(data, values.shape[-1])
        return
    made = decode(data, values.shape[-1]).astype(int)
    own = 4095 if name in ("PGM", "PPM", "PGM, as text") else 65535  # what the file says of itself
    assert np.abs(made - values * (255 / own)).max() <= 1


def test_a_range_may_be_one_for_each_channel():
    low, high = (0, 100, 200), (4095, 3000, 1000)
    data = by_cv2(".png", DEEP)
    made = decode(data, 3, Levels.between(low, high))
    np.testing.assert_array_equal(made, by_formula(DEEP, np.array(low), high))
    with pytest.raises(UserError, match="2 ranges, the images have 3 channels"):
        decode(data, 3, Levels.between((0, 0), 1))


def test_values_beyond_the_range_are_its_ends_and_what_is_no_number_is_damaged():
    values = np.array([[-np.inf, -1e30, 0.25, 1e30, np.inf]], np.float32)
    made = decode(npy(values), 1, Levels.between(0, 1))
    np.testing.assert_array_equal(made[..., 0], [[0, 0, 64, 255, 255]])
    values[0, 2] = np.nan
    with pytest.raises(DamagedImage, match="not numbers"):
        decode(npy(values), 1, Levels.between(0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "NumPy"])
def test_files_of_8_bits_are_in_their_range_already(kind):
    pixels = smooth()
    data = npy(pixels) if kind == "NumPy" else encoded(pixels, kind)
    np.testing.assert_array_equal(decode(data, 3, RANGE), decode(data, 3))


def test_channels_of_deep_files_become_those_of_the_model():
    grey, colours = encoded(GREY, "PNG"), by_cv2(".png", DEEP)
    np.testing.assert_array_equal(
        decode(grey, 3, RANGE), by_formula(GREY)[..., None].repeat(3, axis=-1)
    )
    luma = DEEP @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_array_equal(decode(colours, 1, RANGE)[..., 0], by_formula(luma))
    np.testing.assert_array_equal(decode(colours, 4, RANGE)[..., 3], 255)
    clear = by_cv2(".png", np.dstack([DEEP, GREY]))
    np.testing.assert_array_equal(decode(clear, 4, RANGE)[..., 3], by_formula(GREY))
    np.testing.assert_array_equal(decode(clear, 3, RANGE), by_formula(DEEP))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright_too(orientation):
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16) + 1000).save(file, "PNG", exif=exif)
    lying = Image.fromarray(pixels)
    lying.getexif()[ORIENTATION] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(lying))
    found = decode(file.getvalue(), 1, Levels.between(1000, 1255))[..., 0]
    np.testing.assert_array_equal(found, wanted)


# -- ranges that are none -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("5, 5", "low is less than high, not 5 and 5"),
        ("5, 3", "low is less than high"),
        ("0", "high is a finite number"),
        ("0, 1e999", "high is a finite number"),
        ("-1e308, 1e308", "low is less than high"),
        ("0, True", "high is a finite number"),
        ("0, 'all'", "high is a finite number, or one for each channel, not 'all'"),
        ("(0, 0), (1, 1, 1)", "low has 2 numbers and high 3"),
        ("(), 1", "low is a finite number"),
        ("0, nan", "decode takes"),
        ("0, 1, 2", "decode takes"),
        ("0, 10**400", "decode takes"),
    ],
)
def test_what_is_no_range_is_refused_where_the_pipeline_is_read(arguments, says):
    with pytest.raises(UserError, match=r"operation .decode.* in pipeline: decode takes") as e:
        parse(f"decode({arguments})|resize", (8, 8))
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_a_pipeline_carries_its_range_and_compares_it_with_the_models_channels():
    assert parse("decode|resize", (8, 8)).levels is None
    assert parse("decode()|resize", (8, 8)).levels is None
    assert parse("decode(100, high=3000)|flip_lr", (8, 8)).levels == RANGE
    assert parse("decode((1, 2), 4)", (8, 8), channels=2).levels == Levels((1, 2), (4, 4))
    with pytest.raises(UserError, match="2 ranges, the images have 3 channels"):
        parse("decode((1, 2), 4)", (8, 8), channels=3)


def test_arrays_of_a_source_are_decoded_by_the_range_and_refused_without():
    values = DEEP.astype(np.float32)
    pipeline = parse("decode(100, 3000)", (34, 40))
    np.testing.assert_array_equal(pipeline.open(values, 3), by_formula(values))
    pixels = smooth()
    assert pipeline.open(pixels, 3) is pixels
    with pytest.raises(UserError, match=r"has pixels of float32: a source gives .*\(low, high\)"):
        parse("decode", (34, 40)).open(values, 3)


# -- bytes that are no image, or lie ------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1" + bytes(40),
     b"\0\0\1\0\1\0" + bytes(40), b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG"],
    ids=["EPS", "PSD", "ICO", "SVG", "half a PNG"],
)  # fmt: skip
def test_what_is_none_of_the_formats_is_refused_by_a_line_that_names_them(data, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no program could be started
    with pytest.raises(DamagedImage) as error:
        decode(data)
    assert NAMES in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in BY_PILLOW if kind != "JPEG"])
def test_each_format_is_read_by_its_content(kind):
    pixels = smooth()
    options = {"lossless": True} if kind == "WEBP" else {}
    made = decode(encoded(pixels, kind, **options)).astype(int)
    assert np.abs(made - pixels).mean() <= 4  # AVIF's loss, and GIF's colours


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_pictures_the_first_is_the_image(kind):
    first, second = (Image.fromarray(np.full((20, 30, 3), v, np.uint8)) for v in (40, 200))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=[second])
    assert np.abs(decode(file.getvalue()).astype(int) - 40).max() <= 3


def png(width, height, *chunks):
    whole = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in whole
    )


def patched(data, at, value):
    return data[:at] + value + data[at + len(value) :]


JP2 = by_cv2(".jp2", GREY)
TALL = {
    "PNG": png(30_000, 30_000, (b"IDAT", zlib.compress(b""))),
    "GIF": patched(encoded(smooth(), "GIF"), 6, struct.pack("<HH", 65_000, 65_000)),
    "BMP": patched(encoded(smooth(), "BMP"), 18, struct.pack("<ii", 30_000, 30_000)),
    "PPM": b"P6 30000 30000 255\n",
    "JPEG 2000": patched(JP2, JP2.index(b"ihdr") + 4, struct.pack(">II", 30_000, 30_000)),
    "NumPy": npy(np.zeros((2, 2), np.uint8)).replace(b"(2, 2), }   ", b"(99999, 9999), }")
    + bytes(9),
}


@pytest.mark.parametrize("kind", TALL)
def test_a_size_beyond_what_is_allowed_is_refused_before_pixels_are_made(kind):
    with pytest.raises(DamagedImage, match=r"pixels"):
        decode(TALL[kind], 1)


@pytest.mark.parametrize("shape", ["(1099511627776, 1)", "(3, 4, 5000000000)", "(99, 99)"])
@pytest.mark.parametrize("dtype", ["|u1", "<f8", "<u2"])
def test_a_numpy_file_is_compared_with_the_bytes_that_there_are(shape, dtype):
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(500)
    with pytest.raises(DamagedImage, match=r"head claims|pixels are more than"):
        decode(data, 1, RANGE)


@pytest.mark.parametrize(
    "values",
    [np.array([["a"]]), np.zeros((2, 2), complex), np.zeros((2, 2, 2, 2)), np.zeros(3),
     np.zeros((2, 2), "M8[s]"), np.zeros((2, 2), [("a", "u1")]), np.zeros((0, 2))],
)  # fmt: skip
def test_a_numpy_file_of_no_image_is_damaged_with_a_range_too(values):
    with pytest.raises(DamagedImage):
        decode(npy(values), 1, RANGE)


def tags_that_claim(count, size):
    """A TIFF directory of `count` tags, each of the same `size` bytes."""
    start = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack("<HHII", 700 + n, 1, size, start) for n in range(count))
    return struct.pack("<2sHIH", b"II", 42, 8, count) + entries + bytes(4 + size)


def test_tags_that_claim_the_same_bytes_over_and_over_are_refused():
    with pytest.raises(DamagedImage, match="its tags claim 300,000,000 bytes"):
        decode(tags_that_claim(3000, 100_000))
    exif = png(8, 8, (b"eXIf", tags_that_claim(3000, 100_000)),
               (b"IDAT", zlib.compress(bytes(8 * 9))), (b"IEND", b""))  # fmt: skip
    with pytest.raises(DamagedImage, match="its tags claim"):
        decode(exif)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_chunk_that_unpacks_to_a_lot_is_not_unpacked(name):
    packed = b"a\0" + bytes(3 if name == b"iTXt" else 0) + b"\0" + zlib.compress(bytes(10**8))
    if name == b"iTXt":
        packed = b"a\0\1\0\0\0" + zlib.compress(bytes(10**8))
    data = png(8, 8, (name, packed), (b"IDAT", zlib.compress(bytes(8 * 9))), (b"IEND", b""))
    with pytest.raises(DamagedImage) as error:
        decode(data)
    assert "too large" in str(error.value)


BROKEN = {name: FILES[name][0] for name in
          ("PNG", "TIFF", "TIFF, packed", "TIFF, floats", "PGM", "PPM", "PGM, as text", "NumPy",
           "JPEG 2000", "JPEG 2000, grey")} | {"AVIF": encoded(smooth(), "AVIF")}  # fmt: skip


@given(st.sampled_from(sorted(BROKEN)), st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_happened_to_a_deep_file_it_is_an_image_or_damaged(name, data):
    broken = bytearray(BROKEN[name])
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(broken)))
    levels = data.draw(st.sampled_from([None, RANGE]))
    try:
        made = decode(bytes(broken[:cut]), 3, levels)
    except (DamagedImage, UserError) as error:  # of another number of channels
        made, said = None, str(error)
    if made is None:
        assert said
        assert said.isprintable()
    else:
        assert made.dtype == np.uint8


@pytest.mark.parametrize("name", ["PNG", "TIFF", "JPEG 2000"])
def test_a_deep_file_that_is_cut_short_is_damaged(name):
    data = FILES[name][0]
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(DamagedImage):
            decode(data[: int(share * len(data))], 3, RANGE)
