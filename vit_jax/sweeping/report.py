"""What a study leaves: `trials.csv`, `best.py`, a recipe that `vit train` takes, and `report.html`,
one page that needs no network."""

import csv
import io
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from ml_collections import ConfigDict
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from vit_jax import drawing
from vit_jax.config import base, leaves
from vit_jax.errors import printable
from vit_jax.files import write_text
from vit_jax.sweeping.space import in_words
from vit_jax.sweeping.study import IDENTITY, finished
from vit_jax.sweeping.trials import DIVERGED, REASON, STEPS

STATES = {
    TrialState.COMPLETE: "finished", TrialState.RUNNING: "not finished",
    TrialState.WAITING: "waits", TrialState.FAIL: "failed",
}  # fmt: skip


def write(study: optuna.Study, folder: Path, config: ConfigDict | None = None) -> list[str]:
    """Writes the three into a folder, without the best trial's `config` two; returns their names.

    Raises UserError where the folder cannot be written.
    """
    texts = {"trials.csv": as_csv(study), "report.html": as_page(study)}
    if config is not None:
        texts["best.py"] = as_recipe(study, config)
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)


def ordered(study: optuna.Study) -> list[FrozenTrial]:
    """All trials: the finished ones, best first, then the others by number."""
    best = finished(study)
    return best + [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.COMPLETE]


def rows(study: optuna.Study) -> tuple[list[str], list[list[Any]]]:
    """The table of trials, and its head."""
    trials = ordered(study)
    names = list(dict.fromkeys(name for trial in trials for name in _point(trial)))
    head = ["trial", *names, study.user_attrs[IDENTITY]["metric"], "steps", "state"]
    return head, [
        [trial.number, *(_point(trial).get(name, "") for name in names),
         "" if trial.value is None else round(trial.value, 6),
         trial.user_attrs.get(STEPS, trial.last_step or 0), _state(trial)]
        for trial in trials
    ]  # fmt: skip


def as_csv(study: optuna.Study) -> str:
    """The table, for programs."""
    head, table = rows(study)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *table])
    return text.getvalue()


def as_page(study: optuna.Study) -> str:
    """The page: what was found, parallel coordinates, importances, curves, the table."""
    identity, best, trials = study.user_attrs[IDENTITY], finished(study), ordered(study)
    metric, (head, table) = identity["metric"], rows(study)
    counts = {state: sum(_kind(t) == state for t in trials) for state in map(_kind, trials)}
    parts = [drawing.paragraph(
        f"{identity['method']} over {identity['space']}; "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
        + f"; {sum(row[-2] for row in table):,} steps in all"
    )]  # fmt: skip
    if best:
        parts.append(drawing.paragraph(
            f"Best: trial {best[0].number}, {metric} {best[0].value:.4f}, "
            f"{in_words(best[0].params)}"
        ))  # fmt: skip
        axes: dict[str, list[Any]] = {
            name: [trial.params[name] for trial in best] for name in best[0].params
        }
        values = [trial.value or 0.0 for trial in best]
        worst_first = values if study.direction.name == "MAXIMIZE" else [-value for value in values]
        log = [name for name, d in best[0].distributions.items() if _logarithmic(d)]
        parts += [drawing.heading("Trials that finished, as lines"),
                  drawing.parallel(axes | {metric: values}, worst_first, log)]  # fmt: skip
    if found := importances(study):
        parts += [drawing.heading(f"What {metric} depends on"), drawing.bars(found),
                  drawing.paragraph(f"Shares of its variance by functional ANOVA (Optuna's), from "
                                    f"{len(best)} trials that finished.")]  # fmt: skip
    if lines := {f"{t.number}": sorted(t.intermediate_values.items())
                 for t in trials if len(t.intermediate_values) > 1}:  # fmt: skip
        parts += [drawing.heading(f"{metric} over the steps"), drawing.curves(lines, "step")]
    parts += [drawing.heading("All trials"), drawing.table(head, table)]
    return drawing.page(f"Study {study.study_name}", *parts)


def importances(study: optuna.Study) -> dict[str, float]:
    """Of each key that took several values, the largest first; none where too few trials finished
    or all of them reached the same."""
    best = finished(study)
    if len({trial.value for trial in best}) < 2 or len(best) < 4:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # scikit-learn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        except (ValueError, RuntimeError):  # no key took several values
            return {}


def as_recipe(study: optuna.Study, config: ConfigDict) -> str:
    """A recipe of a trial's config: every key that is not the default.

    The study's name and its values may be any text: they stand in the code as literals, and in a
    comment on one line, which is not among the first two, where a comment may name an encoding.
    """
    best = finished(study)[0]
    default = dict(leaves(base()))
    changed = [f"    c.{key} = {_literal(value)}" for key, value in leaves(config)
               if value != default[key] and key != "optimizer.kwargs"]  # fmt: skip
    if arguments := config.optimizer.kwargs.to_dict():
        changed.append(f"    c.optimizer.kwargs = {_literal(arguments)}")
    metric = study.user_attrs[IDENTITY]["metric"]
    of = f"study {study.study_name}, trial {best.number}: {metric} {best.value:.4f}"
    return "\n".join([
        '"""The best trial of a sweep: vit train --config=best.py --workdir=DIR"""', "",
        "from vit_jax.config import base", "",
        f"# {printable(of)}", f"# {in_words(best.params)}", "", "",
        "def get_config():", "    c = base()", *changed, "    return c", "",
    ])  # fmt: skip


def _literal(value: Any) -> str:
    """Python's text of a config's value, also of one that is infinite or a number of NumPy's."""
    match value:
        case bool() | None:
            return repr(value)
        case float():
            return float.__repr__(value) if math.isfinite(value) else f'float("{value:f}")'
        case int():
            return int.__repr__(value)
        case str():
            return str.__repr__(value)
        case dict():
            return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
        case tuple() | list():
            inside = ", ".join(map(_literal, value))
            return f"[{inside}]" if isinstance(value, list) else f"({inside},)"
    return repr(value)


def _point(trial: FrozenTrial) -> dict[str, Any]:
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _kind(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return DIVERGED if trial.user_attrs.get(REASON) == DIVERGED else "pruned"
    return STATES[trial.state]


def _state(trial: FrozenTrial) -> str:
    return trial.user_attrs.get(REASON) or _kind(trial)


def _logarithmic(distribution: BaseDistribution) -> bool:
    """A range that is, or numbers that lie apart by a factor rather than by a step."""
    if isinstance(distribution, CategoricalDistribution):
        numbers = [n for n in distribution.choices if isinstance(n, float)]
        return len(numbers) == len(distribution.choices) and min(numbers) > 0 and (
            max(numbers) >= 10 * min(numbers))  # fmt: skip
    return bool(getattr(distribution, "log", False))
