"""Shows a run as one page: curves, settings, time, data, evaluation, and mistakes.

vit report runs/flowers --output=report.html
vit report runs/flowers --output=report.html --no-evaluation

The last checkpoint is evaluated on the run's own split, and an augmented batch is drawn of its
training data; data that is not here is left out, with the reason. The page needs no network.
"""

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vit_jax import pages
from vit_jax.commands import evaluate
from vit_jax.commands.arguments import Options
from vit_jax.commands.compare_curve import rows_of
from vit_jax.commands.output import check_files, say
from vit_jax.config import ROWS, base, flat
from vit_jax.errors import UserError, printable
from vit_jax.files import write_text
from vit_jax.records import is_number, read_object
from vit_jax.user_code import FLAG

OPTIONS: Options = {
    "run": dict(metavar="RUN", help="a work folder"),
    "--output": dict(required=True, metavar="PAGE.html", help="the page"),
    "--split": dict(help="another evaluation split"),
    "--no-evaluation": dict(action="store_true", help="leave out what needs the run's data"),
    FLAG: dict(action="store_true", help="run the sources and operations that the run's config "
               "names by import path, although this user did not train there"),
}  # fmt: skip

SAMPLES = 24  # augmented images
# Curves beside those of evaluations.
CURVES = ("learning_rate", "grad_norm")
FIGURES = {
    "steps": "steps", "examples_seen": "examples", "train_seconds": "seconds of training",
    "images_per_second": "images a second", "num_params": "parameters",
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    check_files(options)
    folder = Path(options.run)
    rows = rows_of(options.run)
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    parts = [*_result(folder), *_curves(rows)]
    if not options.no_evaluation:
        parts += _evaluation(options, folder)
    parts += _settings(config)
    write_text(Path(options.output), pages.page(f"Run {folder.name}", *parts))
    say(printable(options.output))
    return 0


def _result(folder: Path) -> Iterable[str]:
    """What came out, and where the time went."""
    file = folder / "result.json"
    if not file.is_file():
        yield pages.paragraph("The run has not ended.")
        return
    result = read_object(file)
    named = [(words, result[key]) for key, words in FIGURES.items() if key in result]
    first = next(iter(result.items()))
    yield pages.table([("", "value"), (first[0].replace("_", " "), first[1]), *named])
    seconds = {part: s for part, s in result.get("goodput", {}).items() if s}
    if total := sum(seconds.values()):
        yield pages.heading("Time")
        yield pages.bars({f"{part}, {s:,.0f} s": s / total for part, s in seconds.items()})


def _curves(rows: list[dict[str, Any]]) -> Iterable[str]:
    """A chart for the losses, one for each of `CURVES`, and one for all metrics of evaluations that
    lie in [0, 1]."""
    known = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    lines = {key: [(float(row["step"]), row[key]) for row in rows if key in row] for key in known}
    charts: dict[str, list[str]] = {"loss": [], **{key: [key] for key in CURVES}, "evaluations": []}
    for key, line in lines.items():
        if key == "loss" or (key.startswith("eval/") and key.endswith("/loss")):
            charts["loss"].append(key)
        elif key.startswith("eval/") and any(y for _, y in line):
            charts["evaluations"] += [key] if all(0 <= y <= 1 for _, y in line) else []
    for title, chosen in charts.items():
        shown = {key.removeprefix("eval/"): lines[key] for key in chosen if key in lines}
        if any(len(line) > 1 for line in shown.values()):
            yield pages.heading(title.replace("_", " ").capitalize())
            yield pages.curves(shown, "step")


def _evaluation(options: argparse.Namespace, folder: Path) -> Iterable[str]:
    """What the last checkpoint does with its evaluation split, and what its data looks like."""
    from vit_jax.look import judged

    options = argparse.Namespace(
        workdir=str(folder), checkpoint=None, data=None, split=options.split, weights="trained",
        tta=None, trust_code=options.trust_code, overrides=options.overrides,
    )  # fmt: skip
    try:
        with evaluate.opened(options) as (checkpoint, about):
            found = evaluate.measured(options, checkpoint, about)
            yield pages.heading("Evaluation")
            yield from map(pages.paragraph, found.lines)
            sections = judged.SECTIONS.get(found.run.config.task)
            if found.rows and sections:
                yield from sections(found.run, found.params, found.rows)
            yield from _data(about)
    except UserError as error:
        yield pages.paragraph(f"Not evaluated: {error}")


def _data(about: dict[str, Any]) -> Iterable[str]:
    """The classes, and an augmented batch."""
    import numpy as np

    from vit_jax.look import pictures
    from vit_jax.training.resolve import opened
    from vit_jax.training.run import run_of

    yield pages.heading("Data")
    config = evaluate.stored_config(about["config"])
    config.mesh.update(base().mesh)
    config.microbatch = None
    try:
        one = run_of(config, [], data=opened)
        with contextlib.closing(one.train_batches(examples_seen=0, steps=1)) as batches:
            _, batch = next(batches)
    except UserError as error:
        yield pages.paragraph(f"The training data is not shown: {error}")
        return
    source: Any = one.train_source
    counts = f"{len(source):,} examples, {len(one.classes)} classes"
    yield pages.paragraph(f"{config.data.train.source}: {counts}. As augmented:")
    rows = {name: np.asarray(values)[:SAMPLES] for name, values in batch.items()}
    images = [
        one.task.picture(image, {name: values[i] for name, values in rows.items()})
        for i, image in enumerate(pictures.as_rgb(rows["image"]))
    ]
    shown = [pages.picture(pictures.jpeg(pictures.enlarged(image, 96)), kind="smooth")
             for image in images]  # fmt: skip
    yield pages.tiles(shown, 8, 80)
    yield pages.details("Classes", pages.paragraph(", ".join(one.classes)))


def _settings(config: dict[str, Any]) -> Iterable[str]:
    """The keys that differ from their defaults, with their meaning; then all."""
    if not config:
        return
    defaults = flat(base())
    table = [
        (key, value, ROWS[key].says if key in ROWS else "")
        for key, value in config.items() if value != defaults.get(key)
    ]  # fmt: skip
    head = ("key", "value", "meaning")
    yield pages.heading("Settings that differ from the defaults")
    yield pages.table([head, *table])
    rows = [(key, value) for key, value in config.items()]
    yield pages.details("All settings", pages.table([head[:2], *rows]))
