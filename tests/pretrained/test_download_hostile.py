"""Servers, names and folders that are not what they should be: one line, and no file is made."""

import contextlib
import errno
import hashlib
import json
import os
import socketserver
import stat
import threading
import urllib.request

import pytest

from tests.served import served
from vit_jax import addresses
from vit_jax.errors import UserError
from vit_jax.pretrained import cache
from vit_jax.pretrained.download import Patience, fetch

DATA = bytes(range(251)) * 600  # 150,600 bytes
SHA256 = hashlib.sha256(DATA).hexdigest()
HASTY = Patience(pauses=(0, 0, 0))


def answer(body=b"", *headers, status="200 OK", length=True):
    """The bytes of an answer, with its length unless the headers state one."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length and not any(line.lower().startswith("content-length") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def part(first, last, total, *headers, body=None):
    """HTTP 206, with the bytes that its Content-Range states unless they are given."""
    body = DATA[first : last + 1] if body is None else body
    said = f"Content-Range: bytes {first}-{last}/{total}"
    return answer(body, said, *headers, status="206 Partial Content")


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        lines = []
        while (line := self.rfile.readline().strip()) != b"":
            lines.append(line.decode("latin-1"))
        self.server.seen.append(lines)
        answers = self.server.answers
        says = answers.pop(0) if len(answers) > 1 else answers[0]
        with contextlib.suppress(OSError):  # the reader may have seen enough
            for piece in says(len(self.server.seen)) if callable(says) else [says]:
                self.wfile.write(piece)


class Server(socketserver.ThreadingTCPServer):
    """Gives its answers in turn, the last one for ever, byte for byte; a connection for each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Connection)
        self.answers, self.seen = [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, header):
        """What each request said in that header."""
        named = [dict(line.split(": ", 1) for line in lines[1:]) for lines in self.seen]
        return [headers.get(header) for headers in named]


@pytest.fixture
def server():
    with served(Server) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A cache of the test's own, no proxy, nobody's token."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def refused(address, *arguments, **options):
    """The one line that `fetch` raises; nothing in it can move a cursor."""
    with pytest.raises(UserError) as error:
        fetch(address, *arguments, **({"patience": HASTY, "say": lambda line: None} | options))
    line = str(error.value)
    assert line.isprintable()
    return line


def files(folder):
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def beside(folder, address, ending):
    """The place beside a file of that address, in its folder."""
    place = cache.Cache(folder).place(address, "/w.npz")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.with_name(place.name + ending)


# -- parts -----------------------------------------------------------------------------------------

ETAG = 'ETag: "one"'
CUT = answer(DATA[:70_000], ETAG, f"Content-Length: {len(DATA)}")  # what leaves a part of 70,000


@pytest.mark.parametrize(
    "other",
    [
        part(0, 69_999, len(DATA), ETAG),  # starts elsewhere than asked
        part(80_000, len(DATA) - 1, len(DATA), ETAG),
        part(70_000, len(DATA) + 9, len(DATA) + 10, ETAG, body=b"x" * (len(DATA) - 69_990)),
        part(70_000, len(DATA) - 1, len(DATA)),  # names no version
        part(70_000, len(DATA) - 1, len(DATA), 'ETag: W/"one"'),
        part(70_000, len(DATA) - 1, len(DATA), 'ETag: "two"'),
        part(70_000, len(DATA) - 1, "*", ETAG),
        part(70_000, 60_000, len(DATA), ETAG, body=b""[:0] + b"x"),
        part(70_000, len(DATA) - 1, len(DATA), ETAG, "Content-Length: 7"),
        answer(DATA[70_000:], ETAG, status="206 Partial Content"),  # without a Content-Range
        answer(b"", status="416 Range Not Satisfiable"),
    ],
)
def test_a_part_that_does_not_continue_what_is_here_starts_the_file_anew(server, other):
    server.answers = [CUT, other, answer(DATA, ETAG)]
    assert fetch(f"{server.url}/w.npz", patience=HASTY).read_bytes() == DATA
    assert server.asked("Range") == [None, "bytes=70000-", None]


