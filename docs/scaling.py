"""Makes docs/scaling.md: plans of ViT-Ti … ViT-G on 1 to 4,096 TPUs and on 1 to 512 GPUs.

    python docs/scaling.py          # plans what docs/results/scaling.jsonl lacks, writes the page
    python docs/scaling.py --page   # writes the page alone

Every case is `vit plan` in a process of its own, compiled for its TPU slices or GPUs; as many at a
time as there are cores, each of which takes a minute or two. The compilers come with
`pip install -e .[tpu,cuda]`. PYTHON names the interpreter that has them, this one by default.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWS, PAGE = HERE / "results" / "scaling.jsonl", HERE / "scaling.md"
V5E = {1: ("1x1", 1), 16: ("4x4", 1), 256: ("16x16", 1), 1024: ("16x16", 4), 4096: ("16x16", 16)}

# What a table shows: (model, chips, batch, mesh as data x fsdp x tensor, microbatch, remat).
# Slices are joined by `data` alone.
MODELS = [
    ("ti16", 256, 4096, (256, 1, 1), 4096, "none"),
    ("s16", 256, 4096, (256, 1, 1), 4096, "none"),
    ("b16", 256, 4096, (256, 1, 1), 4096, "none"),
    ("l16", 256, 4096, (16, 16, 1), 4096, "dots"),
    ("h14", 256, 4096, (16, 16, 1), 4096, "dots"),
    ("g14", 256, 4096, (16, 16, 1), 4096, "dots"),
    ("G14", 256, 4096, (16, 16, 1), 4096, "full"),
]
WEAK = [  # 16 images a chip
    ("h14", 1, 16, (1, 1, 1), 16, "full"),
    ("h14", 16, 256, (1, 16, 1), 256, "dots"),
    ("h14", 256, 4096, (16, 16, 1), 4096, "dots"),
    ("h14", 1024, 16384, (64, 16, 1), 16384, "dots"),
    ("h14", 4096, 65536, (256, 16, 1), 65536, "dots"),
]
STRONG = [  # 4,096 images
    ("h14", 16, 4096, (1, 16, 1), 256, "dots"),
    ("h14", 256, 4096, (16, 16, 1), 4096, "dots"),
    ("h14", 1024, 4096, (64, 16, 1), 4096, "dots"),
    ("h14", 4096, 4096, (256, 16, 1), 4096, "none"),
]
MESHES = [
    ("h14", 256, 4096, (256, 1, 1), 4096, "dots"),
    ("h14", 256, 4096, (64, 4, 1), 4096, "dots"),
    ("h14", 256, 4096, (16, 16, 1), 4096, "dots"),
    ("h14", 256, 4096, (1, 256, 1), 4096, "dots"),
    ("h14", 256, 4096, (16, 4, 4), 4096, "dots"),
    ("h14", 256, 256, (16, 16, 1), 256, "none"),
    ("h14", 256, 256, (1, 256, 1), 256, "none"),
    ("h14", 256, 256, (16, 4, 4), 256, "none"),
]
# GPUs of two kinds: (…, kind). Eight in a host; fsdp inside a host, data across hosts.
A_HOST = 8
ON_GPUS = [
    (*case, kind)
    for kind in ("h100", "a100")
    for case in (
        ("ti16", 8, 4096, (8, 1, 1), 4096, "none"),
        ("s16", 8, 2048, (8, 1, 1), 2048, "none"),
        ("b16", 8, 2048, (8, 1, 1), 2048, "none"),
        ("l16", 8, 1024, (1, 8, 1), 1024, "dots"),
        ("h14", 8, 512, (1, 8, 1), 512, "dots"),
        ("g14", 8, 256, (1, 8, 1), 256, "dots"),
    )
]
WEAK_ON_GPUS = [  # 64 images a GPU
    (*case, kind)
    for kind in ("h100", "a100")
    for case in (
        ("h14", 1, 64, (1, 1, 1), 64, "dots"),
        ("h14", 8, 512, (1, 8, 1), 512, "dots"),
        ("h14", 64, 4096, (8, 8, 1), 4096, "dots"),
        ("h14", 512, 32768, (64, 8, 1), 32768, "dots"),
    )
]
TABLES = {
    "Models": ("Batch 4,096 on 256 chips.", MODELS),
    "Weak scaling": ("ViT-H/14 with 16 images a chip.", WEAK),
    "Strong scaling": ("ViT-H/14 with 4,096 images in all.", STRONG),
    "Meshes": ("ViT-H/14 on 256 chips: which mesh wins where.", MESHES),
}
GPU_TABLES = {
    "A host of eight": ("H100 and A100 of 80 GB.", ON_GPUS),
    "Many hosts": ("ViT-H/14 with 64 images a GPU.", WEAK_ON_GPUS),
}


def name_of(case: tuple) -> str:
    model, chips, batch, mesh, microbatch, remat, *kind = case
    sizes = "x".join(map(str, mesh))
    name = f"{model} chips={chips} batch={batch} mesh={sizes} microbatch={microbatch} {remat}"
    return " ".join([name, *kind])


def plan(case: tuple) -> dict:
    """What `vit plan --json` says of a case, and how long it took."""
    model, chips, batch, (data, fsdp, tensor), microbatch, remat, *kind = case
    if kind:
        a_host = min(chips, A_HOST)
        topology, slices = f"gpu:{kind[0]}x{a_host}x{chips // a_host}", 1
    else:
        shape, slices = V5E[chips]
        topology = f"v5e:{shape}"
    python, began = os.environ.get("PYTHON", sys.executable), time.monotonic()
    done = subprocess.run(
        [python, "-m", "vit_jax.cli", "plan", f"--config=pretrain.py:{model},jft300m",
         f"--topology={topology}", f"--slices={slices}", f"--config.batch_size={batch}",
         f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}",
         f"--config.mesh.tensor={tensor}", f"--config.microbatch={microbatch}",
         f"--config.model.remat={remat}", "--config.data.eval.split=", "--json"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode not in (0, 2) or not done.stdout:
        raise SystemExit(f"{name_of(case)}: {done.stderr[-2000:]}")
    return {"case": name_of(case), "seconds": time.monotonic() - began, **json.loads(done.stdout)}


def known() -> dict[str, dict]:
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return {row["case"]: row for row in map(json.loads, lines)}


def row_of(found: dict) -> str:
    """A line of a table."""
    gib, bounds = 2**30, found["roofline"]
    memory, traffic = found["bytes_per_chip"], {}
    for one in found["collectives"]:
        kind = "slices" if one["axis"] == "slices" else one["kind"]
        traffic[kind] = traffic.get(kind, 0) + one["bytes"] / 1e9
    mesh = " × ".join(str(size) for size in found["mesh"].values())
    parts = [
        found["model"].removeprefix("vit_"), f"{found['chips']:,}", f"{found['batch_size']:,}",
        mesh, found["remat"], f"{memory['total'] / gib:.1f}" + ("" if found["fits"] else " ✗"),
        *(f"{traffic.get(kind, 0):.2f}" for kind in KINDS),
        *(f"{1e3 * bounds[part]:.0f}" for part in ("compute_s", "memory_s", "network_s")),
        f"{bounds['images_per_second']:,.0f}", f"{bounds['mfu_ceiling']:.0%}",
        "" if found["how"] == "compiled" else "by formula",
    ]  # fmt: skip
    return "| " + " | ".join(parts) + " |"


KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "slices")
HEAD = (
    "model", "chips", "batch", "data × fsdp × tensor", "remat", "GiB a chip", "gathered, GB",
    "scattered, GB", "reduced, GB", "passed on, GB", "between slices, GB", "compute, ms",
    "memory, ms", "network, ms", "images/s ≤", "MFU ≤", "",
)  # fmt: skip


def flops(rows: dict[str, dict]) -> str:
    """The table of the models' FLOPs: by formula and as compiled."""
    lines = [
        "| model | 6 × multiply-accumulates, GFLOP an image | as compiled | ratio |",
        "|---" * 4 + "|",
    ]
    for found in (rows[name_of(case)] for case in MODELS if name_of(case) in rows):
        told = found["flops_per_step"]
        if told["compiled"] is None:
            continue
        wanted, did = told["analytic"], told["compiled"] - told["recomputed"]
        each = 1e9 * found["batch_size"]
        name = found["model"].removeprefix("vit_")
        lines.append(f"| {name} | {wanted / each:,.1f} | {did / each:,.1f} | {did / wanted:.3f} |")
    return "\n".join(lines)


