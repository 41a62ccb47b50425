"""Checks data sets, prepares them for training, and lists the operations on images.

  vit data check folder:PATH                             damaged, misnamed and doubled images
  vit data prepare folder:PATH --name=my_photos          a folder (or csv:FILE), as tfds:my_photos
  vit data prepare imagenet2012 --from=DOWNLOADS         ILSVRC2012's tars, as they are
  vit data prepare imagenet21k --from=DOWNLOADS --val=102400
  vit data prepare tfds:my_package.my_module:MyBuilder   a TFDS builder of your own
  vit data prepare tfds:cifar10                          TFDS's own, with vit_jax[tf] installed
  vit data ops                                           what a pipeline can be made of

vit data ACTION --help shows an action's options.
"""

import argparse
import inspect
from collections.abc import Callable

from vit_jax.commands.arguments import JSON, Options
from vit_jax.commands.output import tell
from vit_jax.errors import UserError


def run(options: argparse.Namespace) -> int:
    """Runs the action. Returns the exit code."""
    if options.overrides:
        raise UserError("vit data reads no config: leave --config.KEY=VALUE out")
    _, action = PARTS[options.part]
    return action(options)


def _prepare(options: argparse.Namespace) -> int:
    """Writes a TFDS data set as array_record, ROOT/NAME/VERSION, which is read as tfds:NAME.

    SOURCE is folder:PATH (PATH/SPLIT/CLASS/* or PATH/CLASS/*), csv:FILE, imagenet2012 or
    imagenet21k with --from=FOLDER (their tars, or folders of synsets), or
    tfds:NAME[/CONFIG][:VERSION] or tfds:PACKAGE.MODULE:BUILDER. Images stay the bytes that they
    are. The set appears when it is whole.
    """
    from dataclasses import fields

    from vit_jax.preparing.prepare import Options, prepare

    chosen = {field.name: getattr(options, field.name) for field in fields(Options)}
    prepare(options.source_spec, Options(**chosen))
    return 0


def _check(options: argparse.Namespace) -> int:
    """Reads every example and prints a line for each problem: damaged and empty files, names of
    another format than the bytes, the same bytes twice (with another label, in another split),
    classes without images. With --statistics it also prints the values of each channel, and the
    options to train with: the range of images of more than 8 bits, mean and std. Exits with 0 if
    there is no problem and with 1 if there are some.
    """
    from vit_jax.preparing.check import check, lines

    report = check(options.source, options.split, options.threads, statistics=options.statistics)
    tell(report, "\n".join(lines(report)), options.json)
    return 1 if report["problems"] else 0


def _ops(options: argparse.Namespace) -> int:
    """Lists the operations of pipelines."""
    from vit_jax.data.declared import DECLARED, OPS
    from vit_jax.data.pipeline_text import SHOWN, buckets, decode

    every: dict[str, Callable] = {"decode": decode, "buckets": buckets, **OPS, **SHOWN}
    for name, function in every.items():
        takes = list(inspect.signature(function).parameters.values())[3 if name in OPS else 0 :]
        arguments = ", ".join(
            f"{p.name}={p.default!r}" if p.default is not p.empty else str(p).partition(":")[0]
            for p in takes
        )
        draws = function is buckets or (name in OPS and DECLARED[function].random)
        drawn = "  (draws: not for evaluation)" if draws else ""
        print(f"{name}({arguments}){drawn}")
        print(f"    {' '.join((inspect.getdoc(function) or '').split(chr(10) * 2)[0].split())}\n")
    return 0


PARTS: dict[str, tuple[Options, Callable[[argparse.Namespace], int]]] = {
    "check": ({
        "source": dict(metavar="SOURCE", help="folder:PATH, csv:FILE, tfds:NAME, digits …"),
        "--split": dict(help="one split; all by default"),
        "--threads": dict(type=int, help="number of readers"),
        "--statistics": dict(action="store_true", help="also print the values of each channel, "
                             "and the range, mean and std to train with"),
        **JSON,
    }, _check),
    "prepare": ({
        "source_spec": dict(metavar="SOURCE", help="what to prepare"),
        "--from": dict(dest="source", metavar="FOLDER", help="ImageNet's tars, what a builder "
                       "expects to be downloaded by hand, or the root of a set in TFRecord"),
        "--output": dict(metavar="ROOT", help="TFDS_DATA_DIR or ~/tensorflow_datasets by default"),
        "--name": dict(help="name of the data set; the folder's name by default"),
        "--shards": dict(type=int, help="files per split; of about 1 GiB by default"),
        "--seed": dict(type=int, help="of the order of the examples; 0 by default"),
        "--labels": dict(metavar="MAP", help="which synsets are classes, in which order: 1k, 21k "
                         "(Google's 21,843), 21k-p (11,221), found, or a file with one per line; "
                         "the others are left out and counted"),
        "--val": dict(type=int, metavar="N", help="images of ImageNet-21k to hold out as val; "
                      "102400 or one in a hundred by default"),
        "--threads": dict(type=int, help="number of readers; 8 by default"),
    }, _prepare),
    "ops": ({}, _ops),
}  # fmt: skip