def test_a_file_that_changed_by_its_total_alone_is_not_appended_to(server):
    new = DATA[::-1] + b"more"
    server.answers = [
        CUT,
        answer(
            new[70_000:], f"Content-Range: bytes 70000-{len(new) - 1}/{len(new)}",
            status="206 Partial Content",
        ),
        answer(new),
    ]  # fmt: skip
    assert fetch(f"{server.url}/w.npz", patience=HASTY).read_bytes() == new


@pytest.mark.parametrize(
    "first", [part(0, 999, len(DATA)), part(0, len(DATA) - 1, len(DATA)), part(500, 999, 1000)]
)
def test_a_part_that_nobody_asked_for_is_refused(server, folder, first):
    server.answers = [first]
    assert "sends a part (Content-Range: bytes " in refused(f"{server.url}/w.npz")
    assert files(folder) == []


def test_parts_shorter_than_asked_are_put_together(server):
    def says(request):
        first = 70_000 + 40_000 * (request - 2)
        return [part(first, min(first + 40_000, len(DATA)) - 1, len(DATA), ETAG)]

    server.answers = [CUT, says]
    assert fetch(f"{server.url}/w.npz", patience=HASTY).read_bytes() == DATA
    assert server.asked("Range") == [None, "bytes=70000-", "bytes=110000-", "bytes=150000-"]


def test_a_short_part_never_takes_the_name(server, folder):
    server.answers = [CUT, part(70_000, 70_999, len(DATA), ETAG), answer(b"", status="403 No")]
    assert "HTTP 403" in refused(f"{server.url}/w.npz")
    assert files(folder) == ["w.npz.part", "w.npz.part.json"]
    assert next(folder.rglob("*.part")).stat().st_size == 71_000


@pytest.mark.parametrize("weak", [(), ('ETag: W/"one"', "Last-Modified: Mon, 01 Jan 2024")])
def test_a_file_without_a_version_that_names_its_bytes_is_never_continued(server, weak):
    cut = answer(DATA[::-1][:70_000], *weak, f"Content-Length: {len(DATA)}")
    server.answers = [cut, answer(DATA, *weak)]
    assert fetch(f"{server.url}/w.npz", patience=HASTY).read_bytes() == DATA
    assert server.asked("Range") == [None, None]


# -- patience --------------------------------------------------------------------------------------


def test_a_drip_of_a_byte_a_connection_is_given_up(server):
    def drips(request):
        first = request - 1
        if not first:
            return [answer(DATA[:1], ETAG, f"Content-Length: {len(DATA)}")]
        whole = part(first, len(DATA) - 1, len(DATA), ETAG)
        return [whole[: len(whole) - len(DATA) + first + 1]]

    server.answers = [drips]
    assert "3 bytes received; run it again to continue" in refused(f"{server.url}/w.npz")
    assert len(server.seen) == 3


def test_tries_that_bring_enough_are_counted_too(server):
    data = bytes(200)

    def says(request):
        first = (request - 1) * 10
        body = data[first : first + 10]
        if not first:
            return [answer(body, ETAG, "Content-Length: 200")]
        said = f"Content-Range: bytes {first}-199/200"
        return [
            answer(body, ETAG, said, f"Content-Length: {200 - first}", status="206 Partial Content")
        ]

    server.answers = [says]
    patience = Patience(pauses=(0, 0), least=10, tries=6)
    assert "60 bytes received; run it again" in refused(f"{server.url}/w.npz", patience=patience)
    assert len(server.seen) == 6
    assert len(fetch(f"{server.url}/w.npz", patience=Patience((0,), least=10)).read_bytes()) == 200


def test_pauses_grow_with_failures_and_with_tries():
    patience = Patience()
    assert patience.pause(0, 1) < patience.pause(1, 2) < patience.pause(2, 3)
    assert patience.pause(0, 1) < patience.pause(0, 50)
    assert patience.pause(3, 4) is None
    assert patience.pause(0, patience.tries) is None


