"""Checks of the names and texts that a launcher prints.

Somebody runs a printed script or manifest. A name that its provider would refuse is refused before
anything is printed. All other texts are quoted where they are printed, and cannot leave their line.
"""

import posixpath
import re
import unicodedata

from vit_jax.errors import UserError

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_LETTER_FIRST = r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*"
_WORD = r"[A-Za-z0-9](?:[-._A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_HOST = r"[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = (
    rf"(?:{_HOST}(?:\.{_HOST})*(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][-.A-Za-z0-9_]{0,127})?(?:@[A-Za-z0-9]+:[0-9a-fA-F]{32,})?"
)

# What: (pattern, description). Sources: the references of Compute Engine and Cloud TPU,
# Kubernetes' "Object Names and IDs", "Labels and Selectors", "ConfigMaps", and the grammar of image
# references of the distribution project.
NAMES = {
    "--zone": (_LETTER_FIRST, "small letters, digits and dashes, such as us-east5-b"),
    "--project": (
        rf"(?:(?:[-a-z0-9]{{1,63}}\.)*{_LETTER_FIRST}:)?{_LABEL}",
        "small letters, digits and dashes, such as my-project-1",
    ),
    "--accelerator": (r"[a-z0-9]+(?:-[a-z0-9]+)*",
                      "small letters, digits and dashes, such as v5litepod-16"),
    "--runtime": (r"[a-z0-9]+(?:[-._][a-z0-9]+)*",
                  "small letters, digits, dots and dashes, such as v2-alpha-tpuv5-lite"),
    "--image": (_IMAGE, "a reference such as registry.example/team/vit_jax:1"),
    "--namespace": (_LABEL, "small letters, digits and dashes, such as research"),
    "--volume": (_DOMAIN, "the name of a claim: small letters, digits, dots and dashes"),
    "--node": (rf"(?:{_DOMAIN}/)?{_WORD}",
               "a label such as cloud.google.com/gke-nodepool"),
    "the value of --node": (_WORD, "letters, digits, dots and dashes, 63 at most"),
    "the recipe's file name": (r"(?!\.\.?\Z|\.\.)[-._A-Za-z0-9]{1,253}",
                               "letters, digits, dots, dashes and underscores: rename the file"),
    "the job's name": (_LETTER_FIRST, "small letters, digits and dashes, 63 at most"),
    "--sbatch": (r"[a-z][-_a-z0-9]*", "the long name of an option of sbatch, such as qos"),
}  # fmt: skip


def checked(what: str, name: str) -> str:
    """The name itself; `what` is a key of NAMES. Raises UserError: its provider would refuse it."""
    pattern, words = NAMES[what]
    if not re.fullmatch(pattern, name):
        raise UserError(f"{what} cannot be {name!r}; it is {words}")
    return name


def text(what: str, value: str) -> str:
    """The value itself, which the caller quotes. Raises UserError: no script or manifest can hold
    it."""
    if "\0" in value or any(unicodedata.category(letter) == "Cs" for letter in value):
        raise UserError(f"{what} {value!r} is no text in UTF-8")
    return value


def one_line(what: str, value: str) -> str:
    """The value itself, for a comment or an #SBATCH line, which a line break would end. Raises
    UserError: it has a line break or another control character."""
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text(what, value)):
        raise UserError(f"{what} {value!r} has a control character: write one line")
    return value


def place(what: str, path: str) -> str:
    """A path of another machine or of a container. Raises UserError: it is not absolute, or has a
    `..` or a `:`."""
    inside = posixpath.normpath(one_line(what, path)).lstrip("/")
    if not path.startswith("/") or not inside or ".." in path.split("/") or ":" in path:
        raise UserError(f"{what} {path!r} is no absolute path without .. and :, such as /runs")
    return f"/{inside}"
