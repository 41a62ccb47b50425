"""Lists, verifies, copies, prunes and averages the checkpoints of a run.

vit ckpt list runs/b16
vit ckpt verify runs/b16
vit ckpt copy runs/b16/checkpoints/5000 gs://bucket/b16-5000
vit ckpt prune runs/b16 --keep=1
vit ckpt prune runs/b16 --damaged
vit ckpt average runs/b16 --last=5 --output=b16-mean
vit ckpt average runs/seed0 runs/seed1 runs/seed2/checkpoints/900 --output=soup
"""

import argparse
import contextlib
import dataclasses
import datetime
import sys
from pathlib import Path
from typing import Any

from vit_jax import ranking
from vit_jax.checkpoint import checksums, steps
from vit_jax.commands.arguments import Options
from vit_jax.commands.output import tell
from vit_jax.errors import UserError, cannot_write, printable
from vit_jax.files import whole


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    averages, wanted = options.action == "average", 2 if options.action == "copy" else 1
    if not averages and len(options.paths) != wanted:
        raise UserError(
            "vit ckpt copy takes SOURCE and TARGET, average takes one path or more, the other "
            "actions SOURCE alone"
        )
    if (options.keep is not None or options.damaged) != (options.action == "prune"):
        raise UserError("vit ckpt prune, and it alone, takes --keep=N or --damaged")
    if (options.output is not None) != averages or (options.last is not None and not averages):
        raise UserError("vit ckpt average, and it alone, takes --output=DEST, and --last=N")
    options.source, options.target = options.paths[0], options.paths[-1]
    ACTIONS[options.action](options, contents(options.source))
    return 0


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a path contains: the checkpoints in rising order, and everything else in their folder
    whose name is a step's or looks like one."""

    checkpoints: list[Path]
    strays: dict[Path, str]
    unfinished: list[Path]  # of the strays, the folders that `prune --damaged` removes


def contents(source: str) -> Contents:
    """The checkpoints that a path names. Raises UserError if there are none."""
    from vit_jax.checkpoint import manager

    path = Path(source).expanduser().absolute()
    if (path / steps.STATE).is_dir():
        return Contents([path], {}, [])
    for folder in (path / "checkpoints", path):
        strays, saved = steps.strays(folder), steps.steps(folder)
        if saved or steps.unfinished(folder):
            checkpoints = [folder / str(step) for step in saved]
            return Contents(checkpoints, strays, steps.unfinished(folder))
    return Contents([manager.find(path)], {}, [])  # which raises


def _list(options: argparse.Namespace, there: Contents) -> None:
    from vit_jax.checkpoint import manager

    rows: list[dict[str, Any]] = []
    lines = []
    for checkpoint in there.checkpoints:
        about = manager.about(checkpoint)
        metric, _ = manager.ranked(about)
        reached = manager.reached(checkpoint, metric)
        size = sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file())
        saved = datetime.datetime.fromtimestamp(checkpoint.stat().st_mtime)
        saved_at = saved.isoformat(" ", "seconds")
        rows.append({
            "checkpoint": str(checkpoint), "step": steps.number(checkpoint.name),
            "examples_seen": about["examples_seen"], "bytes": size, metric: reached,
            "saved": saved_at,
        })  # fmt: skip
        shown = "" if reached is None else f"  {ranking.in_words(metric, reached)}"
        lines.append(f"{printable(str(checkpoint))}  {about['examples_seen']:,} examples  "
                     f"{size / 2**20:,.1f} MiB  {saved_at}{shown}")  # fmt: skip
    for path, problem in there.strays.items():
        print(f"vit: {printable(path)} {problem}", file=sys.stderr)
    tell(rows, "\n".join(lines), "-" if options.json else None)


def _verify(options: argparse.Namespace, there: Contents) -> None:
    for path, problem in there.strays.items():
        print(f"{printable(path)} {problem}")
    broken = [path.name for path in there.unfinished]
    for checkpoint in there.checkpoints:
        lines = checksums.damages(checkpoint)
        good = "saved without checksums, there is nothing to compare its files with"
        if checksums.known(checkpoint):
            good = f"{len(checksums.files(checkpoint))} files are what was saved"
        print(f"{printable(checkpoint)}: {'; '.join(lines) or good}")
        broken += [checkpoint.name] if lines else []
    if broken:
        count = len(there.checkpoints) + len(there.unfinished)
        raise UserError(f"{len(broken)} of {count} checkpoints are damaged: {', '.join(broken)}")


def _copy(options: argparse.Namespace, there: Contents) -> None:
    """Copies the last checkpoint, or the one named: verifies it first, copies its marker last."""
    from etils import epath

    from vit_jax.checkpoint import manager

    source = manager.find(options.source)
    target = epath.Path(options.target).expanduser()
    checksums.check(source)
    _refuse_false_step(source, options.target)
    if target.exists():
        raise UserError(f"{target} is there already: name a new place")
    names = [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()]
    markers = [name for name in names if Path(name).name == checksums.MARKER]
    bucket = "://" in str(options.target)
    try:
        with contextlib.nullcontext(target) if bucket else whole(Path(target)) as part:
            for name in sorted(set(names) - set(markers)) + sorted(markers, key=lambda n: -len(n)):
                place = part / name
                place.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(source / name).copy(place, overwrite=True)
            if bucket and checksums.MARKER not in names:  # which a local checkpoint does not have
                (part / checksums.MARKER).write_text("", encoding="utf-8")
    except OSError as error:
        raise cannot_write(Path(str(target)), error) from error
    print(f"{source} -> {target}: {len(names)} files")