def test_a_connection_that_drips_is_lost(server):
    given_up = threading.Event()

    def drips(request):
        yield answer(b"x", f"Content-Length: {len(DATA)}")
        given_up.wait(60)

    server.answers = [drips]
    patience = Patience(pauses=(), window=0)
    assert "1 byte came in 0 s" in refused(f"{server.url}/w.npz", patience=patience)
    given_up.set()


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths",
    [
        ["Content-Length: abc"],
        ["Content-Length: -5"],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length: ²"],
        ["Content-Length: 5", "Content-Length: 150600"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
    ],
)
def test_a_length_that_is_none_is_one_line(server, folder, lengths):
    server.answers = [answer(DATA, *lengths)]
    assert "states no usable length" in refused(f"{server.url}/w.npz")
    assert files(folder) == []


def test_a_file_shorter_than_its_length_never_takes_the_name(server, folder):
    server.answers = [answer(DATA, f"Content-Length: {len(DATA) + 1}")]
    assert "the connection was closed, 150.6 kB received" in refused(f"{server.url}/w.npz")
    assert files(folder) == ["w.npz.part", "w.npz.part.json"]


def test_nothing_is_read_past_the_length(server):
    server.answers = [answer(DATA + b"more", f"Content-Length: {len(DATA)}")]
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_stops_at_the_most_and_leaves_nothing(server, folder, chunked):
    def endless(request):
        yield answer(b"", *["Transfer-Encoding: chunked"] * chunked, length=False)
        while True:
            yield b"1000\r\n" + bytes(4096) + b"\r\n" if chunked else bytes(4096)

    server.answers = [endless]
    patience = Patience(most=10**6)
    line = refused(f"{server.url}/w.npz", patience=patience)
    assert "no length is stated, and no end came within 1.0 MB" in line
    assert files(folder) == []


def test_a_redirect_whose_body_has_no_end_is_followed(server):
    def endless(request):
        yield answer(b"", "Location: /w", status="302 Found", length=False)
        while True:
            yield bytes(4096)

    server.answers = [endless, answer(DATA)]
    assert fetch(f"{server.url}/w.npz").read_bytes() == DATA


def test_a_length_that_no_disk_holds_is_refused_before_a_byte_of_it(server, folder):
    server.answers = [answer(b"x", f"Content-Length: {2**58}")]
    assert "the server announces 288.2 PB; 1.1 TB is the most" in refused(f"{server.url}/w.npz")
    line = refused(f"{server.url}/w.npz", patience=Patience(most=2**60))
    assert "it takes 288.2 PB, and the disk of " in line
    assert "make room, or choose another folder with VIT_JAX_CACHE" in line
    assert files(folder) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_without_a_length_is_taken(server, chunked):
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(DATA), DATA) if chunked else DATA
    headers = ["Transfer-Encoding: chunked"] * chunked
    server.answers = [answer(body, *headers, length=False)]
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA


def test_chunks_that_break_off_never_take_the_name(server, folder):
    server.answers = [answer(b"ff\r\n12345", "Transfer-Encoding: chunked", length=False)]
    assert "the connection was lost" in refused(f"{server.url}/w.npz")
    assert "w.npz" not in files(folder)


# -- what is no file -------------------------------------------------------------------------------

GZIPPED = answer(b"\x1f\x8b" + DATA, "Content-Encoding: gzip")


