"""Transfer in the style of VTAB, a thousand examples a task: `vtab.py:MODEL,TASK`.

    vit train --config=vtab.py:b16,cifar100 --workdir=DIR --config.init=ViT-B_16.npz
    vit train --config=vtab.py:b16,folder:PATH --workdir=DIR --config.init=runs/b16

MODEL: as for finetune.py. TASK: a classification set of TFDS by its name, trained on its first
thousand examples, or folder:PATH or csv:FILE, trained on all there are.

Provenance: arXiv 2010.11929, appendix B.1.1 and table 4: one setting for every task, SGD with
momentum 0.9, 2,500 steps of 512, rate 0.01, cosine after 200 steps, clip 1, 384 px, no
augmentation. The benchmark's own thousand (800 and 200) are others: figures of its 19 tasks are
not to be compared.
"""

from pathlib import Path

from vit_jax import recipe

FINETUNE = Path(__file__).with_name("finetune.py")


def get_config(arguments: str = "b16,cifar100"):
    size, _, task = arguments.partition(",")
    task = task or "cifar100"
    folder = task.startswith(("folder:", "csv:"))
    c = recipe.load(f"{FINETUNE}:{size},{task if folder else 'cifar100'}")
    c.total_steps = 2500
    c.eval_every_steps = 500
    c.schedule.warmup_steps = 200
    c.data.train.source = task if folder else f"tfds:{task}"
    c.data.train.split = "train" if folder else "train[:1000]"
    c.data.train.pipeline = "decode|resize"
    c.optimizer.lr = 0.01
    return c
