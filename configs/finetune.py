"""Fine-tuning as the ViT paper did it: `finetune.py:SIZE,DATASET`, from a pre-trained run.

    vit train --config=finetune.py:b16,cifar10 --workdir=DIR --config.init=PRETRAINED_WORKDIR

SIZE: a letter and a patch size, as the checkpoint has them, such as b16.
DATASET: cifar10, cifar100, imagenet2012, oxford_iiit_pet or oxford_flowers102; for a folder of
images give one of them and --config.data.train.source=folder:PATH.

SGD with momentum 0.9, batch 512, clip 1, cosine, no weight decay, 384 px (378
for patches of 14), zero-initialised linear
head (arXiv 2010.11929, section 4.1 and table 4; steps also arXiv 2106.10270, appendix). The rate
is the middle of the paper's grid. Expected of B/16 from ImageNet-21k, by the papers and not by
runs of this code: CIFAR-10 98.95%, CIFAR-100 91.67%, ImageNet-1k 83.97%, Pets 94.43%,
Flowers 99.38%.
"""

from vit_jax.config import base
from vit_jax.errors import UserError, nearest
from vit_jax.models.registry import full_name

# steps, warm-up, lr, training split, evaluation split
DATASETS = {
    "cifar10": (10_000, 500, 0.01, "train", "test"),
    "cifar100": (10_000, 500, 0.01, "train", "test"),
    "imagenet2012": (20_000, 500, 0.03, "train", "validation"),
    "oxford_iiit_pet": (500, 100, 0.01, "train", "test"),
    "oxford_flowers102": (500, 100, 0.01, "train", "test"),
}


def get_config(arguments: str = "b16,cifar10"):
    size, _, dataset = arguments.partition(",")
    dataset = dataset or "cifar10"
    if dataset not in DATASETS:
        raise UserError(f"finetune.py: unknown data set {dataset!r}: {nearest(dataset, DATASETS)}")
    steps, warmup, lr, train_split, eval_split = DATASETS[dataset]

    c = base()
    c.batch_size = 512
    c.total_steps = steps
    c.eval_every_steps = max(1, steps // 10)
    c.init = "PRETRAINED_WORKDIR"  # yours: --config.init=…

    name = full_name(size)
    patch = int(name.split("_")[2].removeprefix("patch"))
    c.model.name = full_name(size, 384 // patch * patch)
    c.model.scan = True
    c.model.dtype = "bfloat16"

    c.data.train.source = f"tfds:{dataset}"
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
