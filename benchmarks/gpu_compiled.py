"""Training steps as the CUDA compiler makes them for GPUs that are not here: memory, calls of
libraries, traffic, collectives. No time is measured, because nothing runs.

    python benchmarks/gpu_compiled.py [--only=TEXT] [--gpus=h100] [--json=FILE]

Needs the CUDA wheels (pip install -e .[cuda]) and no GPU. Each recipe is compiled for one GPU and
for eight, with cuDNN's attention; some also with XLA's.
"""

import sys
from pathlib import Path
from typing import Any

from vit_jax import process

process.prepare("plan")  # before JAX is imported: it is to look for no GPU

from vit_jax import recipe  # noqa: E402
from vit_jax.benching import report  # noqa: E402
from vit_jax.planning import topologies  # noqa: E402
from vit_jax.planning.plan import make_plan  # noqa: E402

RESULT = Path(__file__).parent / "results" / "gpu_compiled.json"
PLAIN = {"model.scan": "False", "model.remat": "none", "model.dropout": "0.0"}
# Name -> recipe, images a GPU, overrides.
CASES: dict[str, tuple[str, int, dict[str, str]]] = {
    "Ti/16 at 224": ("pretrain.py:ti16,imagenet2012", 512, {}),
    "S/16 at 224": ("pretrain.py:s16,imagenet2012", 256, {}),
    "S/16 at 384": ("pretrain.py:s16,imagenet2012", 128, {"model.image_size": "384"}),
    "B/16 at 224": ("pretrain.py:b16,imagenet2012", 256, {}),
    "B/16 at 384": ("pretrain.py:b16,imagenet2012", 128, {"model.image_size": "384"}),
    "L/16 at 224": ("pretrain.py:l16,imagenet2012", 128, {}),
    "L/16 at 384": ("pretrain.py:l16,imagenet2012", 64, {"model.image_size": "384"}),
    "H/14 at 224": ("pretrain.py:h14,imagenet21k", 64, {}),
    "g/14 at 224": ("pretrain.py:g14,jft300m", 32, {}),
    "DINOv2 L/14, registers, at 224": (
        "finetune.py:vit_large_patch14_reg4_dinov2,imagenet2012", 64, {"model.image_size": "224"},
    ),
    "DeiT B/16, distilled": ("finetune.py:deit_base_distilled_patch16_224,imagenet2012", 128, {}),
    "SigLIP B/16, pooled": ("finetune.py:vit_base_patch16_siglip_224,imagenet2012", 128, {}),
    "B/16, layers unrolled": ("pretrain.py:b16,imagenet2012", 256, PLAIN),
    "L/16, layers unrolled": ("pretrain.py:l16,imagenet2012", 128, PLAIN),
}  # fmt: skip
# Cases that XLA's attention stands beside, and cases for one GPU alone.
BOTH = ("B/16 at 224", "L/16 at 224", "B/16, layers unrolled", "L/16, layers unrolled")
ONE = ("B/16, layers unrolled", "L/16, layers unrolled")


def planned(name: str, kind: str, count: int, attention: str = "auto") -> dict[str, Any]:
    """One row: a case compiled for `count` GPUs of a kind in a host."""
    source, images, overrides = CASES[name]
    config = recipe.load(source)
    changes = overrides | {
        "batch_size": str(images * count), "microbatch": "None", "model.attention": attention,
        "init": "None", "mesh.data": "1", "mesh.fsdp": str(count),
    }  # fmt: skip
    named = recipe.override(config, changes)
    plan = make_plan(config, named, topologies.find(f"gpu:{kind}x{count}"))
    if plan.how != "compiled":
        sys.exit(f"gpu_compiled: {name} is {plan.how}: {plan.target.missing}")
    attention = plan.run.model.config.attention
    return {
        "case": name, "side": f"{kind}x{count}, {attention}", "gpus": f"{kind}x{count}",
        "attention": attention, "images_a_gpu": images,
        "layers": plan.run.model.config.num_layers, "compiled_bytes": plan.memory.total,
        "arguments_mib": round(plan.memory.arguments / 2**20, 1),
        "temporaries_mib": round(plan.memory.temporaries / 2**20, 1),
        "flops": plan.costs.flops, "bytes": plan.costs.bytes, "calls": plan.costs.calls,
        "shares": {kind: share._asdict() for kind, share in plan.shares.items()},
        "collectives": {
            f"{one.kind} over {one.axis}": one.bytes for one in plan.costs.collectives
        },
    }  # fmt: skip


def main() -> None:
    """Compiles every case for one GPU and for eight."""
    parser = report.parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    parser.add_argument("--gpus", default="h100", metavar="KIND", help="a kind of GPU (h100)")
    options = parser.parse_args()
    rows = []
    for name in CASES:
        if options.only not in name:
            continue
        sides = [(1, "auto")] + [(1, "xla")] * (name in BOTH) + [(8, "auto")] * (name not in ONE)
        for count, attention in sides[: 1 if options.quick else None]:
            rows.append(planned(name, options.gpus, count, attention))
            print(told(rows[-1]), flush=True)
    report.write(report.figures("gpu_compiled", rows), options.json)


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    calls = " + ".join(
        str(row["calls"].get(name, 0)) for name in ("cuDNN attention", "cuDNN attention, backward")
    )
    return (
        f"{row['case']:32} {row['gpus']:7} {row['attention']:5} {row['temporaries_mib']:9,.0f} MiB "
        f"of temporaries, {row['bytes'] / 1e9:6.1f} GB moved, {row['flops'] / 1e12:6.1f} TFLOP, "
        f"{calls} calls of attention"
    )


if __name__ == "__main__":
    main()
