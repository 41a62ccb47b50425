"""Compares architectures: every model at every budget with every seed, trained by one recipe.

vit study --config=study.py:vit+bit+sasa,folder:PATH --workdir=DIR --epochs=5,10,20 --seeds=2
vit study --config=study.py:vit+resnet,digits --workdir=DIR --flops=1e12,3e12
vit study … --dry-run                                      # models, compute and hours, no training
vit study … --topology=gpu:h100x1      # what the same models would do there, as `vit plan` says
vit study … --pixels=32,64,128         # then also speed and memory of each model at these sides
vit study … --parallel=8 -- slurm --partition=gpu --devices=1     # options of `vit launch`

DIR holds the trials, study.csv and study.html: results against training FLOPs and seconds, sizes,
speeds, and how much compute each model needs for the same result. The recipe's sweep() lists the
models; the first one is the reference. The same command continues a study that was stopped.
"""

import argparse
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax.commands import sweep
from vit_jax.commands.arguments import CONFIG, Options, configured
from vit_jax.commands.output import say
from vit_jax.config import DURATIONS
from vit_jax.errors import UserError
from vit_jax.ranking import ranked_by

OPTIONS: Options = CONFIG | {
    "--workdir": dict(required=True, metavar="DIR"),
    "--epochs": dict(metavar="N,N,…", help="budgets in passes over the training data"),
    "--flops": dict(metavar="N,N,…", help="budgets in training FLOPs, the same for every model"),
    "--seeds": dict(type=int, default=1, metavar="N", help="runs of each model and budget (1)"),
    "--parallel": dict(type=int, default=1, metavar="N", help="trials at a time"),
    "--pixels": dict(metavar="N,N,…", help="sides of images at which speed and memory are "
                     "measured, on this machine, after the trials"),
    "--topology": dict(metavar="NAME", help="plan each model's step for these devices, train "
                       "nothing: a topology of `vit plan`"),
    "--dry-run": dict(action="store_true", help="print models, compute and hours alone"),
}  # fmt: skip
COMMANDS = sweep.COMMANDS  # back ends after `--`
PIXELS = "pixels.csv"
BUDGETS = {"epochs": "epochs", "flops": "examples"}  # option -> unit of a trial's length


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    sweep.check_installed("study")
    from vit_jax import recipe
    from vit_jax.sweeping import comparison, space, study
    from vit_jax.tasks import find_task
    from vit_jax.training.resolve import known

    config, named = configured(options)
    sides = _sides(options.pixels)
    for option in ("seeds", "parallel"):
        if getattr(options, option) < 1:
            raise UserError(f"--{option} is 1 or more, not {getattr(options, option)}")
    if not config.data.eval.split:
        raise UserError("a study compares by an evaluation: set data.eval.split")
    if config.stop_after:
        raise UserError("a study compares at equal compute: leave stop_after out, which ends runs")
    models = recipe.sweep(options.config)
    if not isinstance(models, list) or not all("model.name" in point for point in models):
        raise UserError(
            f"sweep() of {options.config} lists no models: dictionaries of model.name …"
        )
    unit, budgets = _budgets(options, all("total_epochs" in point for point in models))
    for key in ("seed", *DURATIONS["total"], *(key for point in models for key in point)):
        if key in named:
            raise UserError(f"{key} is what a study varies: leave --config.{key} out")
    sizes, examples, share = _sizes(
        config, named, models, reads=not (options.dry_run or options.topology)
    )
    # A user's own warm-up is the same for all.
    warmup = None if set(named) & set(DURATIONS["warm-up"]) else share
    points = [
        {**point, **_length(unit, budget, sizes[point["model.name"]], warmup), "seed": seed}
        for budget in budgets for seed in range(options.seeds) for point in models
    ]  # fmt: skip
    for side in sides:  # what a model cannot take is refused before the first trial
        for point in models:
            _resolved(config, named, point | {"model.image_size": side}, known(config))
    flops = _tell(models, sizes, unit, budgets, examples, options.seeds)
    if options.topology:
        print(f"\n{_plans(options.topology, config, named, models)}")
        return 0
    if options.dry_run:
        speed = _products_per_second()
        print(f"at least {flops / speed / 3600:.2g} hours at this machine's {speed / 1e9:,.0f} "
              "GFLOP/s of matrix products")  # fmt: skip
        return 0
    searched = space.listed(points, config)
    metric, best_of = ranked_by(config.best or find_task(config).best)
    search = study.Search(searched, "grid", f"eval/{config.data.eval.split}/{metric}", len(points),
                    low=best_of is min)  # fmt: skip
    folder = Path(options.workdir).expanduser().absolute()

    def write(begun: Any, folder: Path, best: ConfigDict | None) -> list[str]:
        from vit_jax.benching import pixels

        more = pixels.parts(pixels.read(folder / PIXELS))
        return comparison.write(begun, folder, best, sizes, more)

    done, names = sweep.carry_out(options, folder.name, folder, config, search, write)
    if sides:
        from vit_jax.benching import pixels

        configs = {point["model.name"]: space.checked(config, point) for point in models}
        pixels.measure(configs, sides, folder / PIXELS, say)
        names = [PIXELS, *write(study.load(folder.name, None, folder), folder, None)]
    print(f"done: {len(done)} trials; {', '.join(names)} in {folder}")
    return 0


