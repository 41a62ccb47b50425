"""Bytes to pixels: equal to Pillow's, by content, and damaged files refused."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, smooth
from PIL import Image

from vit_jax.data.decode import DamagedImage, decode

LOSSLESS = ["PNG", "BMP", "TIFF"]


def by_pillow(data, mode="RGB"):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert(mode))


def noise(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# -- equal to Pillow ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("pixels", [smooth(100, 75), noise()], ids=["smooth", "noise"])
def test_a_jpeg_equals_pillows_decoding(pixels, options):
    data = encoded(pixels, quality=90, **options)
    ours, theirs = decode(data), by_pillow(data)
    assert (ours.shape, ours.dtype) == (theirs.shape, np.uint8)
    assert np.abs(ours.astype(int) - theirs).mean() <= 1


@pytest.mark.parametrize("kind", [*LOSSLESS, "GIF", "WEBP"])
def test_every_other_kind_equals_pillows_decoding_exactly(kind):
    data = encoded(noise(), kind)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_file_gives_back_the_pixels_that_went_in(kind):
    pixels = noise()
    np.testing.assert_array_equal(decode(encoded(pixels, kind)), pixels)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_images_of_every_size_keep_it(height, width):
    pixels = noise(height, width)
    for kind in ("PNG", "JPEG"):
        assert decode(encoded(pixels, kind)).shape == (height, width, 3)


# -- by content ---------------------------------------------------------------------------


def test_a_png_named_jpg_is_decoded_by_its_content(tmp_path):
    pixels = noise()
    (tmp_path / "photo.jpg").write_bytes(encoded(pixels, "PNG"))
    np.testing.assert_array_equal(decode((tmp_path / "photo.jpg").read_bytes()), pixels)


# -- channels -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_gray_file_becomes_three_equal_channels(kind):
    gray = smooth()[..., 1]
    pixels = decode(encoded(gray, kind, **({"quality": 95} if kind == "JPEG" else {})))
    assert pixels.shape == (*gray.shape, 3)
    assert np.abs(pixels.astype(int) - gray[..., None]).mean() <= 1
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_colour_file_read_with_one_channel_is_its_luma(kind):
    pixels = smooth()
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG has it
    gray = decode(encoded(pixels, kind), channels=1)
    assert gray.shape == (*pixels.shape[:2], 1)
    assert np.abs(gray[..., 0] - luma).mean() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_other_colour_modes_become_rgb(mode):
    image = Image.fromarray(noise()).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue()), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_is_decoded():
    buffer = io.BytesIO()
    Image.fromarray(smooth()).convert("CMYK").save(buffer, "JPEG", quality=95)
    ours, theirs = decode(buffer.getvalue()), by_pillow(buffer.getvalue())
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(DamagedImage, match=f"1 or 3 channels, the model wants {channels}"):
        decode(encoded(smooth()), channels)


# -- damage -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_damaged(kind, share):
    data = encoded(noise(), kind)
    with pytest.raises(DamagedImage):
        decode(data[: int(share * len(data))])


def test_a_jpeg_that_lost_only_its_end_is_damaged_where_pixels_are_missing():
    data = encoded(noise())
    for cut in range(100, len(data) - 2, 97):
        with pytest.raises(DamagedImage):
            decode(data[:cut])


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, this is no image", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\0" * 100],
    ids=["empty", "text", "jpeg marker", "png marker", "zeros"],
)
def test_what_is_no_image_is_damaged_and_says_so_in_one_line(data):
    with pytest.raises(DamagedImage) as error:
        decode(data)
    assert str(error.value)
    assert "\n" not in str(error.value)
    assert "BytesIO" not in str(error.value)


@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]), st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_happened_to_a_file_it_is_an_image_or_damaged(kind, data):
    broken = bytearray(encoded(noise(8, 9), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    channels = data.draw(st.sampled_from([1, 3]))
    try:
        pixels = decode(bytes(broken), channels)
    except DamagedImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (channels,)


def test_sixteen_bits_are_read_as_their_upper_eight():
    levels = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue(), 1)[..., 0], levels >> 8)
    np.testing.assert_array_equal(decode(file.getvalue(), 3)[..., 2], levels >> 8)
