"""Fine-tuning as the ViT paper did it: `finetune.py:MODEL,DATASET`, from weights of any layout.

    vit train --config=finetune.py:b16,cifar10 --workdir=DIR --config.init=ViT-B_16.npz
    vit train --config=finetune.py:b16,folder:PHOTOS --workdir=DIR --config.init=runs/b16

MODEL: as the weights have it (`vit inspect` tells): a letter and a patch size such as b16, a hybrid
such as r50_b16, mixer_b16, bit_50x1, or a name of `list_models`.
DATASET: cifar10, cifar100, imagenet2012, oxford_iiit_pet, oxford_flowers102; or folder:PATH with
PATH/train/CLASS/* and PATH/val/CLASS/*, or csv:FILE, trained as long as the two small ones.
init: a file, a folder, a work folder, an address or a name of `list_pretrained`. What the weights
decide of the arithmetic, and how images are shown, comes with them.

SGD with momentum 0.9, batch 512, clip 1, cosine, no weight decay, 384 px (378 for patches of 14,
224 for Mixers, whose weights are for one grid), zero-initialised linear head (arXiv 2010.11929,
section 4.1 and table 4; steps also arXiv 2106.10270, appendix). The rate is the middle of the
paper's grid, which `vit sweep` tries. Expected of B/16 from ImageNet-21k, by the papers and not by
runs of this code: CIFAR-10 98.95%, CIFAR-100 91.67%, ImageNet-1k 83.97%, Pets 94.43%, Flowers
99.38%.
"""

from vit_jax.config import WEIGHTS_WANTED, base
from vit_jax.errors import UserError, nearest
from vit_jax.models.registry import full_name, takes

SMALL = [0.001, 0.003, 0.01, 0.03]  # rates of table 4
RATES = {"imagenet2012": [0.003, 0.01, 0.03, 0.06]}
# steps, warm-up, lr, training split, evaluation split
DATASETS = {
    "cifar10": (10_000, 500, 0.01, "train", "test"),
    "cifar100": (10_000, 500, 0.01, "train", "test"),
    "imagenet2012": (20_000, 500, 0.03, "train", "validation"),
    "oxford_iiit_pet": (500, 100, 0.01, "train", "test"),
    "oxford_flowers102": (500, 100, 0.01, "train", "test"),
    "folder": (500, 100, 0.01, "train", "val"),
    "csv": (500, 100, 0.01, "train", "val"),
}


def get_config(arguments: str = "b16,cifar10"):
    size, _, source = arguments.partition(",")
    dataset, _, path = (source or "cifar10").partition(":")
    if dataset in ("folder", "csv") and not path:
        what, where = ("folder", "PATH") if dataset == "folder" else ("table", "FILE")
        raise UserError(f"finetune.py needs the {what}: --config=finetune.py:b16,{dataset}:{where}")
    if dataset not in DATASETS:
        raise UserError(f"finetune.py: unknown data set {dataset!r}: {nearest(dataset, DATASETS)}")
    steps, warmup, lr, train_split, eval_split = DATASETS[dataset]

    c = base()
    c.batch_size = 512
    c.total_steps = steps
    c.eval_every_steps = max(1, steps // 10)
    c.init = WEIGHTS_WANTED  # yours: --config.init=…

    c.model.name = full_name(size, 384)
    if takes(c.model.name, "scan"):
        c.model.scan = True
    c.model.dtype = "bfloat16"

    c.data.train.source = source if path else f"tfds:{dataset}"
    c.data.train.split = train_split
    c.data.train.pipeline = "decode|inception_crop|flip_lr"
    c.data.eval.split = eval_split
    c.data.eval.pipeline = "decode|resize"

    c.optimizer.name = "sgd"
    c.optimizer.lr = lr
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_steps = warmup
    return c


def sweep(arguments: str = "b16,cifar10"):
    """The paper's grid of rates for the data set."""
    return {"optimizer.lr": RATES.get(arguments.partition(",")[2], SMALL)}