def _refuse_false_step(source: Path, target: str) -> None:
    """Raises UserError if the copy would lie inside the checkpoint itself, or would count as
    another step."""
    if "://" in target:
        return
    place = Path(target).expanduser().absolute()
    folder = place.parent.resolve()
    if folder.is_relative_to(source.resolve()):
        raise UserError(f"{printable(place)} lies inside the checkpoint itself: name another place")
    counts = folder.name == "checkpoints" or steps.number(place.name) is not None
    if counts and place.name != source.name:
        raise UserError(
            f"{printable(place)} would count as another step of a run than {source.name}, which is "
            "copied: name a place outside checkpoints, and give it no other number"
        )


def _prune(options: argparse.Namespace, there: Contents) -> None:
    """Holds the work folder's lock, so that no run loses a checkpoint that it relies on."""
    from vit_jax.training.workdir import WorkFolder

    if options.keep is not None and options.keep < 1:
        raise UserError(f"--keep is 1 or more, not {options.keep}")
    checkpoints = there.checkpoints
    folder = (checkpoints + there.unfinished)[0].parent
    if folder.name != "checkpoints":
        raise UserError(f"{folder} is no work folder's checkpoints: nothing is pruned there")
    with WorkFolder(folder.parent):
        gone = [c for c in checkpoints if checksums.damages(c)] if options.damaged else []
        rest = [c for c in checkpoints if c not in gone]
        gone += rest[: -options.keep] if options.keep else []
        gone += there.unfinished if options.damaged else []
        if links := [c for c in gone if c.is_symlink()]:
            raise UserError(
                f"{printable(links[0])} is a link, which prune neither follows nor removes; "
                "nothing is removed: remove the link itself first"
            )
        for checkpoint in gone:
            _remove(checkpoint)
            print(f"{printable(checkpoint)} removed")
    kept = len(checkpoints) + len(there.unfinished) - len(gone)
    print(f"{len(gone)} removed, {kept} kept")


def _remove(checkpoint: Path) -> None:
    """Renames a checkpoint before removing it, so that half a checkpoint never has its name."""
    import shutil

    away = checkpoint.with_name(f".{checkpoint.name}.pruned")
    try:
        if away.is_symlink():
            away.unlink()
        elif away.exists():  # left by a prune that was killed
            shutil.rmtree(away)
        shutil.rmtree(checkpoint.rename(away))
    except OSError as error:
        raise UserError(f"{printable(checkpoint)} cannot be removed: {error.strerror}") from error


def _average(options: argparse.Namespace, there: Contents) -> None:
    """Writes the mean of the last checkpoints of a run, or of those that are named."""
    from vit_jax.checkpoint import manager
    from vit_jax.pretrained.average import average

    output = Path(options.output).absolute()
    if output.exists():
        raise UserError(f"{printable(output)} is there already: name a new place")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {printable(output.parent)}; make it first")
    if output.parent.name == "checkpoints" or steps.number(output.name) is not None:
        raise UserError(
            f"{printable(output)} would count as a step of a run: name a place outside "
            "checkpoints, and give it no number"
        )
    if len(options.paths) > 1:
        if options.last is not None:
            raise UserError("--last=N is of one run: leave it out, or the other paths")
        chosen = [manager.find(path) for path in options.paths]
    else:
        count = len(there.checkpoints) if options.last is None else options.last
        if not 2 <= count <= len(there.checkpoints):
            raise UserError(
                f"an average is of 2 checkpoints or more, and {printable(options.source)} has "
                f"{len(there.checkpoints)}"
                + (f", not {count}" if options.last is not None else "")
                + "; a run keeps as many as --config.checkpoint.keep"
            )
        chosen = there.checkpoints[-count:]
    if len(set(chosen)) < len(chosen):
        twice = next(path for path in chosen if chosen.count(path) > 1)
        raise UserError(f"{printable(twice)} is named twice")
    number = average(chosen, output)
    names = ", ".join(printable(str(path)) for path in chosen)
    print(f"mean of {len(chosen)} checkpoints, {number} parameters: {names} -> {output}")


ACTIONS = {"list": _list, "verify": _verify, "copy": _copy, "prune": _prune, "average": _average}
OPTIONS: Options = {
    "action": dict(choices=tuple(ACTIONS)),
    "paths": dict(
        nargs="+",
        metavar="PATH",
        help="a work folder, its checkpoints, or one of them; "
        "copy: then a folder or bucket that does not exist yet; average: any number of "
        "checkpoints and work folders (of which the last checkpoint counts), or one work "
        "folder",
    ),
    "--keep": dict(type=int, metavar="N", help="prune: how many of the last ones to keep"),
    "--damaged": dict(action="store_true", help="prune: remove only damaged ones"),
    "--last": dict(
        type=int,
        metavar="N",
        help="average: how many of the last ones of a work folder; all by default",
    ),
    "--output": dict(
        metavar="DEST",
        help="average: a folder that does not exist yet, which is taken wherever weights are",
    ),
    "--json": dict(action="store_true", help="list: print JSON"),
}
