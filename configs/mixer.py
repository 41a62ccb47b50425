"""MLP-Mixer on ImageNet-1k: `mixer.py:MODEL`.

    vit train --config=mixer.py:b16 --workdir=DIR

MODEL: s32, s16, b32, b16, l32 or l16.

Provenance: arXiv 2105.01601 with the reference code's mlp_mixer_i1k: batch 4096, 300 epochs,
RandAugment(2,15), mixup 0.5, stochastic depth 0.1, Adam with rate 1e-3 and decay 1e-4 outside of
the rate, linear to 1e-5 after 10,000 steps, clip 1, sigmoid loss, trained on `train[:99%]`.
Expected of B/16 on the validation split, by that code and not by runs of this one: 76.3%.
"""

from vit_jax.config import base
from vit_jax.models.registry import full_name


def get_config(size: str = "b16"):
    c = base()
    c.batch_size = 4096
    c.total_epochs = 300.0
    c.eval_every_epochs = 10.0
    c.log_every_steps = 100

    c.model.name = full_name(f"mixer_{size}")
    c.model.head_bias = -6.9
    c.model.drop_path = 0.1
    c.model.dtype = "bfloat16"

    c.data.train.source = "tfds:imagenet2012"
    c.data.train.split = "train[:99%]"
    c.data.train.pipeline = "decode|inception_crop|flip_lr|randaug(2,15)"
    c.data.eval.split = "validation"
    c.mixup = 0.5

    c.optimizer.name = "adamw"
    c.optimizer.lr = 1e-3
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_by = "schedule"
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "linear"
    c.schedule.end_lr = 1e-5
    c.schedule.warmup_steps = 10_000
    c.loss.name = "sigmoid"
    return c
