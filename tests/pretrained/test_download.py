"""Downloads against a real server on loopback: whole or not at all, continued, pinned, shared."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading

import pytest

from tests.served import served
from vit_jax.errors import UserError
from vit_jax.pretrained.download import Patience, fetch

DATA = bytes(range(256)) * 1024  # 256 KiB
SHA256 = hashlib.sha256(DATA).hexdigest()
HASTY = Patience(pauses=(0, 0, 0))


@dataclasses.dataclass
class Page:
    """What the server gives for one path, and how it misbehaves."""

    data: bytes = DATA
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    if_range: bool = True  # heeds the header
    cuts: list[int] = dataclasses.field(default_factory=list)  # bytes given before each hang-up
    codes: list[int] = dataclasses.field(default_factory=list)  # HTTP errors given after the cuts
    redirect: str | None = None
    halfway: threading.Event | None = None  # waits for it in the middle of the body


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = self.server.pages.get(self.path)
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.asked.set()
        if page is None:
            return self.send_error(404)
        if page.redirect:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            return self.end_headers()
        if page.codes and not page.cuts:
            return self.send_error(page.codes.pop(0))
        start = self.start_of(page)
        if start >= len(page.data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.modified:
            self.send_header("Last-Modified", page.modified)
        if start:
            last, size = len(page.data) - 1, len(page.data)
            self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
        self.send_header("Content-Length", str(len(page.data) - start))
        self.end_headers()
        body = page.data[start:]
        if page.cuts:
            body = body[: page.cuts.pop(0)]
        self.wfile.write(body[: len(body) // 2])
        if page.halfway:
            self.wfile.flush()
            page.halfway.wait()
        self.wfile.write(body[len(body) // 2 :])

    def start_of(self, page):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = self.headers.get("If-Range") in (page.etag, page.modified)
        heeded = page.ranges and (current or not page.if_range)
        return int(wanted[1]) if wanted and heeded else 0

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Pages by path; `seen` are the requests, each a path and its headers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.seen, self.asked = {}, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def headers(self, name):
        return [headers.get(name) for _, headers in self.seen]

    def paths(self):
        return [path for path, _ in self.seen]


@pytest.fixture
def server():
    with served(Server) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A cache of the test's own, no proxy, nobody's token."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("HF_ENDPOINT", "HF_TOKEN", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def refused(address, **options):
    """The one line that `fetch` raises."""
    with pytest.raises(UserError) as error:
        fetch(address, **{"patience": HASTY} | options)
    line = str(error.value)
    assert "\n" not in line
    return line


def files(folder):
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


# -- one file --------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_pinned_and_told(server, tmp_path):
    server.pages["/weights/ViT-B_16.npz"] = Page()
    said = []
    path = fetch(f"{server.url}/weights/ViT-B_16.npz", say=said.append)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(tmp_path / "cache")
    assert files(tmp_path) == ["ViT-B_16.npz", "ViT-B_16.npz.sha256"]
    assert path.with_name("ViT-B_16.npz.sha256").read_text().strip() == SHA256
    assert [line.split()[0] for line in said] == ["downloading", "downloaded"]
    assert all("262.1 kB" in line for line in said)


def test_what_the_cache_has_takes_no_server(server):
    server.pages["/w.npz"] = Page()
    first = fetch(f"{server.url}/w.npz")
    server.pages.clear()
    assert fetch(f"{server.url}/w.npz") == first
    assert fetch(f"{server.url}/w.npz", SHA256.upper()) == first
    assert len(server.seen) == 1
    assert "delete it to download" in refused(f"{server.url}/w.npz", sha256="0" * 64)


def test_lines_go_to_stderr_and_the_cache_may_be_given(server, tmp_path, capsys):
    server.pages["/w.npz"] = Page()
    path = fetch(f"{server.url}/w.npz", cache=tmp_path / "mine")
    assert path.is_relative_to(tmp_path / "mine")
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 2)


def test_the_cache_is_the_users_where_none_is_set(server, tmp_path, monkeypatch):
    server.pages["/w.npz"] = Page()
    monkeypatch.delenv("VIT_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = fetch(f"{server.url}/w.npz")
    assert path.is_relative_to(tmp_path / "home" / ".cache" / "vit_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch(f"{server.url}/w.npz").is_relative_to(tmp_path / "xdg" / "vit_jax")


def test_equal_names_of_different_addresses_do_not_meet(server):
    server.pages |= {"/a/w.npz": Page(b"a"), "/b/w.npz": Page(b"b"), "/b/w.npz?x": Page(b"c")}
    found = [fetch(server.url + path) for path in server.pages]
    assert [path.read_bytes() for path in found] == [b"a", b"b", b"c"]
    assert {path.name for path in found} == {"w.npz"}


def test_a_redirect_is_followed_and_an_odd_name_is_quoted(server):
    server.pages["/old"] = Page(redirect="/R50+ViT%20B.npz")
    server.pages["/R50+ViT%20B.npz"] = Page()
    assert fetch(f"{server.url}/old").read_bytes() == DATA
    path = fetch(f"{server.url}/R50+ViT B.npz")
    assert (path.name, path.read_bytes()) == ("R50+ViT B.npz", DATA)


# -- continued -------------------------------------------------------------------------------------


def test_a_lost_connection_continues_where_it_was(server):
    server.pages["/w.npz"] = Page(cuts=[100_000, 50_000])
    said = []
    assert (
        fetch(f"{server.url}/w.npz", SHA256, say=said.append, patience=HASTY).read_bytes() == DATA
    )
    assert server.headers("Range") == [None, "bytes=100000-", "bytes=150000-"]
    assert server.headers("If-Range") == [None, '"one"', '"one"']
    assert any("connection was closed, 100.0 kB received; trying again" in line for line in said)


def test_a_connection_that_stays_lost_is_one_line_and_the_next_call_continues(server, tmp_path):
    page = server.pages["/w.npz"] = Page(cuts=[100_000], codes=[503] * 3)
    line = refused(f"{server.url}/w.npz")
    assert f"{server.url}/w.npz: HTTP 503 " in line
    assert "100.0 kB received; run it again to continue" in line
    assert files(tmp_path) == ["w.npz.part", "w.npz.part.json"]
    assert page.codes == []
    assert fetch(f"{server.url}/w.npz").read_bytes() == DATA
    assert server.headers("Range")[-1] == "bytes=100000-"
    assert files(tmp_path) == ["w.npz", "w.npz.sha256"]


def left_off(server, **page):
    """A part of 100,000 bytes of `/w.npz` in the cache, and no request counted."""
    server.pages["/w.npz"] = Page(cuts=[100_000], codes=[403], **page)
    assert "HTTP 403" in refused(f"{server.url}/w.npz")
    server.seen.clear()


@pytest.mark.parametrize(
    ("before", "after", "asks"),
    [
        ({"etag": '"one"'}, {"etag": '"two"'}, ["bytes=100000-"]),
        ({"etag": None, "modified": "Mon, 01"}, {"modified": "Tue, 02"}, ["bytes=100000-"]),
        ({}, {"ranges": False}, ["bytes=100000-"]),
        ({"if_range": False}, {"etag": '"two"'}, ["bytes=100000-", None]),
        ({"etag": None}, {"etag": None}, [None]),  # nothing to tell a changed file by
        ({"etag": 'W/"one"'}, {"etag": 'W/"one"'}, [None]),  # nor by this (RFC 9110, 13.1.5)
        ({}, {"data": DATA[:50_000]}, ["bytes=100000-", None]),  # HTTP 416
    ],
)  # fmt: skip
def test_a_part_of_another_file_is_started_anew(server, before, after, asks):
    left_off(server, **before)
    page = server.pages["/w.npz"] = Page(**({"data": DATA[::-1]} | before | after))
    assert fetch(f"{server.url}/w.npz").read_bytes() == page.data
    assert server.headers("Range") == asks


def test_the_date_of_a_file_serves_where_it_has_no_etag(server):
    left_off(server, etag=None, modified="Mon, 01 Jan 2024 00:00:00 GMT")
    server.pages["/w.npz"].codes.clear()
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA
    assert server.headers("If-Range") == ["Mon, 01 Jan 2024 00:00:00 GMT"]


def test_a_server_without_ranges_that_hangs_up_is_given_up(server):
    server.pages["/w.npz"] = Page(ranges=False, cuts=[100_000] * 4)
    assert "connection was closed" in refused(f"{server.url}/w.npz")
    assert len(server.seen) == 4  # the first, and three that brought nothing new
    assert fetch(f"{server.url}/w.npz").read_bytes() == DATA


def test_a_part_that_is_whole_is_taken_without_the_server(server, tmp_path):
    server.pages["/w.npz"] = Page()
    path = fetch(f"{server.url}/w.npz")
    path.rename(path.with_name("w.npz.part"))  # as if killed before the file took its name
    path.with_name("w.npz.part.json").write_text(json.dumps(['"one"', len(DATA)]))
    assert fetch(f"{server.url}/w.npz", SHA256).read_bytes() == DATA
    assert len(server.seen) == 1
    assert files(tmp_path) == ["w.npz", "w.npz.sha256"]


# -- the hash --------------------------------------------------------------------------------------


def test_a_wrong_hash_is_refused_and_nothing_is_left(server, tmp_path):
    server.pages["/w.npz"] = Page()
    line = refused(f"{server.url}/w.npz", sha256="0" * 64)
    assert SHA256 in line
    assert "0" * 64 in line
    assert files(tmp_path) == []


def test_a_download_is_held_to_the_hash_of_the_first_one(server, tmp_path):
    server.pages["/w.npz"] = Page()
    path = fetch(f"{server.url}/w.npz")
    path.unlink()
    changed = server.pages["/w.npz"] = Page(DATA[::-1])
    line = refused(f"{server.url}/w.npz")
    pin = path.with_name("w.npz.sha256")
    for text in (SHA256, hashlib.sha256(changed.data).hexdigest(), f"to accept it, delete {pin}"):
        assert text in line
    assert files(tmp_path) == ["w.npz.sha256"]
    pin.unlink()
    assert fetch(f"{server.url}/w.npz").read_bytes() == changed.data


def test_a_given_hash_outweighs_the_pin(server):
    server.pages["/w.npz"] = Page()
    fetch(f"{server.url}/w.npz").unlink()
    server.pages["/w.npz"] = Page(b"new")
    new = hashlib.sha256(b"new").hexdigest()
    path = fetch(f"{server.url}/w.npz", new)
    assert path.read_bytes() == b"new"
    assert path.with_name("w.npz.sha256").read_text().strip() == new


# -- several at once -------------------------------------------------------------------------------


def start_fetch(address, *before, stderr=subprocess.PIPE):
    """A process of its own that prints the path, behind the command `before`."""
    code = "import sys; from vit_jax.pretrained.download import fetch; print(fetch(sys.argv[1]))"
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, address],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def test_two_processes_download_a_file_once(server):
    page = server.pages["/w.npz"] = Page(halfway=threading.Event())
    first = start_fetch(f"{server.url}/w.npz")
    try:
        assert server.asked.wait(60)
        second = start_fetch(f"{server.url}/w.npz")  # it cannot be ahead: the first holds the lock
        assert "waiting for another process" in second.stderr.readline()
    finally:
        page.halfway.set()
    (one, _), (two, _) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert one == two
    with open(one.strip(), "rb") as file:
        assert file.read() == DATA
    assert len(server.seen) == 1


def test_a_file_that_the_disk_does_not_take_is_one_line(server, tmp_path):
    server.pages["/w.npz"] = Page()

    run = start_fetch(f"{server.url}/w.npz", "bash", "-c", 'ulimit -f 64; exec "$@"', "_")
    said = run.communicate(timeout=60)[1].splitlines()[-1]
    assert said.startswith("vit_jax.errors.UserError: cannot write ")
    assert "File too large; make room" in said
    assert files(tmp_path) == ["w.npz.part", "w.npz.part.json"]


def test_a_terminal_shows_a_bar_instead_of_the_first_line(server):
    server.pages["/w.npz"] = Page()
    ours, terminal = pty.openpty()
    run = start_fetch(f"{server.url}/w.npz", stderr=terminal)
    run.communicate(timeout=60)
    os.close(terminal)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert "w.npz" in said
    assert "262.1/262.1 kB" in said
    assert "downloading" not in said


# -- other addresses -------------------------------------------------------------------------------


def test_a_local_file_is_given_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "my weights.npz"
    file.write_bytes(DATA)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(str(file)) == file
    assert fetch("~/my weights.npz") == file
    assert fetch(f"file://{tmp_path}/my%20weights.npz", SHA256) == file
    assert fetch(str(tmp_path)) == tmp_path
    assert "where 000" in refused(str(file), sha256="0" * 64)
    assert "there is no file or folder /not/there" in refused("/not/there")
    assert "there is no file or folder /not/there" in refused("file:///not/there")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://nowhere.invalid/w.npz", "there is no host nowhere.invalid"),
        ("http:///w.npz", "no host"),
        ("http://127.0.0.1:port/w.npz", "port"),
        ("s3://bucket/w.npz", "s3:// is unknown; there are file://, hf://, http://, https://"),
        ("hf://vit-base", "write it as hf://OWNER/REPO"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address, says):
    line = refused(address)
    assert line.startswith(f"{address}: ")
    assert says in line


def test_what_a_server_refuses_is_one_line_with_the_address(server, tmp_path):
    server.pages["/private.npz"] = Page(codes=[403])
    assert f"{server.url}/none.npz: nothing is there (HTTP 404" in refused(f"{server.url}/none.npz")
    assert f"{server.url}/private.npz: " in (line := refused(f"{server.url}/private.npz"))
    assert "refuses it (HTTP 403" in line
    assert files(tmp_path) == []


def test_a_refused_connection_is_one_line_at_once():
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/w.npz"
        assert "refuses the connection" in (line := refused(address, say=pytest.fail))
    assert line.startswith(address)


def test_a_bucket_without_gcsfs_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    line = refused("gs://vit_models/augreg/w.npz")
    assert "pip install gcsfs" in line
    assert "https://storage.googleapis.com/vit_models/augreg/w.npz" in line


# -- the Hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    return server


def repository(server, name, files, revision="main"):
    for file, data in files.items():
        server.pages[f"/{name}/resolve/{revision}/{file}"] = Page(data)


def test_one_file_of_a_repository_at_a_revision(hub):
    repository(hub, "timm/vit", {"model.safetensors": DATA}, "v1")
    path = fetch("hf://timm/vit@v1/model.safetensors", SHA256)
    assert (path.name, path.read_bytes()) == ("model.safetensors", DATA)
    assert "nothing is there" in refused("hf://timm/vit/model.safetensors")
    assert "nothing is there" in refused("hf://timm/vit@v1/sub/none.bin")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_is_a_folder_of_its_config_and_its_weights(hub, weights):
    repository(hub, "google/vit-base", {"config.json": b"{}", weights: DATA})
    folder = fetch("hf://google/vit-base")
    assert folder.name == "vit-base"
    assert (folder / weights).read_bytes() == DATA
    assert (folder / "config.json").read_bytes() == b"{}"
    hub.seen.clear()
    assert fetch("hf://google/vit-base@main/") == folder
    assert hub.seen == []
    assert "sha256 is that of one file" in refused("hf://google/vit-base", sha256=SHA256)


def test_a_repository_in_shards_is_fetched_whole(hub):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    config = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    repository(hub, "facebook/dinov2-giant", config | {names[0]: b"one"})
    assert names[1] in refused("hf://facebook/dinov2-giant")
    repository(hub, "facebook/dinov2-giant", {names[1]: b"two"})
    hub.seen.clear()
    folder = fetch("hf://facebook/dinov2-giant")
    assert [(folder / name).read_bytes() for name in names] == [b"one", b"two"]
    assert hub.paths() == [f"/facebook/dinov2-giant/resolve/main/{names[1]}"]  # it has the rest


@pytest.mark.parametrize("index", [b"no json", b"[]", b'{"weight_map": {"a": "../../.bashrc"}}'])
def test_an_index_that_leads_elsewhere_is_refused(hub, index):
    repository(hub, "a/b", {"config.json": b"{}", "model.safetensors.index.json": index})
    assert "is no index of weights" in refused("hf://a/b")


def test_a_repository_without_weights_is_named(hub):
    repository(hub, "a/b", {"config.json": b"{}"})
    assert "hf://a/b has none of model.safetensors" in refused("hf://a/b")


def test_the_token_goes_to_the_hub_alone(hub, monkeypatch):
    elsewhere = hub.url.replace("127.0.0.1", "localhost")
    hub.pages = {
        "/a/b/resolve/main/w.bin": Page(redirect="/moved"),
        "/moved": Page(redirect=f"{elsewhere}/stored"),
        "/stored": Page(),
    }
    monkeypatch.setenv("HF_TOKEN", "secret\n")
    fetch("hf://a/b/w.bin")
    assert hub.paths() == ["/a/b/resolve/main/w.bin", "/moved", "/stored"]
    assert hub.headers("Authorization") == ["Bearer secret", "Bearer secret", None]
    hub.seen.clear()
    fetch(f"{elsewhere}/stored")
    assert hub.headers("Authorization") == [None]


def test_a_repository_that_takes_a_token_says_so(hub):
    hub.pages["/a/gated/resolve/main/config.json"] = Page(codes=[401])
    assert "HF_TOKEN" in refused("hf://a/gated")
