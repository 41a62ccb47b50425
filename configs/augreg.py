"""Pre-training with augmentation and regularisation: `augreg.py:MODEL,DATASET[,LEVEL[,reg]]`.

    vit train --config=augreg.py:b16,imagenet21k --workdir=DIR
    vit train --config=augreg.py:s16,imagenet2012,medium1,reg --workdir=DIR

MODEL: ti16, s32, s16, b32, b16, l16, a hybrid (r_ti16, r26_s32, r50_l32), or a name of
`list_models`. DATASET: imagenet21k or imagenet2012 (trained on `train[:99%]`, evaluated on its last
hundredth). LEVEL: none, light1, light2, medium1, medium2, strong1, strong2; the paper's pick for
the size where left out. reg: dropout 0.1 and stochastic depth 0.1.

Provenance: arXiv 2106.10270 ("How to train your ViT"), sections 3.3-3.4 and figure 4, and the
reference code's vit_i21k: 300 epochs, batch 4096, Adam with a first moment in bfloat16, rate 1e-3,
decay 1e-4 outside of the rate, cosine after 10,000 steps, clip 1, sigmoid loss, linear head.
Expected, by the paper and not by runs of this code: B/16 from ImageNet-21k fine-tuned on
ImageNet-1k at 384 px 85.5%, S/16 83.7%, Ti/16 78.2%; B/16 on ImageNet-1k alone 79-80%.
`vit sweep` tries the decays and the regularisation that the published checkpoints' names have.
"""

from vit_jax.config import base
from vit_jax.errors import UserError, nearest
from vit_jax.models.registry import full_name, takes

# RandAugment's operation, and p of mixup
LEVELS = {
    "none": ("", 0.0),
    "light1": ("|randaug(2,0)", 0.0),
    "light2": ("|randaug(2,10)", 0.2),
    "medium1": ("|randaug(2,15)", 0.2),
    "medium2": ("|randaug(2,15)", 0.5),
    "strong1": ("|randaug(2,20)", 0.5),
    "strong2": ("|randaug(2,20)", 0.8),
}
# splits, head bias, and the level by the size's letter and patch, or letter
DATASETS = {
    "imagenet21k": (
        ("train", "val"), -10.0, {"ti": "none", "s32": "none", "s": "light1", "b": "light2"},
    ),
    "imagenet2012": (("train[:99%]", "train[99%:]"), -6.9, {"ti": "light1", "s32": "medium1"}),
}  # fmt: skip


def get_config(arguments: str = "b16,imagenet21k"):
    given = arguments.split(",")
    if len(given) > 4:
        raise UserError(f"augreg.py takes MODEL,DATASET,LEVEL,reg and no more, not {arguments!r}")
    size, dataset, level, reg = (*given, "", "", "")[:4]
    dataset = dataset or "imagenet21k"
    if dataset not in DATASETS:
        raise UserError(f"augreg.py: unknown data set {dataset!r}: {nearest(dataset, DATASETS)}")
    (train, held_out), head_bias, picks = DATASETS[dataset]
    letter = size.removeprefix("r_").rstrip("0123456789")
    level = level or picks.get(size) or picks.get(letter) or "medium2"
    if level not in LEVELS:
        raise UserError(f"augreg.py: unknown level {level!r}: {nearest(level, LEVELS)}")
    if reg not in ("", "reg"):
        raise UserError(f"augreg.py: the fourth argument is reg or nothing, not {reg!r}")
    randaug, mixup = LEVELS[level]

    c = base()
    c.batch_size = 4096
    c.total_epochs = 300.0
    c.eval_every_epochs = 10.0
    c.log_every_steps = 100

    c.model.name = full_name(size)
    c.model.head_bias = head_bias
    c.model.dtype = "bfloat16"
    for field, value in {"dropout": 0.1 if reg else 0.0, "drop_path": 0.1 if reg else 0.0,
                         "scan": True}.items():  # fmt: skip
        if takes(c.model.name, field):
            c.model[field] = value

    c.data.train.source = f"tfds:{dataset}"
    c.data.train.split, c.data.eval.split = train, held_out
    c.data.train.pipeline = f"decode|inception_crop|flip_lr{randaug}"
    c.mixup = mixup

    c.optimizer.name = "adamw"
    c.optimizer.mu_dtype = "bfloat16"
    c.optimizer.lr = 1e-3
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_by = "schedule"
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_steps = 10_000
    c.loss.name = "sigmoid"
    return c


def sweep():
    for decay in (3e-5, 1e-4):  # over the rate: 0.03 and 0.1
        for rate in (0.0, 0.1):
            yield {"optimizer.weight_decay": decay, "model.dropout": rate, "model.drop_path": rate}
