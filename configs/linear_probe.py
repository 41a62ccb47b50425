"""A linear classifier on frozen features: `linear_probe.py:MODEL,DATASET`.

    vit train --config=linear_probe.py:b16,imagenet2012 --workdir=DIR --config.init=ViT-B_16.npz

MODEL and DATASET: as for finetune.py.

SGD with momentum 0.9 on the head alone at 224 px, batch 1024, rate 0.1, cosine, no decay; 90 epochs
of ImageNet-1k, as long as fine-tuning elsewhere. Everything else stays bit for bit. The evaluator
`linear_probe` does it in seconds where all features fit in memory. No figure is promised.
"""

from pathlib import Path

from vit_jax import recipe
from vit_jax.models.registry import full_name

FINETUNE = Path(__file__).with_name("finetune.py")


def get_config(arguments: str = "b16,imagenet2012"):
    size, _, dataset = arguments.partition(",")
    dataset = dataset or "imagenet2012"
    c = recipe.load(f"{FINETUNE}:{size},{dataset}")
    c.model.name = full_name(size)
    c.batch_size = 1024
    if dataset == "imagenet2012":
        c.total_steps, c.total_epochs = None, 90.0
        c.eval_every_steps, c.eval_every_epochs = None, 3.0
    c.data.eval.pipeline = "decode|resize_small|central_crop"
    c.optimizer.freeze = r"(?!head(_dist)?/).*"
    c.optimizer.lr = 0.1
    c.optimizer.clip_norm = None
    return c
