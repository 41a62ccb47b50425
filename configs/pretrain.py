"""Pre-training as the ViT paper and its code did it: `pretrain.py:MODEL,DATASET`.

    vit train --config=pretrain.py:b16,imagenet21k --workdir=DIR

MODEL: a letter (ti s b l h g G) and a patch size, such as b16, l32, h14; a hybrid (r_ti16, r26_s32,
r26_b32, r50_b16, r50_l32), mixer_b16, bit_50x1, or a name of `list_models`.
DATASET: imagenet21k, imagenet2012 or jft300m.

| data set     | provenance                         | expected                                  |
|--------------|------------------------------------|-------------------------------------------|
| imagenet21k  | arXiv 2010.11929, table 3          | B/16 fine-tuned on ImageNet-1k: 84.0%     |
| imagenet2012 | arXiv 2010.11929, table 3          | B/16 fine-tuned at 384: 77.9%             |
| jft300m      | arXiv 2010.11929, table 3          | L/16 fine-tuned on ImageNet-1k: 87.8%     |

Rates and decays are those of Adam with decoupled weight decay on kernels. The expected figures
are the papers', not runs of this code. `vit sweep` crosses rates and decays of table 3.
"""

from vit_jax.config import base
from vit_jax.errors import UserError, nearest
from vit_jax.models.registry import find_family, full_name, takes

# epochs, lr, weight decay, schedule, end lr, dropout, clip, loss, head bias
DATASETS = {
    "imagenet21k": (90.0, 1e-3, 0.03, "linear", 1e-5, 0.1, None, "sigmoid", -10.0),
    "imagenet2012": (300.0, 3e-3, 0.3, "cosine", 0.0, 0.1, 1.0, "softmax", 0.0),
    "jft300m": (7.0, 8e-4, 0.1, "linear", 1e-5, 0.0, 1.0, "sigmoid", -10.0),
}
# JFT-300M: epochs and rate by model (table 3, with its ResNets and hybrids).
JFT = {
    "vit_base_patch32_224": (7.0, 8e-4), "vit_base_patch16_224": (7.0, 8e-4),
    "vit_large_patch32_224": (7.0, 6e-4), "vit_large_patch16_224": (14.0, 4e-4),
    "vit_huge_patch14_224": (14.0, 3e-4),
    "vit_base_r50_s16_224": (7.0, 8e-4), "vit_large_r50_s32_224": (7.0, 2e-4),
    "resnetv2_50x1_bit_224": (7.0, 1e-3), "resnetv2_101x1_bit_224": (7.0, 8e-4),
    "resnetv2_152x2_bit_224": (7.0, 6e-4),
}  # fmt: skip
VAL_SPLIT = {"imagenet2012": "validation"}


def get_config(arguments: str = "b16,imagenet21k"):
    size, _, dataset = arguments.partition(",")
    dataset = dataset or "imagenet21k"
    if dataset not in DATASETS:
        raise UserError(f"pretrain.py: unknown data set {dataset!r}: {nearest(dataset, DATASETS)}")
    epochs, lr, decay, schedule, end_lr, dropout, clip, loss, head_bias = DATASETS[dataset]
    name = full_name(size)
    if dataset == "jft300m":
        epochs, lr = JFT.get(name, (epochs, lr))

    c = base()
    c.batch_size = 4096
    c.total_epochs = epochs
    c.eval_every_epochs = max(1.0, epochs / 30)
    c.log_every_steps = 100

    c.model.name = name
    c.model.head_bias = head_bias
    c.model.dtype = "bfloat16"
    for field, value in {"pre_logits": True, "dropout": dropout, "scan": True}.items():
        if takes(name, field):
            c.model[field] = value
    if find_family(name, imports=True)[1].get("hidden_size", 0) >= 1024:
        c.model.remat = "dots"
        c.mesh.data, c.mesh.fsdp = -1, -1

    c.data.train.source = f"tfds:{dataset}"
    c.data.eval.split = VAL_SPLIT.get(dataset, "val")

    c.optimizer.name = "adamw"
    c.optimizer.lr = lr
    c.optimizer.weight_decay = decay
    c.optimizer.clip_norm = clip
    c.schedule.name = schedule
    c.schedule.end_lr = end_lr
    c.schedule.warmup_steps = 10_000
    c.loss.name = loss
    return c


def sweep():
    return {"optimizer.lr": [3e-4, 1e-3, 3e-3], "optimizer.weight_decay": [0.03, 0.1, 0.3]}
