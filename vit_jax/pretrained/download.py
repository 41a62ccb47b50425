"""Downloads weights by address into a cache. A file appears whole or not at all.

The bytes are written to NAME.part. After a lost connection the download continues there. The file
gets its name when its length and sha256 are right. The sha256 of the first download is pinned: it
is kept in NAME.sha256. This module uses the standard library, because pooch cannot resume, and
huggingface_hub is a heavy dependency for a few GET requests. `cache` checks names and links,
`addresses` checks the answers of servers, and the readers of the files check their content.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.filesize import decimal

from vit_jax.addresses import (
    BY_HAND,
    LEAST,
    OPENERS,
    PAGE,
    WINDOW,
    Answer,
    Here,
    Lost,
    read,
)
from vit_jax.checkpoint.checksums import of_file
from vit_jax.errors import UserError, printable
from vit_jax.pretrained import cache as caches
from vit_jax.pretrained.cache import Cache
from vit_jax.pretrained.hub import fetch_from_hub

_NO_WEIGHTS = {  # first bytes of answers that are no weights: the message
    # HTML, XML: eight bytes of text, because the length at the start of safetensors may be "<a".
    re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-zA-Z][^\0]{6}"): f"a web page came, {PAGE}",
    re.compile(rb"version https://git-lfs\."): "a Git LFS pointer came, which only names the file: "
    "give the address of the file itself",
}


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a download goes on.

    Attributes:
      pauses: seconds before the next try: `pauses[n]` after n tries in a row without progress. The
        download ends after `len(pauses)` such tries. Pauses grow with the number of all tries.
      least: a try is progress if it receives so many bytes. A connection that receives fewer in
        a `window` counts as lost.
      window: seconds.
      tries: the highest number of tries.
      most: the highest number of bytes of a file.
    """

    pauses: tuple[float, ...] = (0.2, 1, 3)
    least: int = LEAST
    window: float = WINDOW
    tries: int = 100
    most: int = 2**40

    def pause(self, failures: int, tries: int) -> float | None:
        """Seconds before the next try; None if there is no next try."""
        if failures >= len(self.pauses) or tries >= self.tries:
            return None
        return self.pauses[failures] * (1 + tries / 10)


def fetch(
    address: str,
    sha256: str | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] | None = None,
    patience: Patience = Patience(),
) -> Path:
    """The local path of an address. Downloads the file if it is not in the cache.

    Args:
      address: a path, `file://PATH`, `http://…`, `https://…`, `gs://BUCKET/OBJECT` or
        `hf://OWNER/REPO[@REVISION][/FILE]`: a file of the Hugging Face Hub or, without FILE,
        `config.json` and the weights of the repository. `HF_ENDPOINT` and `HF_TOKEN` are used.
      sha256: of the file. Without it, the file must have the sha256 of its first download.
      cache: a folder; by default `$VIT_JAX_CACHE`, `$XDG_CACHE_HOME/vit_jax` or
        `~/.cache/vit_jax`.
      say: is called with each line about the download; by default lines go to stderr.
      patience: how long the download goes on.

    Returns the file, or the folder of a repository. A file that is in the cache needs no network.

    Raises UserError: the address is unknown or malformed; nothing is there; the server refuses, or
      its answer is no file; the connection is lost again and again (the next call continues); the
      sha256 is wrong; others can change the cache; the disk is full or read-only.
    """
    say = say or functools.partial(print, file=sys.stderr, flush=True)
    sha256 = sha256.lower() if sha256 else None
    scheme, separator, rest = str(address).partition("://")
    if not separator or scheme == "file":
        return _local(unquote(rest) if separator else str(address), sha256)
    if not address.isprintable():
        raise UserError(f"{printable(address)}: write unprintable characters as %XX")
    start = functools.partial(
        _Download, cache=Cache(_cache_folder(cache)), say=say, patience=patience
    )
    if scheme == "hf":
        return fetch_from_hub(address, sha256, start)
    if scheme not in OPENERS:
        schemes = ", ".join(f"{name}://" for name in ("file", "hf", *OPENERS))
        raise UserError(f"{address}: {scheme}:// is unknown; there are {schemes} and plain paths")
    try:
        path = urlsplit(address).path
    except ValueError as error:
        raise UserError(f"{address}: {error}") from error
    download = start(address)
    return download.run(download.cache.place(address, path), sha256)


def _cache_folder(cache: Path | None) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vit_jax"
    return _expanded(cache or os.environ.get("VIT_JAX_CACHE") or default).absolute()


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~USER
        raise UserError(f"{printable(path)}: {error}") from error


def _local(name: str, sha256: str | None) -> Path:
    path = _expanded(name)
    try:
        there = path.exists()
    except (OSError, ValueError):  # no disk allows such a name
        there = False
    if not there:
        raise UserError(f"there is no file or folder {printable(path.absolute())}")
    try:
        digest = of_file(path) if sha256 else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if digest != sha256:
        raise UserError(f"{path} has the sha256 {digest} where {sha256} is expected")
    return path


