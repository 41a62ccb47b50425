"""Fetches files and repositories of the Hugging Face Hub: `hf://OWNER/REPO[@REVISION][/FILE]`."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vit_jax.addresses import Missing, endpoint
from vit_jax.errors import UserError, printable
from vit_jax.files import NotAFile
from vit_jax.pretrained.cache import fits, shortened
from vit_jax.records import OBJECT, load

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_HUB = re.compile(r"hf://([^/@]+)/([^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")


def fetch_from_hub(address: str, sha256: str | None, start: Callable[[str], Any]) -> Path:
    """The local path of a file of the Hub, or of a repository's folder.

    Args:
      address: `hf://OWNER/REPO[@REVISION][/FILE]`.
      sha256: of the FILE.
      start: returns the download of a URL.

    Raises UserError: the address is malformed, the repository has no weights, a download fails.
    """
    match = _HUB.fullmatch(address)
    if match is None:
        raise UserError(f"{address}: write it as hf://OWNER/REPO, hf://OWNER/REPO@REVISION/FILE")
    owner, repo, revision, file = match.groups(default="")
    revision = revision or "main"
    url = f"{endpoint()}/{owner}/{repo}/resolve/{revision}"
    # The key has no endpoint, because a mirror must have the same files.
    key = f"hf://{owner}/{repo}@{revision}"
    place = start(url).cache.place
    if file:
        return start(f"{url}/{quote(file)}").run(place(f"{key}/{file}", quote(file)), sha256)
    if sha256:
        raise UserError(f"{address}: a sha256 is that of one file; name it as {address}/FILE")
    folder = place(key, quote(repo))

    def get(name: str) -> Path:
        return start(f"{url}/{quote(name)}").run(folder / name, None)

    get("config.json")
    there = [name for name in WEIGHTS if (folder / name).exists()]
    with contextlib.suppress(Missing):  # timm's repositories have no such file
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
    """The files that an index names. Raises UserError for a name that is not safe in the cache."""
    try:
        names = set(load(index, {"weight_map": OBJECT}, most=2**26)["weight_map"].values())
    except (NotAFile, ValueError, TypeError):
        names = {""}
    for name in sorted(names, key=str):
        usable = isinstance(name, str) and fits(name) and shortened(name) == name
        if not usable or name.startswith(".") or Path(name).suffix not in (".safetensors", ".bin"):
            raise UserError(
                f"{index} is no index of weights: it names {printable(repr(name))[:80]}; delete it "
                "to download it again"
            )
    return sorted(names)
