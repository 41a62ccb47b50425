"""Opens addresses: HTTP, HTTPS and gs://. If the server can, the answer continues a partial file.

Downloads of weights (`pretrained/download.py`) read an answer into a file; `content` reads a small
one, such as an image, into memory. An answer is used only if it fits the request and the part that
is on disk. Errors are raised as Lost if another try may help, otherwise as UserError.
"""

import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from vit_jax.errors import UserError, printable

CHUNK = 1 << 16
TIMEOUT = 60  # seconds without a byte
LEAST, WINDOW = 2**16, 60  # a connection that brings fewer bytes in so many seconds counts as lost
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP errors that may be gone at the next try
PAGE = "perhaps a login page or an error page: open the address in a browser"
BY_HAND = "try another address, or download the file by hand and give its path"
_PART = re.compile("bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")  # a Content-Range


class Missing(UserError):
    """Nothing is at the address."""


class Lost(Exception):
    """The connection ended early or was not made; another try may help."""


class Here(NamedTuple):
    """The part of a file that is on disk, and what its note states."""

    size: int = 0
    validator: str = ""
    total: int | None = None


class Answer(NamedTuple):
    """An answer of a server. Openers return it."""

    stream: Any  # its first byte is byte `start` of the file
    start: int
    end: int | None  # the byte after the last one of this answer
    total: int | None  # bytes of the whole file
    validator: str  # of this version of the file (RFC 9110, 8.8); empty: cannot be continued


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, at most ten. The token is sent to its host only."""

    def http_error_302(self, req, fp, code, msg, headers):
        fp.close()  # the base class would read the whole body, which may be endless
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise UserError(
                f"{_short(req.full_url)}: it redirects to {_short(newurl)}, and from {old} only "
                f"{'https' if old == 'https' else 'http and https'} is followed"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.get_header("Authorization")
        if request is not None and token and _host(newurl) == _host(req.full_url):
            request.add_unredirected_header("Authorization", token)
        return request


def _open_http(url: str, here: Here) -> Answer:
    try:
        opener = urllib.request.build_opener(_Redirects)
        stream = opener.open(_request(url, here), timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if here.size and getattr(error, "code", None) == 416:
            return _open_http(url, Here())
        raise _as_error(url, error) from error
    try:
        answer = _answer(url, stream, here)
    except UserError:
        stream.close()
        raise
    if answer is None:
        stream.close()
        return _open_http(url, Here())
    return answer


def _request(url: str, here: Here) -> urllib.request.Request:
    request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"))
    request.add_header("User-Agent", "vit_jax")
    request.add_header("Accept-Encoding", "identity")
    if here.size:
        request.add_header("Range", f"bytes={here.size}-")
        request.add_header("If-Range", here.validator)
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and _host(url) == _host(endpoint()):
        if not (token.isascii() and token.isprintable()):  # urllib's own message would show it
            raise UserError("HF_TOKEN holds characters that no token has: set it anew")
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _answer(url: str, stream: http.client.HTTPResponse, here: Here) -> Answer | None:
    """The server's answer; None if it does not continue the part that is on disk."""

    def refuse(what: str) -> UserError:
        return UserError(f"{url}: {urlsplit(url).netloc} {what}; {BY_HAND}")

    headers = stream.headers
    if stream.status not in (200, 206):
        raise refuse(f"sends no file (HTTP {stream.status} {_short(stream.reason)})")
    if headers.get_content_type() == "text/html":
        raise UserError(f"{url}: {urlsplit(url).netloc} sends a web page, {PAGE}")
    chunked = "Transfer-Encoding" in headers
    for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        encoding = headers.get(name, "").strip() or plain
        if encoding.lower() != plain:
            raise refuse(f"sends the file encoded ({name}: {_short(encoding)}), which is not read")
    lengths = headers.get_all("Content-Length", [])
    length = _number(lengths[0]) if lengths else None
    if lengths and (length is None or len(set(lengths)) > 1 or chunked):
        stated = ", ".join(lengths) + (" and chunks" if chunked else "")
        raise refuse(f"states no usable length (Content-Length: {_short(stated)})")
    if length == 0:
        raise refuse("sends an empty file")
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    if version.startswith("W/") or not (version.isascii() and version.isprintable()):
        version = ""  # files with the same weak ETag may differ
    if stream.status == 200:
        return Answer(stream, 0, length, length, version)
    part = headers.get("Content-Range", "")
    if not here.size:
        stated = f"Content-Range: {_short(part)}"
        raise refuse(f"sends a part ({stated}) where the whole file was asked for")
    match = _PART.fullmatch(part.strip())
    start, last, total = map(int, match.groups()) if match else (0, 0, 0)
    # A server may ignore Range or If-Range. Then its answer does not continue the part.
    continues = start == here.size and start <= last < total and here.total in (None, total)
    if continues and version == here.validator and length in (None, last + 1 - start):
        return Answer(stream, start, last + 1, total, version)
    return None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text.strip()) else None


