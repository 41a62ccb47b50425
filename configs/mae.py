"""A ViT pre-trained without labels, by predicting masked patches (MAE, arXiv 2111.06377):
`mae.py:SIZE,DATA`, or `mae.py:digits`.

    vit train --config=mae.py:digits --workdir=runs/mae
    vit train --config=mae.py:b16,imagenet2012 --workdir=DIR
    vit train --config=mae.py:s16,folder:PHOTOS --workdir=DIR
    vit train --config=finetune.py:b16,imagenet2012 --workdir=TUNED --config.init=DIR

SIZE: a letter and a patch size such as b16, l16, h14, or a name of `list_models` of a plain ViT.
DATA: imagenet2012, imagenet21k, or any source, such as folder:PATH; labels are not read.

The paper's settings (table 8): AdamW with b2 0.95, rate 1.5e-4 for batches of 256, decay 0.05,
40 epochs of warm-up, cosine, 800 epochs; a crop of 20% to 100% of the image, mirrored; 75% of the
patches masked. Held-out images are measured with masks that stay. Expected of B, L and H after
fine-tuning on ImageNet-1k, by the paper and not by runs of this code: 83.6%, 85.9%, 86.9%.

digits: scikit-learn's digits, 16 patches of 2 pixels, on a CPU.
"""

from vit_jax.config import base
from vit_jax.errors import UserError
from vit_jax.models.registry import find_family, full_name

SETS = {"imagenet2012": "validation", "imagenet21k": "val"}  # the split to evaluate
SHOWN = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of ImageNet


def get_config(arguments: str = "digits"):
    if arguments == "digits":
        return digits()
    size, _, data = arguments.partition(",")
    if not size or not data:
        raise UserError(
            "mae.py needs a size and data: --config=mae.py:b16,folder:PATH, or mae.py:digits"
        )
    name = f"mae_{full_name(size).removeprefix('mae_')}"
    c = base(name, "masked")
    if "mask_ratio" not in c.model:
        raise UserError(f"mae.py takes a plain ViT, such as b16, not {size!r}")
    c.batch_size = 4096
    c.total_epochs = 800.0
    c.eval_every_epochs = 20.0
    c.log_every_steps = 100

    c.model.dtype = "bfloat16"
    c.model.scan = True
    if find_family(name)[1]["hidden_size"] >= 1024:
        c.model.remat = "dots"
        c.mesh.data, c.mesh.fsdp = -1, -1

    c.data.train.source = f"tfds:{data}" if data in SETS else data
    c.data.eval.split = SETS.get(data, "val")
    c.data.train.pipeline = "decode|inception_crop(None, 0.2)|flip_lr"
    c.data.mean, c.data.std = SHOWN

    c.optimizer.name = "adamw"
    c.optimizer.lr = 1.5e-4
    c.optimizer.lr_per = 256
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.05
    c.schedule.name = "cosine"
    c.schedule.warmup_epochs = 40.0
    return c


def digits():
    """The digits, on a CPU."""
    c = base("mae_vit_nano_patch2_8", "masked")
    c.batch_size = 128
    c.total_epochs = 150.0
    c.log_every_steps = 200
    c.eval_every_epochs = 30.0

    c.model.hidden_size = 96
    c.model.num_layers = 3
    c.model.num_heads = 2
    c.model.mlp_dim = 192
    c.model.decoder_width = 64
    c.model.decoder_layers = 1
    c.model.decoder_heads = 2
    c.model.decoder_mlp_dim = 128
    c.model.mask_ratio = 0.5
    c.model.norm_pixels = False

    c.data.train.source = "digits"
    c.data.train.pipeline = "decode|shift(1)"
    c.data.eval.pipeline = "decode"

    c.optimizer.name = "adamw"
    c.optimizer.lr = 2e-3
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.05
    c.schedule.name = "cosine"
    c.schedule.warmup_epochs = 10.0
    return c
