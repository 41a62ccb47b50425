"""`vit evaluate --weights=WEIGHTS`: weights of any layout, measured on a labelled data set."""

import argparse
from typing import Any

from ml_collections import ConfigDict

from vit_jax import recipe
from vit_jax.commands.arguments import opened
from vit_jax.commands.evaluate import Measured, judge
from vit_jax.commands.output import say
from vit_jax.config import base
from vit_jax.errors import UserError, printable
from vit_jax.user_code import only

EXAMPLES = 3  # classes in the line about the match
OF_RUN = ("eval_batch_size", "evaluators")  # keys that are not about the weights


def measured_weights(options: argparse.Namespace) -> Measured:
    """Measures the weights with the preprocessing that they state. The classes of the data are
    found among their outputs, by name, synset or number, and how is said."""
    from vit_jax.data.matched import Matched, match
    from vit_jax.data.source import Facts
    from vit_jax.data.sources import open_source, split_names
    from vit_jax.pretrained.load import as_shown, fill
    from vit_jax.training.resolve import Data
    from vit_jax.training.run import run_of

    options = argparse.Namespace(**vars(options) | {"layout": None})
    overrides = {k: v for k, v in options.overrides.items() if k not in OF_RUN}
    with only(None, trust_files=options.trust_code):
        weights = opened(argparse.Namespace(**vars(options) | {"overrides": overrides}))
    model = as_shown(weights)
    if not model.config.num_classes:
        raise UserError(f"{printable(weights.path)} has no head: it predicts no classes")
    names = [*(weights.classes or ())]
    names += map(str, range(len(names), model.config.num_classes))
    splits = split_names(options.data)
    split = options.split or ("val" if "val" in splits else splits[0])
    source = open_source(options.data, split)
    outputs, how = match(source.classes, names)
    shown = ", ".join(
        f"{printable(name)} = {printable(names[number])}"
        for name, number in list(zip(source.classes, outputs, strict=True))[:EXAMPLES]
    )
    say(f"classes matched by {how}: {len(outputs)} of {len(names):,} outputs, such as {shown}")

    def data(c: ConfigDict) -> Data:
        evaluation = Matched(source, outputs, names)
        return Data(Facts(1, len(names), model.config.channels), names, evaluation=evaluation)

    config = _config(model, options.data, split)
    recipe.override(config, {k: v for k, v in options.overrides.items() if k in OF_RUN})
    with only(None):
        run = run_of(config, [], data=data)
    params, report = fill(weights, run.model, run.shardings["params"])
    for line in report.warnings:
        say(f"warning: {line}")
    return judge(options, weights.path, run, params, {"classes_matched_by": how})


def _config(model: Any, source: str, split: str) -> ConfigDict:
    """The config of an evaluation alone, of a model as its weights have it."""
    import jax

    config = base(model.name, model.family.task)
    for field, value in vars(model.config).items():
        if field in config.model:
            config.model[field] = value
    config.data.train.source, config.data.train.pipeline = source, "decode|resize"
    config.data.eval.update({
        "source": source, "split": split,
        "pipeline": model.data_config.pipeline(model.config.image_size),
    })  # fmt: skip
    config.data.mean, config.data.std = model.data_config.mean, model.data_config.std
    config.total_steps, config.batch_size = 1, 8 * jax.device_count()
    config.eval_batch_size = 32 * jax.device_count()
    return config