@dataclasses.dataclass(frozen=True)
class _Download:
    """The download of one file from `url` into the cache."""

    url: str
    cache: Cache
    say: Callable[[str], None]
    patience: Patience

    def run(self, target: Path, sha256: str | None) -> Path:
        try:
            self.cache.guard(target)
            if not target.exists():
                wait = f"waiting for another process that downloads {self.url}"
                with self.cache.lock(target, lambda: self.say(wait)):
                    if not target.exists():  # otherwise another process has downloaded it
                        wanted = sha256 or _pin(target)
                        self._receive(target)
                        self._accept(target, wanted, pinned=not sha256)
            if sha256 and (digest := _pin(target) or of_file(target)) != sha256:
                raise UserError(
                    f"{target} has the sha256 {digest} where {sha256} is expected: delete it to "
                    f"download {self.url} again"
                )
        except OSError as error:  # of the disk: `addresses` translates those of the network
            raise _cannot_write(target, error) from error
        return target

    def _receive(self, target: Path) -> None:
        part, failures, tries = _beside(target, ".part"), 0, 0
        furthest = _size(part)
        while True:
            try:
                return self._continue(target)
            except Lost as lost:
                size, tries = _size(part), tries + 1
                failures = 0 if size - furthest >= self.patience.least else failures + 1
                furthest = max(furthest, size)
                where = f"{self.url}: {lost}, {decimal(size)} received"
                pause = self.patience.pause(failures, tries)
                if pause is None:
                    raise UserError(f"{where}; run it again to continue") from lost
                self.say(f"{where}; trying again")
                time.sleep(pause)

    def _continue(self, target: Path) -> None:
        """Downloads the rest of the file; all of it if the server's file has changed."""
        part, note = _beside(target, ".part"), _beside(target, ".part.json")
        here = _here(part, note)
        if here.size and here.size == here.total:
            return
        answer = OPENERS[urlsplit(self.url).scheme](self.url, here)
        size = answer.start
        with answer.stream as stream:
            end = self._end(answer, part)
            with (
                caches.open_own(part, "a" if size else "w") as file,
                _progress(self.url, answer, self.say) as show,
            ):
                caches.write(note, json.dumps([answer.validator, answer.total]))
                window_start, size_then = time.monotonic(), size
                while size < end and (chunk := read(stream, end - size)):
                    file.write(chunk)
                    size += len(chunk)
                    show(size)
                    if (passed := (now := time.monotonic()) - window_start) > self.patience.window:
                        if size - size_then < self.patience.least:
                            raise Lost(f"{decimal(size - size_then)} came in {passed:.0f} s")
                        window_start, size_then = now, size
                file.flush()
                os.fsync(file.fileno())
        if answer.total is None and size == end:
            part.unlink()
            note.unlink()
            raise UserError(
                f"{self.url}: no length is stated, and no end came within {decimal(end)}; {BY_HAND}"
            )
        if size != answer.total and (answer.total or not size):
            raise Lost("the connection was closed")

    def _end(self, answer: Answer, part: Path) -> int:
        """The byte before which to stop. Raises UserError if the file is too large."""
        disk = shutil.disk_usage(part.parent)
        free = disk.free if disk.total else sys.maxsize  # some network disks state no sizes
        if answer.end is None or answer.total is None:
            return min(self.patience.most, free // 2) + 1
        if answer.total > self.patience.most:
            most = decimal(self.patience.most)
            raise UserError(
                f"{self.url}: the server announces {decimal(answer.total)}; {most} is the most"
            )
        if answer.total - _size(part) > free:
            raise UserError(
                f"{self.url}: it takes {decimal(answer.total)}, and the disk of {part.parent} has "
                f"{decimal(free)} left; make room, or {caches.CHOOSE}"
            )
        return answer.end

    def _accept(self, target: Path, wanted: str | None, pinned: bool) -> None:
        """Gives the complete file its name, or removes it if it is not the wanted one."""
        part, note, pin = (_beside(target, name) for name in (".part", ".part.json", ".sha256"))
        with caches.open_own(part, "r") as file:
            head = file.read(512)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        no_weights = [line for pattern, line in _NO_WEIGHTS.items() if pattern.match(head)]
        if no_weights or wanted not in (None, digest):
            part.unlink()
            note.unlink()
        if no_weights:
            raise UserError(f"{self.url}: {no_weights[0]}")
        if wanted not in (None, digest):
            raise UserError(
                f"{self.url} has the sha256 {digest} where {wanted} is expected"
                + (f" from the first download: to accept it, delete {pin}" if pinned else "")
            )
        caches.write(pin, digest + "\n")
        part.replace(target)
        note.unlink()
        self.say(f"downloaded {target} ({decimal(target.stat().st_size)})")


# -- files and lines -------------------------------------------------------------------------------


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _here(part: Path, note: Path) -> Here:
    """The part of the file that is on disk; nothing if the note beside it is not usable."""
    size = _size(part)
    try:
        with caches.open_own(note, "r") as file:
            validator, total = json.loads(file.read(2**16))
        known = validator and validator.isascii() and validator.isprintable()
        if known and (total is None or (isinstance(total, int) and size <= total)):
            return Here(size, validator, total)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return Here()


def _pin(target: Path) -> str | None:
    """The sha256 of the first download; None if there was no download."""
    pin = _beside(target, ".sha256")
    try:
        with caches.open_own(pin, "r") as file:
            text = file.read(2**16).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UserError(f"{pin} holds no sha256: delete it to accept the file without one")
    return text


def _size(path: Path) -> int:
    try:
        with caches.open_own(path, "r") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = f"{'make room, or ' if full else ''}{caches.CHOOSE}"
    return UserError(f"cannot write {path}: {error.strerror or error}; {remedy}")


@contextlib.contextmanager
def _progress(
    url: str, answer: Answer, say: Callable[[str], None]
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of bytes so far. It updates a progress bar. If
    stderr is no terminal, one line is printed at the start instead."""
    if not sys.stderr.isatty():
        size = "size unknown" if answer.total is None else decimal(answer.total)
        after = f", from {decimal(answer.start)} on" if answer.start else ""
        say(f"downloading {url} ({size}{after})")
        yield lambda done: None
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
        progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:  # fmt: skip
        name = Path(urlsplit(url).path).name
        task = bar.add_task(name, total=answer.total, completed=answer.start)
        yield lambda done: bar.update(task, completed=done)
