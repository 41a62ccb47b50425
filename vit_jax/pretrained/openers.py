"""What opens an address: HTTP, HTTPS and gs://, from a byte on where the server can do that.

Whatever goes wrong is a UserError for whoever reads it, or Lost where another try may help.
"""

import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from vit_jax.errors import UserError

CHUNK = 1 << 16
TIMEOUT = 60  # seconds without a byte
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP errors that another try may not meet


class Missing(UserError):
    """Nothing is at the address."""


class Lost(Exception):
    """The connection ended early or was not made; another try may help."""


class Answer(NamedTuple):
    """What an opener gives."""

    stream: Any  # gives the bytes from `start` on
    start: int
    total: int | None  # bytes of the whole file
    validator: str  # names this version of the file (RFC 9110, 8.8); empty: it cannot be continued


class _KeepsToken(urllib.request.HTTPRedirectHandler):
    """A redirect within the host takes the token along; one to another host never sees it."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.get_header("Authorization")
        if new is not None and token and _host(newurl) == _host(req.full_url):
            new.add_unredirected_header("Authorization", token)
        return new


def _open_http(url: str, have: int, validator: str) -> Answer:
    try:
        request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"))
        request.add_header("User-Agent", "vit_jax")
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", validator)
        token = os.environ.get("HF_TOKEN", "").strip()
        if token and _host(url) == _host(endpoint()):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        stream = urllib.request.build_opener(_KeepsToken).open(request, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if have and getattr(error, "code", None) == 416:
            return _open_http(url, 0, "")
        raise _what_happened(url, error) from error
    headers = stream.headers
    etag = headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    start = have if stream.status == 206 else 0
    # A server may ignore If-Range; then what comes would not continue what is here.
    continues = headers.get("Content-Range", "").startswith(f"bytes {start}-")
    if start and not (continues and version in ("", validator)):
        stream.close()
        return _open_http(url, 0, "")
    length = headers.get("Content-Length")
    total = start + int(length) if length else None
    return Answer(stream, start, total, version or (validator if start else ""))


def _what_happened(url: str, error: Exception) -> Exception:
    host = urlsplit(url).netloc
    if isinstance(error, urllib.error.HTTPError):
        said = f"HTTP {error.code} {error.reason}"
        if error.code in PASSING:
            return Lost(said)
        if error.code in (404, 410):
            return Missing(f"{url}: nothing is there ({said})")
        on_hub = error.code in (401, 403) and _host(url) == _host(endpoint())
        hint = "; is the name right? a private or gated repository takes HF_TOKEN" if on_hub else ""
        return UserError(f"{url}: {host} refuses it ({said}){hint}")
    reason = getattr(error, "reason", error)  # URLError wraps what happened
    if isinstance(reason, socket.gaierror):
        return UserError(f"{url}: there is no host {host}: check the address and the network")
    if isinstance(reason, ConnectionRefusedError):
        return UserError(f"{url}: {host} refuses the connection: check the address and the network")
    if isinstance(reason, ssl.SSLError | str | ValueError | http.client.InvalidURL):
        return UserError(f"{url}: {reason}")
    return Lost(str(reason) or type(reason).__name__)


def _open_gs(url: str, have: int, validator: str) -> Answer:
    from etils import epath

    try:
        path = epath.Path(url)
        return Answer(path.open("rb"), 0, path.stat().length, "")
    except ImportError as error:
        raise UserError(
            f"{url}: reading gs:// takes gcsfs: pip install gcsfs, or, for a public bucket, give "
            f"https://storage.googleapis.com/{url.removeprefix('gs://')}"
        ) from error
    except FileNotFoundError as error:
        raise Missing(f"{url}: nothing is there") from error
    except Exception as error:  # gcsfs, aiohttp and google.auth share no base class
        raise UserError(f"{url}: {type(error).__name__}: {error}".splitlines()[0]) from error


OPENERS: dict[str, Callable[[str, int, str], Answer]] = {
    "http": _open_http,
    "https": _open_http,
    "gs": _open_gs,
}


def read(stream: Any) -> bytes:
    """The next bytes of an answer, empty at its end; raises Lost."""
    try:
        return stream.read(CHUNK)
    except Exception as error:  # see _open_gs
        raise Lost(f"the connection was lost ({error or type(error).__name__})") from error


def endpoint() -> str:
    """Of the Hugging Face Hub, or of the mirror that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _host(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]