def _budgets(options: argparse.Namespace, listed: bool) -> tuple[str, list[float]]:
    """The unit of the budgets, and the budgets in ascending order. Where the recipe lists the
    length of each trial, it is "own", and there is one. Raises UserError."""
    given = [unit for unit in BUDGETS if getattr(options, unit)]
    if listed and given:
        raise UserError(f"the recipe lists total_epochs of each trial: leave --{given[0]} out")
    if listed:
        return "own", [1.0]
    if len(given) != 1:
        raise UserError("vit study needs budgets: --epochs=5,10,20 or --flops=1e15,3e15")
    text = getattr(options, given[0])
    try:
        budgets = sorted({float(part) for part in text.split(",")})
    except ValueError:
        budgets = []
    if not budgets or not 0 < budgets[0] <= budgets[-1] < float("inf"):
        raise UserError(f"--{given[0]}={text}: numbers above 0, such as 5,10,20")
    return given[0], budgets


def _sides(text: str | None) -> list[int]:
    """The sides of `--pixels`, in ascending order. Raises UserError."""
    if text is None:
        return []
    sides = sorted({int(part) for part in text.split(",") if part.isdecimal()})
    if not sides or sides[0] < 1 or len(sides) < len(text.split(",")):
        raise UserError(f"--pixels={text}: different sides of images in pixels, such as 32,64,128")
    return sides


def _sizes(
    config: ConfigDict, named: list[str], models: list[dict[str, Any]], *, reads: bool
) -> tuple[dict[str, Any], int, float]:
    """Parameters and multiply-adds of each model on the study's data, the number of training
    examples, and the share of a run that warms up. Without `reads`, the data need not be here.
    Raises UserError for the first model that cannot work, before any trial."""
    from vit_jax.sweeping.comparison import Size
    from vit_jax.training.resolve import known, opened

    data = opened(config) if reads else known(config)
    sizes = {}
    for point in models:
        resolved = _resolved(config, named, point, data)
        sizes[point["model.name"]] = Size(resolved.model.num_params, resolved.model.macs)
    final = resolved.config  # of the last model: all have one length
    share = min(1.0, final.schedule.warmup_steps / final.total_steps)
    return sizes, data.facts.num_examples, share