@pytest.mark.parametrize(
    ("says", "line"),
    [
        (answer(b"<p>Sign in", "Content-Type: text/html; charset=utf-8"), "sends a web page"),
        (
            answer(b"\xef\xbb\xbf\n <!DOCTYPE html><title>Sign in"),
            "a web page came, perhaps a login page",
        ),
        (answer(b"<html><body>Error 502"), "a web page came"),
        (answer(b'<?xml version="1.0"?><Error>'), "a web page came"),
        (answer(b"version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer came"),
        (answer(b"", status="204 No Content", length=False), "sends no file (HTTP 204 No Content)"),
        (answer(DATA, status="203 Changed\x1b[2J"), "sends no file (HTTP 203 Changed\\x1b[2J)"),
        (answer(DATA, status="202 Accepted"), "sends no file (HTTP 202 Accepted)"),
        (answer(b""), "sends an empty file"),
        (GZIPPED, "sends the file encoded (Content-Encoding: gzip)"),
        (answer(DATA, "Transfer-Encoding: gzip, chunked", length=False), "encoded (Transfer-Enc"),
        (answer(b"", status="403 No\x1b]0;x\x07"), "refuses it (HTTP 403 No\\x1b]0;x\\x07)"),
        (answer(b"", status="418 " + "a" * 9999), "aaa)"),
    ],
)
def test_an_answer_that_is_no_file_is_one_line_and_leaves_nothing(server, folder, says, line):
    server.answers = [says]
    told = refused(f"{server.url}/w.safetensors")
    assert told.startswith(f"{server.url}/w.safetensors: ")
    assert line in told
    assert len(told) < 500
    assert files(folder) == []


def test_a_login_page_leaves_what_was_received(server, folder):
    server.answers = [CUT, answer(b"<html>", "Content-Type: text/html"), answer(b"", status="403")]
    assert "web page" in refused(f"{server.url}/w.npz")
    assert files(folder) == ["w.npz.part", "w.npz.part.json"]
    server.answers = [part(70_000, len(DATA) - 1, len(DATA), ETAG)]
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA


def test_weights_that_begin_like_a_page_are_weights(server):
    data = b"<a\0\0\0\0\0\0" + DATA  # a safetensors file whose header has 24,892 bytes
    server.answers = [answer(data)]
    assert fetch(f"{server.url}/w.safetensors").read_bytes() == data


def test_the_file_is_asked_for_as_it_is(server):
    server.answers = [answer(DATA)]
    fetch(f"{server.url}/w.npz")
    assert server.asked("Accept-Encoding") == ["identity"]


# -- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (
            "ftp://127.0.0.1/w.npz",
            "redirects to ftp://127.0.0.1/w.npz, and from http only http and",
        ),
        ("file:///etc/hostname", "redirects it to nowhere"),
        ("/again", "redirects it to nowhere"),
        ("http://[::1/w.npz", "IPv6"),
        ("http://127.0.0.1:port/", "port"),
        ("/\x1b[2J", "redirects it to nowhere"),
    ],
)
def test_a_redirect_that_leads_elsewhere_is_one_line(server, location, line):
    server.answers = [answer(b"", f"Location: {location}", status="302 Found")]
    assert line in refused(f"{server.url}/w.npz")
    assert len(server.seen) <= 11


@pytest.mark.parametrize(
    ("old", "new", "followed"),
    [("https", "http", False), ("https", "https", True), ("http", "https", True)],
)
def test_a_redirect_never_leaves_https(old, new, followed):
    asked = urllib.request.Request(f"{old}://a.invalid/w")
    redirects = (asked, None, 302, "Found", {}, f"{new}://a.invalid/v")
    with contextlib.nullcontext() if followed else pytest.raises(UserError, match="only https"):
        addresses._Redirects().redirect_request(*redirects)


def test_redirects_are_followed_ten_times(server):
    def says(request):
        return [answer(b"", f"Location: /{request}", status="307 Temporary Redirect")]

    server.answers = [says]
    assert "redirects it to nowhere (HTTP 307 " in refused(f"{server.url}/w.npz")
    assert len(server.seen) == 11


# -- the cache -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".part", ".part.json", ".sha256", ".lock"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_nothing_is_written_through_what_was_planted(server, folder, tmp_path, ending, kind):
    server.answers = [answer(DATA)]
    address, victim = f"{server.url}/w.npz", tmp_path / "victim"
    place = beside(folder, address, "" if ending == ".lock" else ending)
    if ending == ".lock":
        place = place.with_name(".lock")
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        if kind == "link":
            victim.write_text("precious")
        place.symlink_to(victim)
    line = refused(address)
    assert f"{place} is a link, a folder or a pipe" in line
    assert victim.exists() == (kind == "link")
    assert kind != "link" or victim.read_text() == "precious"
    assert "w.npz" not in files(folder)


