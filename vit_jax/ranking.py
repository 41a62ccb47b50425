"""How evaluations are ranked: by `max accuracy`, `min loss`; without JAX, for those who read files.

A task says its own (`Task.best`), and the config's key `best` holds it for everyone who asks which
checkpoint, run or trial is best.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence

FORM = re.compile(r"(max|min) (\S+)")
WANTED = "max or min and a metric of the evaluation, as in min loss"
# Of runs whose config has no `best`: there was no task but classification.
OLDEST = "max accuracy"


def fits(text: object) -> bool:
    """Whether a text ranks."""
    return isinstance(text, str) and FORM.fullmatch(text) is not None


def ranked_by(text: str) -> tuple[str, Callable]:
    """(Name of the metric, `max` or `min`.) Raises ValueError for another text."""
    match = FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {WANTED}")
    return match[2], {"max": max, "min": min}[match[1]]


def without_gain(values: Sequence[float], best_of: Callable) -> int:
    """How many of the last values are no better than the best one before them. NaN is no gain.

    >>> without_gain([0.5, 0.7, 0.6, 0.7], max)
    2
    """
    gains = [math.nan]
    for value in values:
        best = value if math.isnan(gains[-1]) else best_of(gains[-1], value)
        gains.append(best)
    since = 0
    for before, best in itertools.pairwise(gains):
        since = 0 if best != before and not math.isnan(best) else since + 1
    return since


def in_words(metric: str, value: float) -> str:
    """`accuracy 98.30%`, `loss 0.04120`."""
    how = ".2%" if metric.endswith("accuracy") else ".4g"
    return f"{metric} {value:{how}}"
