"""The report of a study: `trials.csv`; `best.py`, a recipe for `vit train`; and `report.html`, one
page that needs no network."""

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from ml_collections import ConfigDict
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from vit_jax import pages
from vit_jax.config import base, further, leaves
from vit_jax.errors import printable
from vit_jax.files import write_text
from vit_jax.sweeping.space import in_words
from vit_jax.sweeping.study import IDENTITY, finished
from vit_jax.sweeping.trials import DIVERGED, REASON, STEPS

STATES = {
    TrialState.COMPLETE: "finished", TrialState.RUNNING: "not finished",
    TrialState.WAITING: "waits", TrialState.FAIL: "failed", TrialState.PRUNED: "pruned",
}  # fmt: skip


def write(study: optuna.Study, folder: Path, config: ConfigDict | None = None) -> list[str]:
    """Writes the files and returns their names; `best.py` only if the best trial's `config` is
    given. Raises UserError if the folder cannot be written."""
    texts = {"trials.csv": pages.as_csv(table(study)), "report.html": as_page(study)}
    if config is not None:
        texts["best.py"] = as_recipe(study, config)
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)


def ordered(study: optuna.Study) -> list[FrozenTrial]:
    """All trials: the finished ones, best first, then the others by number."""
    trials = study.get_trials(deepcopy=False)
    return finished(study) + [t for t in trials if t.state != TrialState.COMPLETE]


def table(study: optuna.Study) -> list[list[Any]]:
    """A head, then a row for each trial."""
    trials = ordered(study)
    names = list(dict.fromkeys(name for trial in trials for name in _point(trial)))
    return [["trial", *names, study.user_attrs[IDENTITY]["metric"], "steps", "state"]] + [
        [trial.number, *(_point(trial).get(name, "") for name in names),
         "" if trial.value is None else round(trial.value, 6),
         _steps(trial), trial.user_attrs.get(REASON) or _state(trial)]
        for trial in trials
    ]  # fmt: skip


def as_page(study: optuna.Study) -> str:
    """The page: a summary, parallel coordinates, importances, curves, and the table."""
    identity, best, trials = study.user_attrs[IDENTITY], finished(study), ordered(study)
    metric, states = identity["metric"], list(map(_state, trials))
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    parts = [pages.paragraph(f"{identity['method']} over {identity['space']}; {counts}; "
                             f"{sum(map(_steps, trials)):,} steps in all")]  # fmt: skip
    if best:
        reached = f"{metric} {best[0].value:.4f}, {in_words(best[0].params)}"
        parts.append(pages.paragraph(f"Best: trial {best[0].number}, {reached}"))
        values = [trial.value or 0.0 for trial in best]
        sign = 1 if study.direction.name == "MAXIMIZE" else -1
        axes = {key: [trial.params[key] for trial in best] for key in best[0].params}
        log = [key for key, d in best[0].distributions.items() if _logarithmic(d)]
        parts += [
            pages.heading("Trials that finished, as lines"),
            pages.parallel(axes | {metric: values}, [sign * value for value in values], log,
                           [folder_of(trial) for trial in best]),
        ]  # fmt: skip
    if shares := importances(study):
        parts += [
            pages.heading(f"What {metric} depends on"), pages.bars(shares),
            pages.paragraph("Shares of its variance by functional ANOVA (Optuna's), from "
                            f"{len(best)} trials that finished."),
        ]  # fmt: skip
    lines = {f"{trial.number}": sorted(trial.intermediate_values.items())
             for trial in trials if len(trial.intermediate_values) > 1}  # fmt: skip
    if lines:
        parts += [pages.heading(f"{metric} over the steps"), pages.curves(lines, "step")]
    head, *rows = table(study)
    linked = [[pages.Link(row[0], folder_of(trial)), *row[1:]]
              for trial, row in zip(trials, rows, strict=True)]  # fmt: skip
    parts += [pages.heading("All trials"), pages.table([head, *linked])]
    return pages.page(f"Study {study.study_name}", *parts)


def folder_of(trial: FrozenTrial) -> str:
    """The address of a trial's work folder, from the page of its study."""
    return f"{trial.number:04d}/"


def importances(study: optuna.Study) -> dict[str, float]:
    """The importance of each key that took several values, the largest first. Empty if fewer than
    four trials finished, or if all of them reached the same value."""
    best = finished(study)
    if len({trial.value for trial in best}) < 2 or len(best) < 4:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # scikit-learn

    with warnings.catch_warnings(action="ignore"):
        try:
            return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        except (ValueError, RuntimeError):  # no key took several values
            return {}


def as_recipe(study: optuna.Study, config: ConfigDict) -> str:
    """A recipe of a trial's config: every key that differs from the default.

    The study's name and its values may be any text. They stand in the code as literals, and in a
    comment on one line. The comment is not on line 1 or 2, where it could declare an encoding.
    """
    best = finished(study)[0]
    of_base = f"{config.model.name!r}, {config.task!r}" if further(config) else ""
    default = dict(leaves(base()))
    changed = {key: value for key, value in leaves(config)
               if value != default.get(key) and key != "optimizer.kwargs"}  # fmt: skip
    if arguments := config.optimizer.kwargs.to_dict():
        changed["optimizer.kwargs"] = arguments
    metric = study.user_attrs[IDENTITY]["metric"]
    source = f"study {study.study_name}, trial {best.number}: {metric} {best.value:.4f}"
    return "\n".join([
        '"""The best trial of a sweep: vit train --config=best.py --workdir=DIR"""', "",
        "from vit_jax.config import base", "",
        f"# {printable(source)}", f"# {in_words(best.params)}", "", "",
        "def get_config():", f"    c = base({of_base})",
        *(f"    c.{key} = {_literal(value)}" for key, value in changed.items()),
        "    return c", "",
    ])  # fmt: skip


def _literal(value: Any) -> str:
    """Python's text of a config's value. Infinite numbers and those of NumPy have no `repr` that is
    a literal."""
    match value:
        case float():
            return float.__repr__(value) if math.isfinite(value) else f'float("{value:f}")'
        case str():
            return str.__repr__(value)
        case dict():
            return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case tuple():
            return f"({''.join(f'{_literal(item)}, ' for item in value)})"
    return repr(value)


def _point(trial: FrozenTrial) -> dict[str, Any]:
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _state(trial: FrozenTrial) -> str:
    return DIVERGED if trial.user_attrs.get(REASON) == DIVERGED else STATES[trial.state]


def _steps(trial: FrozenTrial) -> int:
    return trial.user_attrs.get(STEPS, trial.last_step or 0)


def _logarithmic(distribution: BaseDistribution) -> bool:
    """Whether a range is logarithmic, or listed numbers span a factor of ten or more."""
    if isinstance(distribution, CategoricalDistribution):
        numbers = [n for n in distribution.choices if isinstance(n, float)]
        all_numbers = len(numbers) == len(distribution.choices)
        return all_numbers and max(numbers) >= 10 * min(numbers) > 0
    return bool(getattr(distribution, "log", False))
