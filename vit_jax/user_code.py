"""The user's own classes and functions, named by import path, and who may name them.

What a user types (a command line, a recipe) is trusted. What a work folder says is data, until it
is known that this user trained there: each checkpoint is signed with a key of the user's own.
"""

import contextlib
import hashlib
import hmac
import importlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError, printable

FLAG = "--trust-code"
_imported: set[str] = set()  # the paths that this process has followed
# What is allowed (None: all, because the user typed them), and whether files are trusted.
_gate: tuple[Callable[[str], bool] | None, bool] = (None, False)


def imported(path: str, what: str) -> Any:
    """The object at `package.module:NAME`; modules of the current folder are found too.

    Raises UserError where there is no such module or name, or it must not be imported (`only`).
    """
    module, _, name = path.partition(":")
    allowed, _ = _gate
    if allowed is not None and not allowed(path):
        raise UserError(
            f"{printable(path)}: {what} that a work folder's config names is code, and this user "
            f"did not train there: {FLAG} runs it, if you trust the folder"
        )
    _look_here()
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does
        if isinstance(error, AttributeError) and name in str(error) and module in str(error):
            raise UserError(f"{path}: the module has no {name!r}") from None
        raise UserError(f"{path}: {what} cannot be imported: {error}") from error
    _imported.add(path)
    return found


def _look_here() -> None:
    """Lets modules of the current folder be found; a console script looks in its own one alone."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def is_module(name: str) -> bool:
    """Whether a name may be that of a module: it is of a package (`my_package.my_module`), or such
    a module is there. Nothing is imported."""
    if "." in name or not name.isidentifier():
        return "." in name
    _look_here()
    return name in sys.modules or importlib.util.find_spec(name) is not None


def may_import(path: str) -> bool:
    """Whether a path that a file names may be followed: the user has typed it in this process too,
    or a signature vouches for it, or the user trusts the file (see `only`)."""
    allowed, files_trusted = _gate
    return files_trusted or path in _imported or (allowed is not None and allowed(path))


@contextlib.contextmanager
def only(allowed: Callable[[str], bool] | None, *, trust_files: bool = False) -> Iterator[None]:
    """Inside, `imported` follows those paths alone that `allowed` accepts; None is all of them.
    With `trust_files`, the import paths that weights name are followed too."""
    global _gate  # noqa: PLW0603  # the one gate of the process
    before, _gate = _gate, (allowed, trust_files)
    try:
        yield
    finally:
        _gate = before


def signature(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps beside its flat config: the import paths in it that this process has
    followed, and proof that this user's process wrote them. Nothing where there are none."""
    texts = [value for value in config.values() if isinstance(value, str)]
    paths = sorted(path for path in _imported if any(path in text for text in texts))
    key = _key(make=True) if paths else b""
    return {"imports": paths, "signature": _sign(key, config, paths)} if key else {}


def signed(about: Mapping[str, Any]) -> list[str]:
    """The import paths of a checkpoint that this user's own key vouches for."""
    paths, key = about.get("imports"), _key(make=False)
    if not key or not isinstance(paths, list):
        return []
    right = hmac.compare_digest(
        _sign(key, about.get("config", {}), paths).encode(),
        str(about.get("signature", "")).encode(errors="replace"),
    )
    return paths if right else []


def _sign(key: bytes, config: Mapping[str, Any], paths: list[str]) -> str:
    text = json.dumps([config, paths], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes:
    """The user's secret, in a file that others cannot read; empty where there is none."""
    root = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    file = root / "vit_jax" / "key"
    try:
        if make and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(new, file)  # the first of several processes decides
            new.unlink()
        facts = file.stat()
        private = facts.st_uid == os.getuid() and not facts.st_mode & 0o077
        return file.read_bytes() if private else b""
    except (OSError, RuntimeError):  # no home, or none that can be written: nothing is signed
        return b""
