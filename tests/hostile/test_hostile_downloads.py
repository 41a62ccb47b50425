"""Servers that answer with something else than what was asked for."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.hostile import made

# What a server sends in place of 200, its headers, and how many of the file's bytes follow.
Answer = tuple[str, dict[str, str], bytes]


def answers(data: bytes) -> dict[str, Answer]:
    size, half = len(data), data[: len(data) // 2]
    page = b"<!doctype html><html><title>Sign in</title></html>"
    return {
        "short": ("200 OK", {"Content-Length": str(size)}, half),
        "a part nobody asked for": (
            "206 Partial Content", {"Content-Range": f"bytes 0-999/{size}"}, data[:1000]),
        "another part": (
            "206 Partial Content", {"Content-Range": f"bytes 500-999/{size}"}, data[500:1000]),
        "a part without a range": ("206 Partial Content", {}, data[:1000]),
        "a length that is none": ("200 OK", {"Content-Length": "abc"}, data),
        "a negative length": ("200 OK", {"Content-Length": "-5"}, data),
        "an endless length": ("200 OK", {"Content-Length": "9" * 400}, data),
        "nothing": ("204 No Content", {}, b""),
        "an empty file": ("200 OK", {"Content-Length": "0"}, b""),
        "a login page": ("200 OK", {"Content-Type": "text/html"}, page),
        "a login page by another type": ("200 OK", {"Content-Length": str(len(page))}, page),
        "zipped": ("200 OK", {"Content-Encoding": "gzip", "Content-Length": str(size)}, data),
        "a reason with ESC": ("404 \x1b[2Jnot\x07 here", {}, b""),
        "a redirect to a file": ("302 Found", {"Location": "file:///etc/passwd"}, b""),
        "a redirect to ftp": ("302 Found", {"Location": "ftp://127.0.0.1/x"}, b""),
        "a redirect to itself": ("302 Found", {"Location": "w.npz"}, b""),
        "a redirect without an address": ("302 Found", {}, b""),
        "a redirect to nonsense": ("302 Found", {"Location": "http://[::1/"}, b""),
        "not allowed": ("403 Forbidden", {}, page), "broken": ("500 Oops", {}, b""),
        "no status": ("abc", {}, b""), "teapot": ("418 I'm a teapot", {}, b""),
    }  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    return made.weights(tmp_path_factory.mktemp("weights") / "w.npz", "google").read_bytes()


@pytest.fixture(scope="module")
def server(weights) -> Iterator[str]:
    table = answers(weights)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self):
            name = self.path.split("/")[1].replace("%20", " ")
            status, headers, body = table.get(name, ("200 OK", {}, weights))
            lines = [f"HTTP/1.1 {status}", *(f"{key}: {value}" for key, value in headers.items())]
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()


@pytest.mark.parametrize("name", answers(b"x" * 100))
def test_another_answer_than_the_file_is_refused_in_one_line(vit, server, tmp_path, name):
    cache = tmp_path / "cache"
    address = f"{server}/{name.replace(' ', '%20')}/w.npz"
    vit.refused("inspect", address, cwd=tmp_path, writes=(cache,), VIT_JAX_CACHE=str(cache))
    kept = [file.name for file in cache.rglob("*") if file.is_file()] if cache.exists() else []
    assert not {"w.npz", "w.npz.sha256"} & set(kept)


@pytest.mark.parametrize("place", ["w.npz.part", "w.npz.part.json", "w.npz.sha256", ".lock"])
def test_a_link_planted_in_the_cache_is_not_written_through(vit, server, tmp_path, place):
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    options = {"cwd": tmp_path, "writes": (cache,), "VIT_JAX_CACHE": str(cache)}
    vit("inspect", f"{server}/fine/w.npz", **options)
    (folder,) = [file.parent for file in cache.rglob("w.npz")]
    for file in folder.iterdir():
        file.unlink()
    victim.write_text("mine")
    (folder / place).symlink_to(victim)
    answer = vit("inspect", f"{server}/fine/w.npz", **options)
    assert answer["code"] in (0, 2)
    assert victim.read_text() == "mine"


ADDRESSES = ("http://[::1/", "http://127.0.0.1:99999/w.npz", "http:///w.npz", "http://127.0.0.1:1/w",
             "evil://127.0.0.1/x", "hf://", "hf://a", "hf://../..", "hf://a/../../b/c",
             "http://127.0.0.1:1/a%00b", "http://127.0.0.1:1/\ud800", "file:///dev/zero",
             "file:///etc/passwd", "http://127.0.0.1:1/" + "x" * 5000)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda one: ascii(one)[:40])
def test_an_address_that_is_none_is_refused_in_one_line(vit, tmp_path, address):
    cache = tmp_path / "cache"
    vit.refused("inspect", address, cwd=tmp_path, writes=(cache,), VIT_JAX_CACHE=str(cache),
                HF_ENDPOINT="http://127.0.0.1:1")  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [["../../evil"], ["/etc/passwd"], ["a\0b"], [5], [""], ["x" * 300], [None], ["..", "."]],
)
def test_names_of_an_index_never_leave_their_folder(vit, tmp_path, names):
    cache, index = tmp_path / "cache", {"weight_map": dict(enumerate(names))}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            known = {"config.json": {}, "model.safetensors.index.json": index}
            body = json.dumps(known[name]).encode() if name in known else b""
            self.send_response(200 if name in known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    vit.refused("inspect", "hf://owner/repo", cwd=tmp_path, writes=(cache,),
                VIT_JAX_CACHE=str(cache), HF_ENDPOINT=f"http://127.0.0.1:{serving.server_port}",
                says="index|weight")  # fmt: skip
    serving.shutdown()


def test_the_file_itself_is_read(vit, server, tmp_path):
    cache = tmp_path / "cache"
    options = {"cwd": tmp_path, "writes": (cache,), "VIT_JAX_CACHE": str(cache)}
    assert "google layout" in vit.read("inspect", f"{server}/fine/w.npz", **options)
