"""A small ViT on scikit-learn's handwritten digits, from scratch in a minute on two CPU cores.

    vit train --config=digits.py --workdir=runs/digits

8 x 8 pixels, four patches of 4, mean of the tokens. 1,442 training images, 355 held out (every
fifth of each class, the same for everyone). Expected: 99% (docs/results.md). `vit sweep`
tries four rates with three decays.
"""

from vit_jax.config import base


def get_config():
    c = base()
    c.batch_size = 128
    c.total_epochs = 150.0
    c.log_every_steps = 200
    c.eval_every_epochs = 30.0

    c.model.name = "vit_nano_patch4_8"
    c.model.hidden_size = 96
    c.model.num_layers = 3
    c.model.num_heads = 2
    c.model.mlp_dim = 192
    c.model.pool = "gap"

    c.data.train.source = "digits"
    c.data.train.pipeline = "decode|shift(1)"
    c.data.eval.pipeline = "decode"

    c.optimizer.name = "adamw"
    c.optimizer.lr = 4e-3
    c.optimizer.weight_decay = 0.3
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_epochs = 10.0
    c.loss.label_smoothing = 0.1
    return c


def sweep():
    return {"optimizer.lr": [1e-3, 2e-3, 4e-3, 8e-3], "optimizer.weight_decay": [0.03, 0.1, 0.3]}
