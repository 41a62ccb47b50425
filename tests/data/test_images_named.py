"""The images that a user names: patterns as a shell expands them, lists, pages as Pillow reads
them, addresses of a real server; and names that are nothing."""

import io
import os
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image, ImageSequence, TiffImagePlugin

from tests.made_images import encoded, smooth
from tests.served import served
from vit_jax.addresses import content
from vit_jax.data.decode import decode
from vit_jax.data.images import images_named, readable, refuse
from vit_jax.data.levels import DamagedImage, Levels
from vit_jax.data.stacks import images_in
from vit_jax.errors import UserError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with photographs of different sizes in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.jpg", "c.PNG", "more/d.png", "x[1].png", "x1.png"]):
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        (tmp_path / "photos" / name).write_bytes(encoded(smooth(8 + number, 9), kind))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path


def names(*given):
    return [image.name for image in images_named(given)[0]]


def read(*given, damaged=refuse, channels=3, levels=None):
    """name -> pixels of each image."""
    images = readable(images_named(given)[0], lambda data: decode(data, channels, levels), damaged)
    return {image.name: pixels for image, pixels in images}


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["photos/*.png", "photos/*", "photos/?.jpg", "*/x[[]*.png", "ph*/[bc].*"]
)
def test_a_pattern_means_what_the_shell_expands_it_to(here, pattern):
    shell = subprocess.run(
        f"printf '%s\\n' {pattern}", shell=True, text=True, capture_output=True, check=True,
        env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    matches = shell.stdout.splitlines()
    assert len(matches) >= 1
    assert names(pattern) == names(*matches)


def test_two_stars_are_folders_at_any_depth(here):
    assert names("photos/**/*.png") == [
        "photos/b.png", "photos/more/d.png", "photos/x1.png", "photos/x[1].png"
    ]  # fmt: skip


def test_a_file_of_that_name_comes_before_a_pattern_a_page_and_a_list(here):
    assert names("photos/x[1].png") == ["photos/x[1].png"]
    (here / "photos" / "x[1].png").unlink()
    assert names("photos/x[1].png") == ["photos/x1.png"]
    (here / "@b.png").write_bytes((here / "photos" / "b.png").read_bytes())
    assert names("@b.png") == ["@b.png"]


def test_a_list_is_the_names_on_its_lines_in_their_order(here):
    odd = os.fsdecode(b"photos/\xff\x1b.png")
    (here / odd).write_bytes((here / "photos" / "b.png").read_bytes())
    lines = ["photos/c.PNG", "", "photos/*.jpg", "photos/more", odd, "photos/c.PNG", "  "]
    wanted = names("photos/c.PNG", "photos/*.jpg", "photos/more", odd, "photos/c.PNG")
    for mark, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")):
        (here / "list.txt").write_bytes(mark + end.join(map(os.fsencode, lines)))
        assert names("@list.txt") == wanted
    assert names("photos/a.jpg", "@list.txt") == ["photos/a.jpg", *wanted]


def test_what_a_folder_leaves_out_is_said_for_each(here):
    images, notes = images_named(["photos", "photos/more"])
    assert len(images) == 7
    assert notes == ["photos: 1 file is left out: 1 .txt"]


def test_one_name_is_one_name_and_arrays_and_pillows_images_go_beside_names(here):
    assert [image.name for image in images_named("photos/a.jpg")[0]] == ["photos/a.jpg"]
    pixels = smooth(8, 9)
    found = images_named([here / "photos" / "b.png", pixels, Image.fromarray(pixels)])[0]
    for image in found:
        np.testing.assert_array_equal(decode(image.read()), pixels)
    assert [image.name for image in found] == [f"{here}/photos/b.png", "an image", "an image"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photos/*.bmp", r"photos/\*\.bmp: no file or folder matches"),
        ("photos/z.png", "photos/z.png: no such file or folder"),
        ("photos/z.png[1]", "no file or folder matches"),
        ("", "an empty name: no such file"),
        ("a\0b", r"a\\x00b: no such file"),
        ("@none.txt", "the list none.txt cannot be read: No such file"),
        ("@photos", "the list photos cannot be read: Is a directory"),
        ("@empty.txt", "the list empty.txt names no images"),
        ("@list.txt", "list.txt, line 2: photos/z.png: no such file or folder"),
        ("@nested.txt", "nested.txt, line 1: @list.txt: no such file or folder"),
        ("ftp://example.org/a.png", "images are read from http://, https://, gs://, file:// and"),
        ("hf://owner/repo", "images are read from http://, https://, gs://, file:// and"),
        ("empty", "no images in empty: JPEG, PNG"),
    ],
)
def test_a_name_that_is_nothing_is_refused_in_one_line(here, name, said):
    (here / "empty").mkdir()
    (here / "empty.txt").write_text("\n \n")
    (here / "list.txt").write_text("photos/b.png\nphotos/z.png\n")
    (here / "nested.txt").write_text("@list.txt\n")
    with pytest.raises(UserError, match=said) as refusal:
        images_named([name])
    assert "\n" not in str(refusal.value)


def test_a_list_given_as_an_image_is_refused_with_how_lists_are_written(here):
    with pytest.raises(UserError, match=r"notes\.txt cannot be read: .* write @photos/notes\.txt"):
        read("photos/notes.txt")


def test_an_address_of_a_file_is_that_file(here):
    assert names(f"file://{here}/photos/b.png") == [f"{here}/photos/b.png"]


# -- files that hold several images ---------------------------------------------------------------


def stack(mode="RGB", count=3, **options):
    """The bytes of a TIFF of several pages, and the pages as Pillow reads them."""
    rng = np.random.default_rng(0)
    pages = []
    for number in range(count):
        shape = (10 + number, 12) if mode in ("L", "I;16") else (10 + number, 12, len(mode))
        dtype = np.uint16 if mode == "I;16" else np.uint8
        pages.append(Image.fromarray(rng.integers(0, np.iinfo(dtype).max, shape, dtype)))
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], **options)
    with Image.open(file) as image:
        read = [np.array(page) for page in ImageSequence.Iterator(image)]
    return file.getvalue(), read


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("RGBA", {"big_tiff": True}),
     ("L", {"compression": "tiff_deflate", "big_tiff": True}), ("I;16", {})],
)  # fmt: skip
def test_the_pages_of_a_tiff_are_those_that_pillow_reads(tmp_path, mode, options):
    data, pages = stack(mode, **options)
    file = tmp_path / "stack.tif"
    file.write_bytes(data)
    channels = {"L": 1, "I;16": 1}.get(mode, len(mode))
    levels = Levels.between(0, 65535) if mode == "I;16" else None
    found = read(file, channels=channels, levels=levels)
    assert list(found) == [f"{file}[{number}]" for number in range(3)]
    for pixels, page in zip(found.values(), pages, strict=True):
        wanted = np.rint(page / 257) if mode == "I;16" else page
        np.testing.assert_array_equal(pixels.reshape(page.shape), wanted)
    one = read(f"{file}[2]", channels=channels, levels=levels)
    np.testing.assert_array_equal(one[f"{file}[2]"], found[f"{file}[2]"])
    with pytest.raises(UserError, match=r"stack.tif\[3\] cannot be read: the file holds 3 images"):
        read(f"{file}[3]", channels=channels)


def test_pages_in_the_other_order_of_bytes_are_read():
    """Pillow writes little-endian files; this one is made by hand from TIFF 6.0, section 2."""
    pages = [np.full((1, 2), shade, np.uint8) for shade in (7, 9)]
    data = bytearray(b"MM\0*" + (8).to_bytes(4, "big"))
    for number, page in enumerate(pages):
        start = len(data)
        entries = [(256, 3, 2 << 16), (257, 3, 1 << 16), (258, 3, 8 << 16), (259, 3, 1 << 16),
                   (262, 3, 1 << 16), (273, 4, start + 2 + 8 * 12 + 4), (278, 3, 1 << 16),
                   (279, 4, 2)]  # fmt: skip
        data += len(entries).to_bytes(2, "big")
        for tag, kind, value in entries:
            data += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big")
            data += value.to_bytes(4, "big")
        after = start + 2 + 8 * 12 + 4 + 2
        data += (0 if number else after).to_bytes(4, "big") + page.tobytes()
    found = [decode(image(), 1)[..., 0] for image in images_in(bytes(data))]
    np.testing.assert_array_equal(found, pages)


def with_kinds(*kinds):
    """A TIFF whose pages have these values of the tag NewSubfileType (TIFF 6.0, page 36)."""
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, True) as writer:
        for shade, kind in enumerate(kinds):
            page = Image.fromarray(np.full((4, 4), shade, np.uint8))
            page.save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
    return file.getvalue()


def test_thumbnails_and_masks_among_the_pages_are_no_images():
    shades = [decode(image(), 1).max() for image in images_in(with_kinds(0, 1, 2, 4, 2, 5))]
    assert shades == [0, 2, 4]
    assert len(images_in(with_kinds(0, 1, 1))) == 1  # a pyramid


def test_a_file_of_one_image_has_no_number_and_pages_of_an_animation_are_not_shown(tmp_path):
    """Training reads the first image of an animation, too."""
    frames = [Image.fromarray(smooth(6, 6)), Image.fromarray(255 - smooth(6, 6))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", smooth(6, 6)[None])
    for kind in ("gif", "tif", "npy"):
        assert list(read(tmp_path / f"a.{kind}")) == [f"{tmp_path}/a.{kind}"]
    with pytest.raises(UserError, match=r"a.tif\[1\] cannot be read: the file holds 1 image"):
        read(f"{tmp_path}/a.tif[1]")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4"])
def test_an_array_of_four_axes_is_that_many_images(tmp_path, order, dtype):
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 6)).astype(dtype)
    np.save(tmp_path / "a.npy", np.asarray(values, order=order))
    levels = None if dtype == "u1" else Levels.between(0, 255)
    found = read(tmp_path / "a.npy", channels=6, levels=levels)
    assert list(found) == [f"{tmp_path}/a.npy[{number}]" for number in range(3)]
    np.testing.assert_array_equal(list(found.values()), values)


def test_what_is_lost_of_a_stack_is_told_and_the_rest_is_read(tmp_path):
    data, pages = stack("L")
    file = tmp_path / "stack.tif"
    file.write_bytes(data[: len(data) - 250])  # the third page lies at the end
    lost = {}
    found = read(file, channels=1, damaged=lambda name, error: lost.update({name: str(error)}))
    assert (list(found), list(lost)) == ([f"{file}[0]", f"{file}[1]"], [f"{file}[2]"])
    np.testing.assert_array_equal(found[f"{file}[1]"][..., 0], pages[1])


def test_a_chain_of_pages_that_leads_back_ends():
    data = bytearray(with_kinds(0, 0))
    (first,) = {int.from_bytes(data[4:8], "little")}
    count = int.from_bytes(data[first : first + 2], "little")
    after = first + 2 + 12 * count
    second = int.from_bytes(data[after : after + 4], "little")
    count = int.from_bytes(data[second : second + 2], "little")
    data[second + 2 + 12 * count : second + 6 + 12 * count] = data[4:8]
    assert len(images_in(bytes(data))) == 2


def test_more_pages_than_anyone_has_are_refused_quickly():
    size = 6 * 70_000  # each directory has no entry, and the next one follows
    ends = b"".join(b"\0\0" + (8 + 6 * (n + 1)).to_bytes(4, "little") for n in range(70_000))
    with pytest.raises(DamagedImage, match="more than 65,536 pages"):
        images_in(b"II*\0" + (8).to_bytes(4, "little") + ends)
    assert len(ends) == size


def test_directories_that_overlap_are_refused_quickly():
    """Each begins four bytes after the one before it, and has 10,000 entries."""
    size = 2**18
    data = np.zeros(size // 2, "<u2")
    data[0:2] = np.frombuffer(b"II*\0", "<u2")
    for number in range(2000):
        start, after = 8 + 4 * number, 12 + 4 * number
        data[start // 2] = 10_000
        end = start + 2 + 12 * 10_000
        data[end // 2 : end // 2 + 2] = [after % 2**16, after >> 16]
    data[2] = 8
    with pytest.raises(DamagedImage, match="directories overlap"):
        images_in(data.tobytes())


# -- addresses -------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with served() as server:
        yield server


def sends(*headers, body=b"", status=200):
    """An answer; `body` may be a function that gives its pieces."""

    def answer(handler):
        handler.send_response(status)
        for header in headers:
            handler.send_header(*header)
        handler.end_headers()
        for piece in body() if callable(body) else [body]:
            handler.wfile.write(piece)

    return answer


def test_an_image_at_an_address_is_that_image_by_the_address(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    data, pages = stack()
    server.pages |= {
        "/a%20b.png?size=3": encoded(smooth(), "PNG"), "/stack.tif": data,
        "/moved": sends(("Location", "/stack.tif"), ("Content-Length", "0"), status=302),
    }  # fmt: skip
    found = read(f"{server.url}/a b.png?size=3", f"{server.url}/moved", f"{server.url}/moved[1]")
    assert list(found) == [
        f"{server.url}/a b.png?size=3", *(f"{server.url}/moved[{n}]" for n in range(3))
    ]  # fmt: skip
    np.testing.assert_array_equal(found[f"{server.url}/a b.png?size=3"], smooth())
    np.testing.assert_array_equal(found[f"{server.url}/moved[1]"], pages[1])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, r"nothing is there \(HTTP 404 "),
        (b"no image", "cannot identify image file: its bytes are none of JPEG"),
        (sends(("Content-Type", "text/html"), body=b"<html>"), "sends a web page, perhaps a login"),
        (sends(status=403), r"refuses it \(HTTP 403"),
        (sends(("Content-Length", "0")), "sends an empty file"),
        (sends(("Content-Length", str(2**30))), "it holds more than the 536,870,912 bytes"),
        (
            sends(("Location", "file:///etc/passwd"), status=302),
            r"'file:///etc/passwd' is not allowed",
        ),
        (encoded(smooth(), "PNG")[:200], "truncated"),
    ],
)
def test_what_is_no_image_at_an_address_is_said_in_one_line(server, answer, said):
    if answer is not None:
        server.pages["/a.png"] = answer
    with pytest.raises(UserError, match=said) as refusal:
        read(f"{server.url}/a.png")
    assert str(refusal.value).startswith(f"{server.url}/a.png cannot be read: ")
    assert str(refusal.value).count(server.url) == 1
    assert "\n" not in str(refusal.value)


def test_one_address_that_is_nothing_is_told_and_the_others_are_read(server):
    server.pages |= {"/a.png": encoded(smooth(), "PNG"), "/c.png": encoded(smooth(), "PNG")}
    lost = {}
    found = read(
        *(f"{server.url}/{name}.png" for name in "abc"),
        damaged=lambda name, error: lost.update({name: str(error)}),
    )
    assert list(found) == [f"{server.url}/a.png", f"{server.url}/c.png"]
    assert list(lost) == [f"{server.url}/b.png"]


def test_a_host_that_is_not_there_and_a_closed_port_are_said(server):
    server.server_close()
    with pytest.raises(UserError, match="refuses the connection"):
        read(f"{server.url}/a.png")
    with pytest.raises(UserError, match=r"there is no host nowhere\.invalid"):
        read("https://nowhere.invalid/a.png")


def test_an_answer_without_end_is_left(server):
    def endless():
        while True:
            yield b"x" * 2**16

    server.pages["/a.png"] = sends(body=endless)
    with pytest.raises(UserError, match="it holds more than the 1,000,000 bytes to be read"):
        content(f"{server.url}/a.png", 1_000_000)


def test_a_connection_that_drips_or_breaks_is_tried_again_and_then_left(server):
    given_up = threading.Event()

    def drips():
        yield b"x"
        given_up.wait(60)

    server.pages["/slow.png"] = sends(("Content-Length", "9"), body=drips)
    with pytest.raises(UserError, match=r"slow\.png: 1 bytes came in 0 s"):
        content(f"{server.url}/slow.png", 1000, pauses=(0,), window=0)
    given_up.set()
    assert server.asked == ["/slow.png"] * 2
    server.pages["/cut.png"] = sends(("Content-Length", "10"), body=b"12345")
    with pytest.raises(UserError, match=r"cut\.png: the connection was "):
        content(f"{server.url}/cut.png", 1000, pauses=(0, 0))
    answers = [sends(status=503), sends(("Content-Length", "2"), body=b"ok")]

    def busy(handler):
        answers.pop(0)(handler)

    server.pages["/busy.png"] = busy
    assert content(f"{server.url}/busy.png", 1000, pauses=(0,)) == b"ok"
