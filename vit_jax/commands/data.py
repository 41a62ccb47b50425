"""Checks data sets, prepares them for training, and lists the operations on images.

  vit data check folder:PATH                             damaged, misnamed and doubled images
  vit data prepare folder:PATH --name=my_photos          a folder, as tfds:my_photos
  vit data prepare imagenet2012 --from=DOWNLOADS         ILSVRC2012's tars, as they are
  vit data prepare imagenet21k --from=DOWNLOADS --val=102400
  vit data prepare tfds:my_package.my_module:MyBuilder   a TFDS builder of your own
  vit data prepare tfds:cifar10                          TFDS's own, with vit_jax[tf] installed
  vit data ops                                           what a pipeline can be made of

vit data ACTION --help shows an action's options.
"""

import argparse
import inspect
import json
from pathlib import Path

PREPARE = """Writes a TFDS data set as array_record, ROOT/NAME/VERSION, to be read as tfds:NAME.

SOURCE is folder:PATH (PATH/SPLIT/CLASS/* or PATH/CLASS/*), imagenet2012 or imagenet21k with
--from=FOLDER (their tars, or folders of synsets), or tfds:NAME[/CONFIG][:VERSION] or
tfds:PACKAGE.MODULE:BUILDER. Images stay the bytes they are. The set appears when it is whole.
"""
CHECK = """Reads every example, prints a line for each problem: damaged and empty files, names of
another format than the bytes, the same bytes twice (with another label, in another split), classes
without images. With --statistics, prints the values of each channel and what to write to train with
them: the range of images of more than 8 bits, mean and std. Exits 0 where there is no problem and 1
where there are some.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|prepare|ops")
    raw = argparse.RawDescriptionHelpFormatter

    check = actions.add_parser("check", description=CHECK, formatter_class=raw, allow_abbrev=False)
    check.add_argument("source", metavar="SOURCE", help="folder:PATH, tfds:NAME, digits …")
    check.add_argument("--split", help="one split; all of them by default")
    check.add_argument("--threads", type=int, help="readers at a time")
    check.add_argument(
        "--statistics", action="store_true",
        help="also the values of each channel, and the range, mean and std to train with",
    )  # fmt: skip
    check.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="report as JSON, to FILE or printed"
    )

    prepare = actions.add_parser(
        "prepare", description=PREPARE, formatter_class=raw, allow_abbrev=False
    )
    prepare.add_argument("source_spec", metavar="SOURCE", help="what to prepare")
    prepare.add_argument(
        "--from", dest="source", metavar="FOLDER",
        help="what was downloaded: ImageNet's tars, a builder's manual downloads, or the root of a "
        "set in TFRecord",
    )  # fmt: skip
    prepare.add_argument(
        "--output", metavar="ROOT", help="TFDS_DATA_DIR or ~/tensorflow_datasets by default"
    )
    prepare.add_argument("--name", help="of the data set; a folder's own by default")
    prepare.add_argument("--shards", type=int, help="files a split; of about 1 GiB by default")
    prepare.add_argument("--seed", type=int, help="of the order of the examples; 0 by default")
    prepare.add_argument(
        "--labels", metavar="MAP",
        help="which synsets are classes, in which order: 1k, 21k (Google's 21,843), 21k-p "
        "(11,221), found, or a file with one a line; the others are left out and counted",
    )  # fmt: skip
    prepare.add_argument(
        "--val", type=int, metavar="N",
        help="images of ImageNet-21k to hold out as val; 102400 or one in a hundred by default",
    )  # fmt: skip
    prepare.add_argument("--threads", type=int, help="readers at a time; 8 by default")

    actions.add_parser("ops", description="Lists the operations of pipelines.", allow_abbrev=False)


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    from vit_jax.errors import UserError

    if options.overrides:
        raise UserError("vit data reads no config: leave --config.KEY=VALUE out")
    return {"check": _check, "prepare": _prepare, "ops": _ops}[options.action](options)


def _prepare(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from vit_jax.preparing.prepare import Options, prepare

    given = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    prepare(options.source_spec, given)
    return 0


def _check(options: argparse.Namespace) -> int:
    from vit_jax.files import write_json
    from vit_jax.preparing.check import check, lines

    report = check(options.source, options.split, options.threads, statistics=options.statistics)
    if options.json == "-":
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(lines(report)))
    if options.json not in (None, "-"):
        write_json(Path(options.json), report)
    return 1 if report["problems"] else 0


def _ops(options: argparse.Namespace) -> int:
    from vit_jax.data.ops import OPS, RANDOM, SHOWN, decode

    for name, function in {"decode": decode, **OPS, **SHOWN}.items():
        takes = list(inspect.signature(function).parameters.values())[3 if name in OPS else 0 :]
        arguments = ", ".join(
            f"{p.name}={p.default!r}" if p.default is not p.empty else p.name for p in takes
        )
        drawn = "  (draws: not for evaluation)" if name in RANDOM else ""
        print(f"{name}({arguments}){drawn}")
        print(f"    {' '.join((inspect.getdoc(function) or '').split(chr(10) * 2)[0].split())}\n")
    return 0