def page(rows: dict[str, dict]) -> str:
    """The page, of the cases that were planned."""
    parts = [
        "# Scaling",
        "Made by `python docs/scaling.py`, from plans of TPU v5e slices (15.75 GiB, 197 "
        "TFLOP/s, 810 GB/s, rings of 90 GB/s; several slices joined at 3.1 GB/s a chip). Each "
        "line is the real training step, compiled for those chips by the TPU compiler, no TPU "
        "being there; none was run. Memory is the compiler's. FLOPs, bytes and collectives are "
        "read from the compiled program with the passes of its loops counted; times are what "
        "they take at the stated peaks, none overlapped with itself. So images/s and MFU are "
        "ceilings, and memory time, which counts every operand of every instruction, is the "
        "least certain. ✗: more than the chip has; then all but memory is by formula.",
    ]  # fmt: skip
    parts += tables(TABLES, rows)
    parts += [
        "## FLOPs",
        "Of the models above, products that rematerialisation repeats apart.",
        flops(rows),
    ]
    parts.append((HERE / "scaling_notes.md").read_text(encoding="utf-8").strip())
    parts += [
        "# GPUs",
        "The same, compiled for GPUs by XLA's CUDA compiler, no GPU being there. **Compiled, never "
        "run**: kernels are not tuned by measuring them, and all products are cuBLAS's. NVLink "
        "joins the eight GPUs of a host (450 GB/s one way on an H100, 300 on an A100), an adapter "
        "a GPU joins hosts (50 and 25 GB/s). Attention is cuDNN's.",
        *tables(GPU_TABLES, rows),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def tables(named: dict[str, tuple], rows: dict[str, dict]) -> list[str]:
    """Tables with their titles, of the cases that were planned."""
    parts = []
    for title, (what, cases) in named.items():
        gpus = any(len(case) > 6 for case in cases)
        lines = [
            ("| " + case[6] + " " if gpus else "") + row_of(rows[name_of(case)])
            for case in cases if name_of(case) in rows
        ]  # fmt: skip
        head = ("GPU", *HEAD) if gpus else HEAD
        table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines]
        parts += [f"## {title}", what, "\n".join(table)]
    return parts


def main() -> None:
    rows = known()
    if "--page" not in sys.argv:
        every = (TABLES | GPU_TABLES).values()
        cases = dict.fromkeys(case for _, cases in every for case in cases)
        lacking = [case for case in cases if name_of(case) not in rows]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(plan, lacking):
                rows[found["case"]] = found
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(f"{found['case']}: {found['how']}, {found['seconds']:.0f} s", flush=True)
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
