"""Bytes to pixels: equal to Pillow's, by content, and damaged files refused."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, smooth
from PIL import Image, ImageOps

from vit_jax.data.decode import ORIENTATION, DamagedImage, EncodedJpeg, decode
from vit_jax.data.decode import encoded as open_encoded
from vit_jax.data.stored import stored_size
from vit_jax.errors import UserError

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


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_alpha_is_a_channel_where_the_model_has_one_for_it(channels, mode, kind):
    data = encoded(smooth(), kind)
    np.testing.assert_array_equal(decode(data, channels), by_pillow(data, mode))
    transparent = io.BytesIO()
    Image.fromarray(np.dstack([smooth(), smooth()[..., 2]])).save(transparent, "PNG")
    found = decode(transparent.getvalue(), 4)
    np.testing.assert_array_equal(found[..., 3], smooth()[..., 2])


@pytest.mark.parametrize("channels", [0, 5])
def test_files_of_images_have_no_other_numbers_of_channels(channels):
    with pytest.raises(UserError, match=f"1 to 4 channels, the model wants {channels}: .*npy"):
        decode(encoded(smooth()), channels)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 256)])
def test_a_numpy_file_has_any_number_of_channels(dtype, scale):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 6), np.uint8)
    file = io.BytesIO()
    np.save(file, pixels.astype(dtype) * scale)
    np.testing.assert_array_equal(decode(file.getvalue(), 6), pixels)
    with pytest.raises(UserError, match=r"has 6 channels, the model wants 3 .*model.channels=6"):
        decode(file.getvalue(), 3)
    np.save(file := io.BytesIO(), pixels.transpose(2, 0, 1).astype(dtype))
    with pytest.raises(UserError, match=r"has 7 channels, .*transpose\(1, 2, 0\)"):
        decode(file.getvalue(), 6)


@pytest.mark.parametrize("values", [np.zeros((3, 3)), np.zeros((0, 3), np.uint8), np.array([None])])
def test_other_numpy_files_are_damaged_images(values):
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    with pytest.raises(DamagedImage):
        decode(file.getvalue(), 3)


# -- upright ------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exif_orientation_is_applied(orientation, kind):
    lying = Image.fromarray(smooth(30, 40))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    lying.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(file.getvalue())) as stored:
        wanted = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    found = decode(file.getvalue())
    assert found.shape == wanted.shape == ((30, 40, 3) if orientation < 5 else (40, 30, 3))
    assert np.abs(found.astype(int) - wanted).mean() <= 1


# -- a part of a JPEG ---------------------------------------------------------------------

JPEGS = {
    "plain": {}, "progressive": {"progressive": True}, "colours whole": {"subsampling": 0},
    "optimised": {"optimize": True}, "restarts": {"restart_marker_blocks": 3},
    "restarted rows": {"restart_marker_rows": 1}, "grey": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", JPEGS)
@given(st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_part_of_a_jpeg_is_that_part_of_the_whole(kind, data):
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 50))
    pixels = noise(height, width)
    file = encoded(pixels[..., 0] if kind == "grey" else pixels, **JPEGS[kind])
    whole = decode(file)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    tall, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    part = whole_jpeg(file).region(top, left, tall, wide, (tall, wide))
    np.testing.assert_array_equal(part, whole[top : top + tall, left : left + wide])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_large_jpeg_is_reduced_while_it_is_decoded(factor):
    file = encoded(smooth(400, 320), quality=95)
    size = 200 // factor, 160 // factor
    part = whole_jpeg(file).region(96, 64, 200, 160, size)
    assert part.shape == (*size, 3)
    exact = decode(file)[96:296, 64:224]
    mean = exact.reshape(size[0], factor, size[1], factor, 3).mean((1, 3))
    assert np.abs(part - mean).mean() <= 2


def test_what_follows_the_part_that_is_read_does_not_matter_unless_it_is_not_there():
    file = encoded(noise(400, 60), quality=95)
    whole = decode(file)
    cut = file[: int(0.9 * len(file))]
    with pytest.raises(DamagedImage):
        whole_jpeg(cut).region(0, 0, 40, 60, (40, 60))
    harmless = whole_jpeg(file).region(0, 0, 40, 60, (40, 60))
    np.testing.assert_array_equal(harmless, whole[:40])


def whole_jpeg(data):
    image = open_encoded(data, 3)
    assert isinstance(image, EncodedJpeg)
    return image


def test_a_decompression_bomb_is_refused_by_its_head():
    head = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
    frame = head.index(b"\xff\xc0")
    head[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    with pytest.raises(DamagedImage, match="20000 x 20000 pixels are more than"):
        decode(bytes(head))


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


def test_sixteen_bits_are_turned_upright_too():
    levels = (np.arange(24, dtype=np.uint16) * 2000).reshape(4, 6)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decode(file.getvalue(), 1)[..., 0], np.rot90(levels >> 8, -1))


def test_pixels_of_floats_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.float32)).save(file, "TIFF")
    with pytest.raises(DamagedImage, match="floats"):
        decode(file.getvalue())


@pytest.mark.parametrize("shape", ["(2000000, 2000000)", "(2,", "'a'"])
def test_a_numpy_file_with_a_nonsense_head_is_damaged(shape):
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()
    with pytest.raises(DamagedImage) as error:
        decode(data, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "NumPy"])
def test_a_size_is_read_from_the_header_before_exif_turns_the_image(kind):
    pixels = smooth(24, 32)
    turned = Image.Exif()
    turned[0x0112] = 6
    if kind == "NumPy":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        data = buffer.getvalue()
    else:
        data = encoded(pixels, kind, **({"exif": turned} if kind == "JPEG" else {}))
    assert stored_size(data) == (24, 32)
    with pytest.raises(DamagedImage):
        stored_size(data[:9])
    with pytest.raises(DamagedImage, match="cannot identify"):
        stored_size(b"no image")
