"""Objects found as sets (DETR, arXiv 2005.12872): `detr.py:digits`, or `detr.py:BACKBONE,DATA`.

    vit train --config=detr.py:digits --workdir=runs/scenes
    vit train --config=detr.py:r50,coco:FOLDER --workdir=DIR --config.init=resnet50.pth
    vit train --config=detr.py:vit_small_patch16_224,voc:FOLDER --workdir=DIR --config.init=runs/s16
    vit plan --config=detr.py:r50,coco --topology=v5e:4x4

digits: scenes of one to four handwritten digits, 64 pixels, made from scikit-learn's. A small ViT
is the backbone, and every layer refines the boxes of the layer before, so that a CPU is enough.

BACKBONE: r50, r50_dc5, r101 or r101_dc5, whose batch norms are frozen, with the paper's settings
(section A.4). The frozen parts come with weights that --config.init names: of a DETR, or of
torchvision's or timm's ResNet, as in the paper. Images are fitted into a canvas, of one of four
sizes for each step; the paper draws the size of each image. Or a name of `list_models` of a ViT, a
hybrid or a ResNet with group norm, for a few hundred images of your own: every layer refines the
boxes of the layer before, there is no encoder behind a ViT's, and the rate is larger. DATA: a
source with boxes, such as coco:FOLDER or voc:FOLDER.
"""

from vit_jax.config import base
from vit_jax.errors import UserError
from vit_jax.models.detector_configs import NEVER_TRAINED

PAPERS = {
    "r50": "detr_resnet50", "r50_dc5": "detr_resnet50_dc5", "r101": "detr_resnet101",
    "r101_dc5": "detr_resnet101_dc5",
}  # fmt: skip
SHOWN = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of ImageNet


def get_config(arguments: str = "digits"):
    if arguments == "digits":
        return digits()
    backbone, _, data = arguments.partition(",")
    if not backbone or not data:
        raise UserError(
            "detr.py needs a backbone and data: --config=detr.py:r50,coco:FOLDER, or detr.py:digits"
        )
    if backbone in PAPERS:
        return papers(PAPERS[backbone], data)
    c = base(f"detr_{backbone}", "detection")
    if "detector_width" not in c.model:
        raise UserError(
            f"detr.py knows no backbone {backbone!r}: {', '.join(PAPERS)}, or a name of a ViT, a "
            "hybrid or a ResNet with group norm"
        )
    return few_images(c, data)


def papers(name: str, data: str):
    """The paper's settings: 300 epochs, of which the last third has a tenth of the rate."""
    c = base(name, "detection")
    c.batch_size = 64
    c.total_epochs = 300.0
    c.log_every_steps = 100
    c.eval_every_epochs = 10.0

    c.data.train.source = data
    c.data.train.pipeline = "decode|buckets(0.6, 0.75, 0.9, 1.0)|flip_lr|size_crop|fit|pad"
    c.data.eval.pipeline = "decode|fit|pad"
    c.data.mean, c.data.std = SHOWN

    c.optimizer.name = "adamw"
    c.optimizer.lr = 1e-4
    c.detection.backbone_rate = 0.1
    c.optimizer.freeze = NEVER_TRAINED
    c.optimizer.weight_decay = 1e-4
    c.optimizer.clip_norm = 0.1
    c.schedule.name = "drop"
    return c


def few_images(c, data: str):
    """Settings for little data: boxes that are refined, few layers, a larger rate."""
    c.batch_size = 16
    c.total_epochs = 300.0
    c.log_every_steps = 50
    c.eval_every_epochs = 50.0

    c.model.detector_encoder = 3 if "resnet" in c.model.name else 0
    c.model.detector_decoder = 3
    c.model.detector_dropout = 0.0
    c.model.detector_norm = "pre"
    c.model.queries = "refined"

    c.data.train.source = data
    c.data.train.pipeline = "decode|flip_lr|canvas_crop"
    c.data.eval.pipeline = "decode|fit|pad"

    c.detection.empty = 0.4  # fewer objects are found twice
    c.optimizer.name = "adamw"
    c.optimizer.lr = 5e-4
    c.detection.backbone_rate = 0.5
    c.optimizer.weight_decay = 1e-3
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_epochs = 10.0
    return c


def digits():
    """Scenes of digits, on a CPU."""
    c = base("detr_vit_nano_patch8_64", "detection")
    c.batch_size = 64
    c.total_steps = 3000
    c.log_every_steps = 100
    c.eval_every_steps = 500

    c.model.num_layers = 4
    c.model.detector_width = 128
    c.model.detector_heads = 4
    c.model.detector_mlp_dim = 256
    c.model.detector_encoder = 0
    c.model.detector_decoder = 3
    c.model.detector_dropout = 0.0
    c.model.detector_norm = "pre"
    c.model.queries = "refined"
    c.model.num_queries = 16

    c.data.train.source = "digit_scenes:examples=65536"
    c.data.eval.source = "digit_scenes:examples=512"
    c.data.train.pipeline = "decode"
    c.data.eval.pipeline = "decode|resize"

    c.optimizer.name = "adamw"
    c.optimizer.lr = 1e-3
    c.optimizer.weight_decay = 1e-4
    c.optimizer.clip_norm = 1.0
    c.schedule.name = "cosine"
    c.schedule.warmup_steps = 200
    return c
