"""The ViT paper's own comparison (arXiv 2010.11929, table 6), on JFT-300M: `table6.py`.

    vit study --config=table6.py --dry-run --workdir=DIR
    vit study --config=table6.py --workdir=DIR -- slurm --devices=256

Seven rows of BiT ResNets, six of ViTs and five of hybrids, in the table's lengths and with the
rates of table 3. The reference is ViT-B/16. `table6.py:SOURCE` takes other data, such as
tfds:imagenet21k.
"""

from vit_jax.config import base

# name of `list_models` -> rate, and the epochs of each row.
TABLE = {
    "vit_base_patch16_224": (8e-4, (7,)),
    "vit_base_patch32_224": (8e-4, (7,)),
    "vit_large_patch32_224": (6e-4, (7,)),
    "vit_large_patch16_224": (4e-4, (7, 14)),
    "vit_huge_patch14_224": (3e-4, (14,)),
    "resnetv2_50x1_bit_224": (1e-3, (7,)),
    "resnetv2_50x2_bit_224": (1e-3, (7,)),
    "resnetv2_101x1_bit_224": (8e-4, (7,)),
    "resnetv2_152x1_bit_224": (6e-4, (7,)),
    "resnetv2_152x2_bit_224": (6e-4, (7, 14)),
    "resnetv2_200x3_bit_224": (6e-4, (14,)),
    "vit_base_r50_s32_224": (8e-4, (7,)),
    "vit_base_r50_s16_224": (8e-4, (7,)),
    "vit_large_r50_s32_224": (2e-4, (7,)),
    "vit_large_r50_s16_224": (4e-4, (7, 14)),
}


def get_config(source: str = ""):
    c = base()
    c.batch_size = 4096
    c.total_epochs = 7.0
    c.log_every_steps = 100

    c.model.name = "vit_base_patch16_224"
    c.model.pre_logits = True  # the hidden layer of the head, of those that have one
    c.model.head_bias = -10.0
    c.model.dtype = "bfloat16"

    c.data.train.source = source or "tfds:jft300m"
    c.data.eval.split = "val"

    c.optimizer.name = "adamw"
    c.optimizer.lr = 8e-4
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "linear"
    c.schedule.end_lr = 1e-5
    c.schedule.warmup_steps = 10_000
    c.loss.name = "sigmoid"
    return c


def sweep(source: str = ""):
    return [
        {"model.name": name, "optimizer.lr": rate, "total_epochs": float(epochs)}
        for name, (rate, lengths) in TABLE.items()
        for epochs in lengths
    ]
