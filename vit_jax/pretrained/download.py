"""Fetches weights by address into a cache, whole or not at all.

A file grows as NAME.part, continues where a lost connection left it, and takes its name once its
length and sha256 are right. The sha256 of a first download is pinned beside it in NAME.sha256.
This is done with the standard library: pooch cannot resume, and huggingface_hub is a heavy
dependency for a few GETs. What is in the files is the readers' matter.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from rich.filesize import decimal

from vit_jax.errors import UserError
from vit_jax.pretrained.openers import OPENERS, Answer, Lost, Missing, endpoint, read

PAUSES = (0, 1, 3)  # seconds before each further try; counted anew whenever bytes have come
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_HUB = re.compile(r"hf://([^/@]+)/([^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")


def fetch(
    address: str,
    sha256: str | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """The local path of what an address names; it is downloaded where the cache lacks it.

    Args:
      address: a path, `file://PATH`, `http://…`, `https://…`, `gs://BUCKET/OBJECT` or
        `hf://OWNER/REPO[@REVISION][/FILE]`: a file of the Hugging Face Hub or, without FILE,
        `config.json` and the weights of the repository. `HF_ENDPOINT` and `HF_TOKEN` are heeded.
      sha256: of the file. Without it a download is held to the sha256 of the first one.
      cache: a folder; by default `$VIT_JAX_CACHE`, `$XDG_CACHE_HOME/vit_jax` or
        `~/.cache/vit_jax`.
      say: takes the lines about a download; by default they go to stderr.

    Returns the file, or the folder of a repository. What the cache has takes no network.

    Raises UserError: an unknown or malformed address, nothing there or refused, a connection that
      stays lost (the next call continues), a wrong sha256, a disk that is full or read-only.
    """
    say = say or functools.partial(print, file=sys.stderr, flush=True)
    sha256 = sha256.lower() if sha256 else None
    scheme, separator, rest = str(address).partition("://")
    if not separator or scheme == "file":
        return _local(Path(unquote(rest) if separator else address).expanduser(), sha256)
    cache = Path(cache or _default_cache()).expanduser()
    if scheme == "hf":
        return _from_hub(address, sha256, cache, say)
    if scheme not in OPENERS:
        schemes = ", ".join(f"{name}://" for name in ("file", "hf", *OPENERS))
        raise UserError(f"{address}: {scheme}:// is unknown; there are {schemes} and plain paths")
    return _Download(address, _place(cache, address, urlsplit(address).path), say).run(sha256)


def _default_cache() -> Path:
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vit_jax"
    return Path(os.environ.get("VIT_JAX_CACHE") or users)


def _place(cache: Path, address: str, path: str) -> Path:
    """A readable name in a folder of the address's own: equal names never meet."""
    name = Path(unquote(path)).name[-200:] or "download"
    return cache / hashlib.sha256(address.encode()).hexdigest()[:12] / name


def _local(path: Path, sha256: str | None) -> Path:
    if not path.exists():
        raise UserError(f"there is no file or folder {path.absolute()}")
    if sha256 and (found := _digest(path)) != sha256:
        raise UserError(f"{path} has the sha256 {found} where {sha256} is expected")
    return path


def _from_hub(address: str, sha256: str | None, cache: Path, say: Callable[[str], None]) -> Path:
    match = _HUB.fullmatch(address)
    if match is None:
        raise UserError(f"{address}: write it as hf://OWNER/REPO, hf://OWNER/REPO@REVISION/FILE")
    owner, repo, revision, file = match.groups(default="")
    revision = revision or "main"
    url = f"{endpoint()}/{owner}/{repo}/resolve/{revision}"
    # The cache goes by names, not by endpoint: a mirror has to give the same files.
    key = f"hf://{owner}/{repo}@{revision}"
    if file:
        target = _place(cache, f"{key}/{file}", file)
        return _Download(f"{url}/{quote(file)}", target, say).run(sha256)
    if sha256:
        raise UserError(f"{address}: a sha256 is that of one file; name it as {address}/FILE")
    folder = _place(cache, key, repo)

    def get(name: str) -> Path:
        return _Download(f"{url}/{quote(name)}", folder / name, say).run(None)

    get("config.json")
    there = [name for name in WEIGHTS if (folder / name).exists()]
    with contextlib.suppress(Missing):  # timm's repositories have none
        if not there:
            get("preprocessor_config.json")
    for name in there or WEIGHTS:
        with contextlib.suppress(Missing):
            weights = get(name)
            break
    else:
        raise UserError(f"{address} has none of {', '.join(WEIGHTS)}: name one of its files")
    if weights.suffix == ".json":
        for shard in _shards(weights):
            get(shard)
    return folder


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        names = {""}
    if any(Path(name).name != name or not name for name in names):  # nothing outside the folder
        raise UserError(f"{index} is no index of weights: delete it to download it again")
    return sorted(names)


