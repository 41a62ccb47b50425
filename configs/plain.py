"""The plain ViT-S/16 on ImageNet-1k, a strong and short baseline: `plain.py:EPOCHS`.

    vit train --config=plain.py:90 --workdir=DIR

EPOCHS: 90, 150 or 300 (or another number).

Provenance: arXiv 2205.01580 ("Better plain ViT baselines") and the reference code's vit_s16_i1k:
batch 1024, global average pooling, fixed sine-cosine positions, RandAugment(2,10), mixup 0.2, Adam
with rate 1e-3 and decay 1e-4 outside of the rate, cosine after 10,000 steps, clip 1, trained on
`train[:99%]`. Expected on the validation split, by the paper and not by runs of this code: 76.5%
after 90 epochs, 80.0% after 300.
"""

from vit_jax.config import base
from vit_jax.errors import UserError


def get_config(epochs: str = "90"):
    if not epochs.isdecimal() or not int(epochs):
        raise UserError(f"plain.py takes a number of epochs, such as 90, not {epochs!r}")
    c = base()
    c.batch_size = 1024
    c.total_epochs = float(epochs)
    c.eval_every_epochs = max(1.0, int(epochs) / 30)
    c.log_every_steps = 100

    c.model.name = "vit_small_patch16_224"
    c.model.pool = "gap"
    c.model.posemb = "sincos2d"
    c.model.scan = True
    c.model.dtype = "bfloat16"

    c.data.train.source = "tfds:imagenet2012"
    c.data.train.split = "train[:99%]"
    c.data.train.pipeline = "decode|inception_crop|flip_lr|randaug(2,10)"
    c.data.eval.split = "validation"
    c.mixup = 0.2

    c.optimizer.name = "adamw"
    c.optimizer.mu_dtype = "bfloat16"
    c.optimizer.lr = 1e-3
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_by = "schedule"
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_steps = 10_000
    return c