def _resolved(config: ConfigDict, named: list[str], point: dict[str, Any], data: Any) -> Any:
    """A model's run on one device, which is not asked for: the trials need this machine's. Raises
    UserError, with the model's name, if it cannot work."""
    from vit_jax.sweeping import space
    from vit_jax.training.resolve import resolve

    try:
        return resolve(space.checked(config, point), [*named, *point], 1, data=lambda _: data)
    except UserError as error:
        raise UserError(f"{point['model.name']}: {error}") from error


def _length(unit: str, budget: float, size: Any, warmup: float | None) -> dict[str, Any]:
    """The keys that give a trial of a model its length, and a warm-up of that share of it."""
    if unit == "own":
        return {}
    length = budget if unit == "epochs" else max(1, round(budget / (6 * size.macs)))
    keys = {f"total_{BUDGETS[unit]}": length}
    if warmup is not None:
        share = warmup * length
        keys[f"schedule.warmup_{BUDGETS[unit]}"] = share if unit == "epochs" else round(share)
    return keys


def _tell(
    models: list[dict[str, Any]], sizes: dict[str, Any], unit: str, budgets: list[float],
    examples: int, seeds: int,
) -> float:  # fmt: skip
    """Prints the models and their compute. Returns the FLOPs of all trials together."""
    from vit_jax import pages

    own = unit == "own"
    heads = ["FLOPs"] if own else [f"FLOPs, {unit} {budget:g}" for budget in budgets]
    table = [["model", "parameters", "multiply-adds", *heads]]
    total = 0.0
    for point in models:
        size = sizes[point["model.name"]]
        epoch = 6.0 * size.macs * examples
        flops = {
            "own": [epoch * point.get("total_epochs", 0.0)], "flops": budgets,
            "epochs": [epoch * budget for budget in budgets],
        }[unit]  # fmt: skip
        total += seeds * sum(flops)
        table.append([
            point["model.name"], f"{size.params:,}", f"{size.macs:,}", *(f"{f:.3g}" for f in flops)
        ])  # fmt: skip
    print(pages.aligned(table))
    lengths = "each of its own length" if own else f"{len(budgets)} budgets"
    print(f"{len(models)} models, {lengths}, {seeds} seeds: {total:.3g} FLOPs")
    return total


def _plans(
    topology: str, config: ConfigDict, named: list[str], models: list[dict[str, Any]]
) -> str:
    """A table of each model's training step on devices that need not be here, at equal compute."""
    from vit_jax import pages
    from vit_jax.planning import shares, topologies
    from vit_jax.planning.plan import make_plan
    from vit_jax.sweeping import space

    target = topologies.find(topology, 1)
    if target.chip is None:
        raise UserError("--topology: nothing is stated of a CPU's speed: name a GPU or a TPU")
    table = [["model", "batch", "how", "images/s, at most", "MFU, at most", "GB moved per PFLOP",
              "MiB of temporaries an image", "time in products"]]  # fmt: skip
    for point in {point["model.name"]: point for point in models}.values():
        say(f"{point['model.name']} on {target.name} …")
        plan = make_plan(space.checked(config, point), [*named, *point], target)
        batch, kinds = plan.run.config.batch_size, plan.shares
        whole = sum(share.seconds for share in kinds.values())
        moved = plan.costs.bytes * target.count / plan.analytic_flops * 1e15
        table.append([
            point["model.name"], f"{batch:,}", plan.how, f"{plan.images_per_second:,.0f}",
            f"{plan.mfu_ceiling:.1%}", f"{moved / 1e9:,.0f}",
            f"{plan.memory.temporaries * target.count / batch / 2**20:,.2f}",
            f"{kinds[shares.PRODUCTS].seconds / whole:.0%}" if shares.PRODUCTS in kinds else "",
        ])  # fmt: skip
    return pages.aligned(table)


def _products_per_second() -> float:
    """What this machine reaches in products of matrices, in float32."""
    import jax

    from vit_jax.benching.machine import matmul

    side, flops = matmul(jax.devices()[0], "float32")
    side()
    return flops / min(side() for _ in range(3))