@dataclasses.dataclass(frozen=True)
class _Download:
    """One file on its way from `url` to `target`."""

    url: str
    target: Path
    say: Callable[[str], None]

    def run(self, sha256: str | None) -> Path:
        if not self.target.exists():
            try:
                with self._lock():
                    if not self.target.exists():  # else another process was faster
                        self._receive()
                        self._accept(sha256)
            except OSError as error:  # the network's own have been translated
                raise _cannot_write(self.target, error) from error
        if sha256 and (found := self._pin() or _digest(self.target)) != sha256:
            raise UserError(
                f"{self.target} has the sha256 {found} where {sha256} is expected: delete it to "
                f"download {self.url} again"
            )
        return self.target

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time in this folder; the others wait for it and find the file."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with (self.target.parent / ".lock").open("a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"waiting for another process that downloads {self.url}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _receive(self) -> None:
        part, failures = self._beside(".part"), 0
        while True:
            before = _size(part)
            try:
                return self._continue(part)
            except Lost as lost:
                failures = 0 if _size(part) > before else failures + 1
                where = f"{self.url}: {lost}, {decimal(_size(part))} received"
                if failures == len(PAUSES):
                    raise UserError(f"{where}; run it again to continue") from lost
                self.say(f"{where}; trying again")
                time.sleep(PAUSES[failures])

    def _continue(self, part: Path) -> None:
        """Appends what the part lacks, or starts it anew where the server's file has changed."""
        note, validator, total = self._beside(".part.json"), "", None
        with contextlib.suppress(OSError, ValueError, TypeError):
            validator, total = json.loads(note.read_text(encoding="utf-8"))
        have = _size(part) if validator else 0
        if have and have == total:
            return
        answer = OPENERS[urlsplit(self.url).scheme](self.url, have, validator)
        size = answer.start
        with (
            answer.stream as stream,
            part.open("ab" if size else "wb") as file,
            _progress(self.url, answer, self.say) as show,
        ):
            note.write_text(json.dumps([answer.validator, answer.total]), encoding="utf-8")
            while chunk := read(stream):
                file.write(chunk)
                size += len(chunk)
                show(size)
            file.flush()
            os.fsync(file.fileno())
        if answer.total not in (None, size):
            raise Lost("the connection was closed")

    def _accept(self, sha256: str | None) -> None:
        """Gives the finished part its name, or removes it where its sha256 is another one."""
        part, note, pin = (self._beside(name) for name in (".part", ".part.json", ".sha256"))
        found, wanted = _digest(part), sha256 or self._pin()
        if wanted not in (None, found):
            part.unlink()
            note.unlink()
            raise UserError(
                f"{self.url} has the sha256 {found} where {wanted} is expected"
                + ("" if sha256 else f" from the first download: to accept it, delete {pin}")
            )
        pin.write_text(found + "\n", encoding="utf-8")
        part.replace(self.target)
        note.unlink()
        self.say(f"downloaded {self.target} ({decimal(_size(self.target))})")

    def _pin(self) -> str | None:
        """The sha256 of the first download; None where it is not known, or was torn."""
        pin = self._beside(".sha256")
        text = pin.read_text(encoding="utf-8").strip() if pin.exists() else ""
        return text if re.fullmatch("[0-9a-f]{64}", text) else None


# -- files and lines -------------------------------------------------------------------------------


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {path}: {error.strerror or error}; make room, or choose another folder with "
        "VIT_JAX_CACHE"
    )


@contextlib.contextmanager
def _progress(
    url: str, answer: Answer, say: Callable[[str], None]
) -> Iterator[Callable[[int], None]]:
    """Gives what takes the number of bytes so far: a bar on a terminal, else only a line now."""
    if not sys.stderr.isatty():
        size = "size unknown" if answer.total is None else decimal(answer.total)
        after = f", from {decimal(answer.start)} on" if answer.start else ""
        say(f"downloading {url} ({size}{after})")
        yield lambda done: None
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:  # fmt: skip
        name = Path(urlsplit(url).path).name
        task = bar.add_task(name, total=answer.total, completed=answer.start)
        yield lambda done: bar.update(task, completed=done)
