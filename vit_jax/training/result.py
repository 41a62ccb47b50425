"""What a finished run leaves: `result.json` for programs, `model_card.md` for people."""

import html
import re
from pathlib import Path
from typing import Any

import flax
import jax
import optax

import vit_jax
from vit_jax.config import config_hash, flat
from vit_jax.errors import printable
from vit_jax.files import write_json, write_text
from vit_jax.models.family import Config
from vit_jax.parallel.runtime import process
from vit_jax.ranking import ranked_by
from vit_jax.training.progress import Progress
from vit_jax.training.run import Run
from vit_jax.training.start import Start


def write_result(workdir: Path, run: Run, start: Start, progress: Progress) -> dict[str, Any]:
    """Writes `result.json` and `model_card.md`. Returns the content of `result.json`: the task's
    best metric and those that it states, steps, times, and all final metrics. `ended` says why
    a run ended before its length."""
    c = run.config
    steps, why = progress.ended or (c.total_steps, "")
    trained, evaluated = progress.last("loss"), progress.evaluated(steps)
    examples = steps * c.batch_size
    metrics = dict.fromkeys((ranked_by(c.best)[0], *run.task.stated))
    result = {
        **{metric: evaluated.get(f"eval/{c.data.eval.split}/{metric}") for metric in metrics},
        "steps": steps,
        "examples_seen": examples,
        "train_seconds": round(trained.get("seconds", 0.0), 3),
        "images_per_second": round(examples / max(trained.get("seconds", 0.0), 1e-9), 2),
        "num_params": run.model.num_params,
        "config_hash": config_hash(flat(c)),
    }
    final = {k: v for row in (trained, evaluated) for k, v in row.items() if k not in result}
    final |= {"ended": why} if why else {}
    final["goodput"] = {part: round(s, 3) for part, s in progress.ledger.seconds.items()}
    if process() == 0:
        write_json(workdir / "result.json", result | final)
        write_text(workdir / "model_card.md", model_card(run, start.origin, result | final))
    return result | final


SIZES = {
    "hidden_size": "width {}", "num_layers": "{} layers", "num_heads": "{} heads",
    "mlp_dim": "MLP {}", "patch_size": "patch {}", "resnet_layers": "ResNet of {} units",
}  # fmt: skip


def _sizes(config: Config) -> str:
    sizes = {field: getattr(config, field, None) for field in SIZES}
    return ", ".join(SIZES[field].format(n) for field, n in sizes.items() if n is not None)


def _markdown(name: str) -> str:
    """A name with Markdown and HTML escaped, so that it is shown literally."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(printable(name), quote=False))


def _code(text: str) -> str:
    """A text as Markdown code, between more backticks than it holds in a row."""
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{ticks}{space}{printable(text)}{space}{ticks}"


def model_card(run: Run, origin: str, result: dict[str, Any]) -> str:
    """The model card in Markdown: the model, its data, its training and its results."""
    c, m = run.config, run.model.config
    split = c.data.eval.split
    height, width = m.image_size
    classes = {
        "Classes": f"{len(run.classes):,}: {', '.join(map(_markdown, run.classes[:10]))}"
        + (", … (`classes.json`)" if len(run.classes) > 10 else "")
    }
    facts = {
        "Model": f"{run.model.name}, {_sizes(m)}; {result['num_params']:,} parameters",
        "Input": f"{height}×{width} px, {m.channels} channels, pixels in 0 … 1 less "
        f"{c.data.mean}, over {c.data.std}",
        **(classes if run.classes else {}),
        "Training data": f"{_code(c.data.train.source)} {_markdown(c.data.train.split)}, "
        f"{run.train_examples:,} images, {_code(c.data.train.pipeline)}",
        "Started from": origin if origin == "scratch" else _code(origin),
        "Training": f"{result['steps']:,} steps of {c.batch_size} images, {c.optimizer.name}, rate "
        f"{c.optimizer.lr:g} ({c.schedule.name}, {c.schedule.warmup_steps:,} steps of warm-up), "
        f"seed {c.seed}",
        "Time": f"{result['train_seconds']:.0f} s of training on "
        f"{run.mesh.size} × {run.mesh.devices.flat[0].device_kind}",
    }
    prefix = f"eval/{split}/"
    measured = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
    if measured:
        facts["Held out"] = (
            f"{run.task.in_words(measured)} on {measured['examples']:,} images of "
            f"{_code(c.data.eval.source or c.data.train.source)} {_markdown(split)}"
        )
    facts["Made with"] = ", ".join(
        f"{package.__name__} {package.__version__}" for package in (vit_jax, jax, flax, optax)
    )
    lines = [f"- **{name}**: {text}" for name, text in facts.items()]
    return "\n".join(
        [f"# {run.model.name}", "", *lines, "", f"Config: {result['config_hash']}", ""]
    )
