"""Shows several runs in one picture, and where their configs differ.

vit compare runs/a runs/b
vit compare runs/rates/* --output=compare.html        # or .png, with matplotlib
vit compare runs/a runs/b --metric=eval/val/loss --over=seconds

RUN is a work folder, or a file of rows like metrics.jsonl. The page needs no network.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from vit_jax import pages
from vit_jax.commands.arguments import Options
from vit_jax.commands.compare_curve import rows_of
from vit_jax.errors import UserError, cannot_write, printable
from vit_jax.files import write_text
from vit_jax.records import is_number, read_object

Curves = dict[str, dict[str, list[tuple[float, float]]]]  # metric -> run -> (x, y)


OPTIONS: Options = {
    "runs": dict(nargs="+", metavar="RUN"),
    "--output": dict(metavar="FILE", help="a page (.html) or a picture (.png)"),
    "--metric": dict(action="append", metavar="KEY", help="a key of metrics.jsonl; repeat it for "
                     "several (default: the loss and each accuracy)"),
    "--over": dict(choices=("step", "epoch", "seconds"), default="step"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    output = Path(options.output) if options.output else None
    if output and output.suffix not in (".html", ".png"):
        raise UserError(f"--output={output}: a page is .html, a picture .png")
    runs = dict(zip(_names(options.runs), options.runs, strict=True))
    rows = {name: rows_of(path) for name, path in runs.items()}
    curves = _curves(rows, options.metric, options.over)
    table = _table({name: _config(path) for name, path in runs.items()}, curves)
    print(pages.aligned(table))
    if output:
        if output.suffix == ".html":
            charts = [pages.heading(metric) + pages.curves(lines, options.over)
                      for metric, lines in curves.items()]  # fmt: skip
            differences = pages.heading("What differs") + pages.table(table)
            write_text(output, pages.page("Runs compared", *charts, differences))
        else:
            _picture(output, curves, options.over)
        print(output)
    return 0


def _names(paths: list[str]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    parts = [Path(path).expanduser().absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("a run is named twice")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _config(path: str) -> dict[str, Any]:
    """The resolved config of a run; empty if there is none."""
    folder = Path(path).expanduser()
    file = (folder if folder.is_dir() else folder.parent) / "config.json"
    return read_object(file) if file.exists() else {}


def _curves(rows: dict[str, list[dict]], metrics: list[str] | None, over: str) -> Curves:
    known = dict.fromkeys(
        key for run in rows.values() for row in run for key, value in row.items()
        if is_number(value) and key != "step"
    )  # fmt: skip
    if not known:
        raise UserError(f"{' and '.join(rows)}: no rows yet")
    for metric in metrics or ():
        if metric not in known:
            raise UserError(f"no run has {metric}: there are {printable(', '.join(known))}")
    chosen = metrics or [key for key in known if re.fullmatch("loss|eval/.*/accuracy", key)]
    curves: Curves = {metric: {} for metric in chosen}
    for name, run in rows.items():
        per_step = 1.0
        if over != "step":  # rows of evaluations have no seconds and no epoch, only a step
            trained = [row for row in run if over in row]
            if not trained:
                raise UserError(f"{name} has no rows with {over}")
            per_step = trained[-1][over] / max(trained[-1]["step"], 1)
        for metric in chosen:
            line = [(row.get(over, row["step"] * per_step), row[metric])
                    for row in run if metric in row]  # fmt: skip
            if line:
                curves[metric][name] = line
    return curves


def _table(configs: dict[str, dict[str, Any]], curves: Curves) -> list[list[str]]:
    """A head, the keys that differ, and the last and the best value of each metric; a column for
    each run."""
    table = [["", *configs]]
    for key in sorted({key for config in configs.values() for key in config}):
        values = [str(config.get(key, "")) if config else "?" for config in configs.values()]
        if len(set(values) - {"?"}) > 1:
            table.append([key, *values])
    for metric, lines in curves.items():
        best = min if metric.endswith("loss") else max
        for what, choose in (("last", lambda values: values[-1]), ("best", best)):
            table.append([f"{metric}, {what}"] + [
                f"{choose([y for _, y in lines[name]]):.4f}" if name in lines else ""
                for name in configs
            ])  # fmt: skip
    return table


def _picture(output: Path, curves: Curves, over: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "a .png needs matplotlib: pip install 'vit_jax[plots]', or write a page, .html"
        ) from None
    figure = Figure(figsize=(4.5 * len(curves), 3.4), layout="constrained")
    charts = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (metric, lines) in zip(charts, curves.items(), strict=True):
        for name, line in lines.items():
            axes.plot(*zip(*line, strict=True), label=name, marker="." if len(line) < 40 else "")
        axes.set(title=metric, xlabel=over)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(output, dpi=110)
    except OSError as error:
        raise cannot_write(output, error) from error
