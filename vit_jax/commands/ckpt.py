"""Lists, verifies, copies and prunes the checkpoints of a run.

vit ckpt list runs/b16
vit ckpt verify runs/b16
vit ckpt copy runs/b16/checkpoints/5000 gs://bucket/b16-5000
vit ckpt prune runs/b16 --keep=1
vit ckpt prune runs/b16 --damaged
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError, cannot_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("source", help="a work folder, its checkpoints, or one of them")
    parser.add_argument("target", nargs="?", help="of copy: a folder or bucket that is not there")
    parser.add_argument("--keep", type=int, metavar="N", help="of prune: the last ones to keep")
    parser.add_argument("--damaged", action="store_true", help="of prune: those damaged alone")
    parser.add_argument("--json", action="store_true", help="of list: as JSON")


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    if (options.target is not None) != (options.action == "copy"):
        raise UserError("vit ckpt copy takes SOURCE and TARGET, the other actions SOURCE alone")
    if (options.keep is not None or options.damaged) != (options.action == "prune"):
        raise UserError("vit ckpt prune, and it alone, takes --keep=N or --damaged")
    ACTIONS[options.action](options, found(options.source))
    return 0


def found(source: str) -> list[Path]:
    """The checkpoints that a path means, in rising order. Raises UserError where there are none."""
    from vit_jax.checkpoint import manager

    last = manager.find(source)
    if last == Path(source).expanduser().absolute():
        return [last]
    steps = sorted(int(p.name) for p in last.parent.iterdir() if p.name.isdigit())
    return [last.parent / str(step) for step in steps]


def _list(options: argparse.Namespace, checkpoints: list[Path]) -> None:
    from vit_jax.checkpoint import manager

    rows: list[dict[str, Any]] = []
    for checkpoint in checkpoints:
        about = manager.about(checkpoint)
        metrics = checkpoint / "metrics" / "metrics"
        measured = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        size = sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file())
        rows.append({
            "checkpoint": str(checkpoint), "step": int(checkpoint.name) if
            checkpoint.name.isdigit() else None, "examples_seen": about["examples_seen"],
            "bytes": size, "accuracy": (measured or {}).get(manager.METRIC),
            "saved": datetime.datetime.fromtimestamp(checkpoint.stat().st_mtime).isoformat(
                " ", "seconds"),
        })  # fmt: skip
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        reached = "" if row["accuracy"] is None else f"  accuracy {row['accuracy']:.2%}"
        print(f"{row['checkpoint']}  {row['examples_seen']:,} examples  "
              f"{row['bytes'] / 2**20:,.1f} MiB  {row['saved']}{reached}")  # fmt: skip


def _verify(options: argparse.Namespace, checkpoints: list[Path]) -> None:
    from vit_jax.checkpoint import checksums

    broken = []
    for checkpoint in checkpoints:
        lines = checksums.damages(checkpoint)
        known = (checkpoint / checksums.NAME).is_file()
        count = len(checksums.files(checkpoint))
        good = f"{count} files are what was saved" if known else "saved without checksums"
        print(f"{checkpoint}: {'; '.join(lines) or good}")
        broken += [checkpoint.name] if lines else []
    if broken:
        raise UserError(
            f"{len(broken)} of {len(checkpoints)} checkpoints are damaged: {', '.join(broken)}"
        )


def _copy(options: argparse.Namespace, checkpoints: list[Path]) -> None:
    """The last one, or the one named; verified first, its marker last."""
    from etils import epath

    from vit_jax.checkpoint import checksums

    source, target = checkpoints[-1], epath.Path(options.target).expanduser()
    checksums.check(source)
    if target.exists():
        raise UserError(f"{target} is there already: name a new place")
    names = [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()]
    markers = [name for name in names if Path(name).name == checksums.MARKER]
    bucket = "://" in str(options.target)
    part = target if bucket else target.parent / f".{target.name}.partial"
    try:
        for name in sorted(set(names) - set(markers)) + sorted(markers, key=lambda n: -len(n)):
            place = part / name
            place.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(source / name).copy(place, overwrite=True)
        if not bucket:
            Path(part).rename(target)
        elif checksums.MARKER not in names:  # a local one has its name alone
            (part / checksums.MARKER).write_text("", encoding="utf-8")
    except OSError as error:
        if not bucket and part.exists():
            part.rmtree()
        raise cannot_write(Path(str(target)), error) from error
    print(f"{source} -> {target}: {len(names)} files")


def _prune(options: argparse.Namespace, checkpoints: list[Path]) -> None:
    """Under the work folder's lock, so that no living run loses what it relies on."""
    import shutil

    from vit_jax.checkpoint import checksums
    from vit_jax.training.workdir import WorkFolder

    if options.keep is not None and options.keep < 1:
        raise UserError(f"--keep is 1 or more, not {options.keep}")
    folder = checkpoints[0].parent
    if folder.name != "checkpoints":
        raise UserError(f"{folder} is no work folder's checkpoints: nothing is pruned there")
    with WorkFolder(folder.parent):
        gone = [c for c in checkpoints if checksums.damages(c)] if options.damaged else []
        rest = [c for c in checkpoints if c not in gone]
        gone += rest[: -options.keep] if options.keep else []
        for checkpoint in gone:
            # Renamed first: half of a checkpoint never bears its name.
            away = checkpoint.rename(folder / f".{checkpoint.name}.pruned")
            shutil.rmtree(away)
            print(f"{checkpoint} removed")
    print(f"{len(gone)} removed, {len(checkpoints) - len(gone)} kept")


ACTIONS = {"list": _list, "verify": _verify, "copy": _copy, "prune": _prune}