def _short(text: object) -> str:
    """A server's text, safe and short enough for one line."""
    return printable(text)[:200]


def _as_error(url: str, error: Exception) -> Exception:
    host = urlsplit(url).netloc
    if isinstance(error, urllib.error.HTTPError):
        first = str(error.reason).partition("\n")[
            0
        ]  # urllib's message about circular redirects has three
        status = f"HTTP {error.code} {_short(first)}"
        if error.code in PASSING:
            return Lost(status)
        if error.code in (404, 410):
            return Missing(f"{url}: nothing is there ({status})")
        if 300 <= error.code < 400:
            return UserError(f"{url}: {host} redirects it to nowhere ({status}); {BY_HAND}")
        on_hub = error.code in (401, 403) and _host(url) == _host(endpoint())
        hint = "; is the name right? a private or gated repository needs HF_TOKEN" if on_hub else ""
        return UserError(f"{url}: {host} refuses it ({status}){hint}")
    reason: Any = getattr(error, "reason", error)  # URLError wraps the cause
    if isinstance(reason, socket.gaierror):
        return UserError(f"{url}: there is no host {host}: check the address and the network")
    if isinstance(reason, ConnectionRefusedError):
        return UserError(f"{url}: {host} refuses the connection: check the address and the network")
    if isinstance(reason, ssl.SSLError | str | ValueError | http.client.InvalidURL):
        return UserError(f"{url}: {_short(reason)}")
    return Lost(_short(reason) or type(reason).__name__)


def _open_gs(url: str, here: Here) -> Answer:
    from etils import epath

    try:
        path = epath.Path(url)
        size = path.stat().length
        return Answer(path.open("rb"), 0, size, size, "")
    except ImportError as error:
        raise UserError(
            f"{url}: reading gs:// needs gcsfs: pip install gcsfs, or, for a public bucket, give "
            f"https://storage.googleapis.com/{url.removeprefix('gs://')}"
        ) from error
    except FileNotFoundError as error:
        raise Missing(f"{url}: nothing is there") from error
    except Exception as error:  # gcsfs, aiohttp and google.auth share no base class
        raise UserError(f"{url}: {type(error).__name__}: {_short(error)}") from error


OPENERS: dict[str, Callable[[str, Here], Answer]] = {
    "http": _open_http,
    "https": _open_http,
    "gs": _open_gs,
}


def read(stream: Any, most: int) -> bytes:
    """The next bytes of an answer, as soon as any arrive; empty at its end. Raises Lost."""
    try:
        return getattr(stream, "read1", stream.read)(min(CHUNK, most))
    except Exception as error:  # see _open_gs
        reason = _short(error) or type(error).__name__
        raise Lost(f"the connection was lost ({reason})") from error


def content(
    url: str, most: int, pauses: tuple[float, ...] = (0.2, 1), window: float = WINDOW
) -> bytes:
    """All bytes at an address, which are kept nowhere. `pauses` are the seconds before each further
    try, where a connection is lost.

    Raises UserError: nothing is there; the server refuses, or sends a web page or more than `most`
    bytes; the connection is lost again and again.
    """
    for pause in (*pauses, None):
        try:
            return _content(url, most, window)
        except Lost as lost:
            if pause is None:
                raise UserError(f"{url}: {lost}") from lost
            time.sleep(pause)
    raise AssertionError


def _content(url: str, most: int, window: float) -> bytes:
    answer = OPENERS[urlsplit(url).scheme](url, Here())
    large = UserError(f"{url}: it holds more than the {most:,} bytes to be read")
    parts, size, began, size_then = [], 0, time.monotonic(), 0
    with answer.stream as stream:
        if answer.total is not None and answer.total > most:
            raise large
        while chunk := read(stream, most + 1 - size):
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                raise large
            if (passed := (now := time.monotonic()) - began) > window:
                if size - size_then < LEAST:
                    raise Lost(f"{size - size_then:,} bytes came in {passed:.0f} s")
                began, size_then = now, size
    if size != (answer.total or size):
        raise Lost("the connection was closed")
    return b"".join(parts)


def endpoint() -> str:
    """The address of the Hugging Face Hub, or of the mirror that `HF_ENDPOINT` names."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        usable = address.isprintable() and urlsplit(address).scheme in ("http", "https")
        usable = usable and bool(urlsplit(address).netloc)
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"HF_ENDPOINT is {printable(address)}: write it as https://HOST")
    return address


def _host(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]
