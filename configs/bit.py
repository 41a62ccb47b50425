"""BiT ResNets, the convolutional counterpart: `bit.py:MODEL,DATASET`.

    vit train --config=bit.py:50x1,imagenet2012 --workdir=DIR

MODEL: 50x1, 50x3, 101x1, 101x3, 152x2 or 152x4 (depth x width).
DATASET: imagenet2012 or imagenet21k.

Provenance: arXiv 1912.11370, section 3.2, with the reference code's bit_i1k and bit_i21k: batch
4096, 90 epochs, SGD with momentum 0.9, rates that grow with the batch (0.1 or 0.03 for 256 images),
decay of kernels 0.001 times the rate, cosine, clip 1. No
figure is promised: the paper's own are those of a step-wise schedule.
"""

from vit_jax.config import base
from vit_jax.errors import UserError, nearest
from vit_jax.models.registry import full_name

# rate for 256 images, warm-up, evaluation split, loss, head bias
DATASETS = {
    "imagenet2012": (0.1, 1000, "validation", "softmax", 0.0),
    "imagenet21k": (0.03, 5000, "val", "sigmoid", -10.0),
}


def get_config(arguments: str = "50x1,imagenet2012"):
    size, _, dataset = arguments.partition(",")
    dataset = dataset or "imagenet2012"
    if dataset not in DATASETS:
        raise UserError(f"bit.py: unknown data set {dataset!r}: {nearest(dataset, DATASETS)}")
    lr, warmup, held_out, loss, head_bias = DATASETS[dataset]

    c = base()
    c.batch_size = 4096
    c.total_epochs = 90.0
    c.eval_every_epochs = 3.0
    c.log_every_steps = 100

    c.model.name = full_name(f"bit_{size}")
    c.model.head_bias = head_bias
    c.model.dtype = "bfloat16"

    c.data.train.source = f"tfds:{dataset}"
    c.data.train.split = "train[:99%]" if dataset == "imagenet2012" else "train"
    c.data.eval.split = held_out

    c.optimizer.name = "sgd"
    c.optimizer.lr, c.optimizer.lr_per = lr, 256
    c.optimizer.weight_decay = 1e-3
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_steps = warmup
    c.loss.name = loss
    return c
