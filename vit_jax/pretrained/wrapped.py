"""Finds the tensors of a model among all those that a file holds.

Training scripts wrap models in others: `torch.compile` puts `_orig_mod.` before every name,
Lightning `model.`, MoCo `module.base_encoder.`, Flax `params/`. They save optimisers, moving
averages and the heads of other tasks beside them. The structure of the names shows where the model
is: below a prefix of one part or several are the names of a known layout. What is not below it is
unused.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

DEEPEST = 6  # parts of a prefix
LONGEST = 100  # characters of a part that is looked up in `BESIDE`

# Parts of names that belong to something other than the model, each with the reason why they are
# not read. They are looked up in the first part of a name below the model's prefix, and only if the
# model has no tensor of its own there.
BESIDE = {
    r"(\w*_)?(optim|optimi[sz]ers?|opt|scheduler|scaler)(_states?)?": "the state of an optimiser",
    r"(\w*_)?(ema|momentum|teacher)(_\w+)?": "a moving average",
    r"(\w*_)?decoder(_\w+)?|mask_tokens?": "the decoder of another task",
    r"(\w*_)?(projectors?|projection|predictors?|prediction|proj)(_(head|mlp))?":
        "a projector of another task",
    r"(\w*_)?(heads?|classifiers?)(_\w+)?": "the head of another task",
    r"queue(_\w+)?|(\w*_)?(loss|criterion|metrics?)(_\w+)?": "the state of a loss or a metric",
}  # fmt: skip
# Of several models at one depth, those of such prefixes come last.
_COPY = re.compile(r"(.*[._/])?(ema|momentum|teacher|target|k|opt|optimi[sz]er)[._/].*")


def by_depth(names: Iterable[str]) -> Iterator[dict[str, set[str]]]:
    """For each number of parts, from none to `DEEPEST`: every prefix of that many parts, and the
    names below it. A dot or a slash ends a part of a name."""
    level: dict[str, set[str]] = {"": set(names)}
    for _ in range(DEEPEST):
        yield level
        longer: dict[str, set[str]] = {}
        for prefix, below in level.items():
            for name in below:
                if part := re.match(r"[^./]*[./]", name):
                    longer.setdefault(prefix + part[0], set()).add(name[part.end() :])
        level = longer
    yield level


def found_in(
    names: Iterable[str], recognised: Mapping[str, Callable[[Iterable[str]], bool]]
) -> tuple[str, list[str], list[str]]:
    """The prefix of the model in a file, the layouts that recognise it, and the prefixes of other
    models. All of them have the fewest parts that a model is found below. A copy of a model comes
    last. Without a model, there are no layouts.

    Args:
      recognised: for each layout, whether it recognises names as its own.
    """
    for level in by_depth(names):
        fits = {
            prefix: [layout for layout, is_own in recognised.items() if is_own(below)]
            for prefix, below in level.items()
        }
        found = sorted(prefix for prefix, layouts in fits.items() if layouts)
        if found:
            first, *others = sorted(found, key=lambda prefix: bool(_COPY.fullmatch(prefix)))
            return first, fits[first], others
    return "", [], []


def beside(names: Iterable[str], consumed: Iterable[str]) -> dict[str, str]:
    """Which of `names` belong to something other than the model, each with the reason.

    Args:
      consumed: the names that the model reads.
    """
    own = {_first(name) for name in consumed}
    whys = {}
    for name in names:
        first = _first(name)
        if first in own or len(first) > LONGEST:
            continue
        if why := next((why for form, why in BESIDE.items() if re.fullmatch(form, first)), None):
            whys[name] = why
    return whys


def _first(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]
