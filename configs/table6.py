"""The ViT paper's own comparison (arXiv 2010.11929, table 6), on JFT-300M: `table6.py`.

    vit study --config=table6.py --dry-run --workdir=DIR
    vit study --config=table6.py --workdir=DIR -- slurm --devices=256

Seven rows of BiT ResNets, six of ViTs and five of hybrids, in the table's lengths and with the
rates of table 3. The reference is ViT-B/16. `table6.py:SOURCE` takes other data, such as
tfds:imagenet21k.
"""

from vit_jax.config import base

# name of `list_models` -> epochs, rate, and the exaFLOPs of pre-training that the table states.
TABLE = {
    "vit_base_patch16_224": ((7, 8e-4, 224),),
    "vit_base_patch32_224": ((7, 8e-4, 55),),
    "vit_large_patch32_224": ((7, 6e-4, 196),),
    "vit_large_patch16_224": ((7, 4e-4, 783), (14, 4e-4, 1567)),
    "vit_huge_patch14_224": ((14, 3e-4, 4262),),
    "resnetv2_50x1_bit_224": ((7, 1e-3, 50),),
    "resnetv2_50x2_bit_224": ((7, 1e-3, 199),),
    "resnetv2_101x1_bit_224": ((7, 8e-4, 96),),
    "resnetv2_152x1_bit_224": ((7, 6e-4, 141),),
    "resnetv2_152x2_bit_224": ((7, 6e-4, 563), (14, 6e-4, 1126)),
    "resnetv2_200x3_bit_224": ((14, 6e-4, 3306),),
    "vit_base_r50_s32_224": ((7, 8e-4, 106),),
    "vit_base_r50_s16_224": ((7, 8e-4, 274),),
    "vit_large_r50_s32_224": ((7, 2e-4, 246),),
    "vit_large_r50_s16_224": ((7, 4e-4, 859), (14, 4e-4, 1668)),
}


def get_config(source: str = ""):
    c = base()
    c.batch_size = 4096
    c.total_epochs = 7.0
    c.log_every_steps = 100

    c.model.name = "vit_base_patch16_224"
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
        for name, rows in TABLE.items()
        for epochs, rate, _ in rows
    ]