@pytest.mark.parametrize("ending", [".part", ".part.json.new", ".sha256.new"])
def test_a_file_with_a_second_name_is_not_written_to(server, folder, tmp_path, ending):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    server.answers = [answer(DATA)]
    os.link(victim, beside(folder, f"{server.url}/w.npz", ending))
    assert "is a link" in refused(f"{server.url}/w.npz")
    assert victim.read_text() == "precious"


def test_a_link_by_the_files_own_name_is_replaced(server, folder, tmp_path):
    server.answers = [answer(DATA)]
    place = beside(folder, f"{server.url}/w.npz", "")
    place.symlink_to(tmp_path / "not there")
    assert fetch(f"{server.url}/w.npz").read_bytes() == DATA
    assert not place.is_symlink()
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("inner", [False, True])
def test_a_cache_that_everyone_can_write_to_is_refused(server, folder, inner):
    server.answers = [answer(DATA)]
    path = fetch(f"{server.url}/w.npz")
    open_to_all = path.parent if inner else folder
    open_to_all.chmod(0o777)
    assert f"the cache {open_to_all} is not trusted: every user" in refused(f"{server.url}/w.npz")
    open_to_all.chmod(0o1777)  # as /tmp
    assert fetch(f"{server.url}/w.npz") == path


def test_a_folder_of_the_cache_may_not_be_a_link_and_the_cache_may(server, folder, tmp_path):
    server.answers = [answer(DATA)]
    (tmp_path / "disk").mkdir()
    folder.symlink_to(tmp_path / "disk")
    path = fetch(f"{server.url}/w.npz")
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    assert "it is a link or a file, not a folder" in refused(f"{server.url}/w.npz")


def test_a_folder_is_trusted_by_its_owner_and_its_bits():
    def facts(mode, owner):
        return os.stat_result((stat.S_IFDIR | mode, 1, 1, 1, owner, 1, 0, 0, 0, 0))

    assert cache.distrust(facts(0o755, 1000), 1000) == ""
    assert cache.distrust(facts(0o775, 1000), 1000) == ""  # a group is chosen
    assert cache.distrust(facts(0o755, 0), 1000) == ""
    assert cache.distrust(facts(0o1777, 0), 1000) == ""
    assert "another user (number 1001)" in cache.distrust(facts(0o755, 1001), 1000)
    assert cache.distrust(facts(0o755, 1000), 0) == ""  # as in a container with a mounted folder
    assert "every user can write" in cache.distrust(facts(0o777, 1000), 0)
    assert "every user" in cache.distrust(facts(0o777, 1000), 1000)


def test_a_loose_mask_makes_no_folder_that_is_not_trusted(server):
    server.answers = [answer(DATA)]
    before = os.umask(0)
    try:
        path = fetch(f"{server.url}/w.npz")
    finally:
        os.umask(before)
    assert fetch(f"{server.url}/w.npz") == path
    assert not path.stat().st_mode & stat.S_IWOTH


def test_a_cache_that_is_no_folder_is_one_line(server, folder):
    folder.write_text("")
    assert "not a folder" in refused(f"{server.url}/w.npz")
    line = refused(f"{server.url}/w.npz", cache=folder / "below")
    assert "Not a directory; choose another folder with VIT_JAX_CACHE" in line


@pytest.mark.parametrize("pin", [b"\xff\xfe\0", b"", b"deadbeef\n"])
def test_a_damaged_hash_is_refused_before_the_download(server, folder, pin):
    beside(folder, f"{server.url}/w.npz", ".sha256").write_bytes(pin)
    assert "w.npz.sha256 holds no sha256: delete it" in refused(f"{server.url}/w.npz")
    assert server.seen == []
    server.answers = [answer(DATA)]
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA  # which outweighs it
    assert next(folder.rglob("*.sha256")).read_text() == SHA256 + "\n"


