"""Architectures beside each other on your own data: `study.py:FAMILIES,DATA`.

    vit study --config=study.py:vit+resnet+bit+nonlocal+sasa+axial,folder:PATH --workdir=DIR

FAMILIES: names joined by +, of those below or of `list_models`; the first one is the reference.
DATA: a source such as folder:PATH or tfds:NAME, or digits.

All models are small and train by one recipe (that of folder.py: AdamW, crops, flips, mixup), at 64
pixels; digits at 32. ResNets have one unit in each stage. All of them but bit are half as wide as
usual.
"""

from vit_jax.config import base
from vit_jax.errors import UserError

SMALL = {
    "vit": "vit_nano_patch8_64", "axial_vit": "axial_vit_nano_patch8_64",
    "bit": "resnetv2_14x1_bit",
    "resnet": "resnet14w32_gn", "nonlocal": "nonlocal_resnet14w32_5",
    "sasa": "sasa_resnet14w32_convstem", "axial": "axial_resnet14w32",
}  # fmt: skip


def get_config(arguments: str = "vit+resnet,digits"):
    families, _, data = arguments.partition(",")
    if not families or not data:
        raise UserError(
            "study.py needs families and data: --config=study.py:vit+resnet,folder:PATH"
        )
    digits = data == "digits"
    c = base()
    c.batch_size = 64
    c.total_epochs = 20.0
    c.log_every_steps = 100

    c.model.name = models(families)[0]
    c.model.image_size = side_of(data)

    c.data.train.source = data
    shown = "decode|resize" if digits else "decode|inception_crop(None, 0.3)|flip_lr"
    c.data.train.pipeline = shown
    if digits:
        c.data.eval.pipeline = "decode|resize"
    c.mixup = 0.0 if digits else 0.2

    c.optimizer.name = "adamw"
    c.optimizer.lr = 1e-3
    c.optimizer.weight_decay = 0.05
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_epochs = 1.0
    return c


def models(families: str) -> list[str]:
    return [SMALL.get(name, name) for name in families.split("+") if name]


def side_of(data: str) -> int:
    return 32 if data == "digits" else 64


def sweep(arguments: str = "vit+resnet,digits"):
    families, _, data = arguments.partition(",")
    side = side_of(data)  # beside the name, whose own size would count otherwise
    return [{"model.name": name, "model.image_size": side} for name in models(families)]