@pytest.mark.parametrize(
    "note",
    [
        b"\xff\0", b"[" * 10_000, b"[1, 2]", b'["a\\r\\nX: y", 150600]', b'["\\ud800", 150600]',
        b'["", 150600]', b'["\\"one\\"", "150600"]', b'["\\"one\\"", 10]', b"{}", b"",
    ],
)  # fmt: skip
def test_a_part_whose_note_is_none_is_started_anew(server, folder, note):
    server.answers = [answer(DATA)]
    beside(folder, f"{server.url}/w.npz", ".part").write_bytes(b"other bytes")
    beside(folder, f"{server.url}/w.npz", ".part.json").write_bytes(note)
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA
    assert server.asked("Range") == [None]


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a%00.npz", "cannot be a file's name"),
        ("a%1b%5b2J.npz", "cannot be a file's name"),
        ("a%0ab.npz", "cannot be a file's name"),
        ("..", "cannot be a file's name"),
        ("%2e%2e", "cannot be a file's name"),
        ("%5c..%5cw.npz", "cannot be a file's name"),
        ("a\0.npz", "%XX"),
        ("\udcff.npz", "%XX"),
        ("a\x1b.npz", "%XX"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(server, folder, name, line):
    assert line in refused(f"{server.url}/x/{name}")
    assert server.seen == []
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["v" * 300 + ".npz", "猫" * 200 + ".npz", "é.x" * 100 + ".npz", "%2e%2e%2fw.npz"]
)
def test_a_long_name_is_shortened_and_keeps_its_ending(server, folder, name):
    server.answers = [answer(DATA)]
    path = fetch(f"{server.url}/{name}")
    assert path.read_bytes() == DATA
    assert path.suffix == ".npz"
    assert len(path.name.encode()) <= 200
    assert path.parent.parent == folder
    assert fetch(f"{server.url}/{name}") == path


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("http://[::1/w.npz", "Invalid IPv6"),
        ("http://a]b/w.npz", "Invalid IPv6"),
        (f"http://{'a' * 70}.invalid/w.npz", "label"),
        ("hf://a/..", "cannot be a file's name"),
        ("hf://a/b/x/..", "cannot be a file's name"),
        ("hf://a/b@\udc80", "%XX"),
        ("n" * 5000, "there is no file or folder"),
        ("a\0b", "there is no file or folder"),
        ("a\x1bb", "there is no file or folder"),
        ("~nobody-by-this-name/w.npz", "home"),
    ],
)
def test_an_address_that_can_be_none_is_one_line(address, line):
    assert line in refused(address)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("HF_ENDPOINT", "mirror.invalid", "write it as https://HOST"),
        ("HF_ENDPOINT", "ftp://mirror.invalid", "write it as https://HOST"),
        ("HF_ENDPOINT", "http://[::1", "write it as https://HOST"),
        ("HF_TOKEN", "sec\x1bret", "HF_TOKEN holds characters"),
    ],
)
def test_a_variable_that_can_be_none_is_one_line_without_the_token(monkeypatch, name, value, line):
    monkeypatch.setenv(name, value)
    told = refused("hf://a/b/w.npz")
    assert line in told
    assert "sec" not in told


@pytest.mark.parametrize(
    "name",
    [7, None, "", "a\0.safetensors", "..", "../a.safetensors", "/a.safetensors", "a/b.safetensors",
     "..\\a.safetensors", "n" * 300 + ".safetensors", "猫" * 90 + ".safetensors", "\ud800.bin",
     "\x1b.safetensors", ".lock", "config.json.sha256", ["a.safetensors"]],
)  # fmt: skip
def test_an_index_that_names_what_is_no_shard_is_one_line(server, folder, monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    index = json.dumps({"weight_map": {"a": name, "b": "a.safetensors", "c": "z.bin"}}).encode()
    none = answer(b"", status="404 Not Found")
    server.answers = [answer(b"{}"), none, none, answer(index), answer(DATA)]
    line = refused("hf://a/b")
    assert "model.safetensors.index.json is no index of weights: it names " in line
    assert len(server.seen) == 4
    assert not any(path.suffix in (".safetensors", ".bin") for path in folder.rglob("*"))


def test_a_full_disk_is_told_from_a_name_that_it_does_not_take(server, tmp_path):
    line = refused(f"{server.url}/w.npz", cache=tmp_path / ("n" * 300))
    assert os.strerror(errno.ENAMETOOLONG) in line
    assert "make room" not in line
