"""Objects found by tokens of a ViT (YOLOS, arXiv 2106.00666): `yolos.py:SIZE,DATA`.

    vit train --config=yolos.py:tiny,coco:FOLDER --workdir=DIR --config.init=runs/ti16
    vit train --config=yolos.py:vit_small_patch16_224,voc:DATA --workdir=DIR --config.init=runs/s16

SIZE: tiny, small or base, with the paper's settings (section 3.1 and its code). --config.init names
weights of a classifier of that size, which is how the paper begins, or those of a YOLOS. Images are
fitted into one canvas; the paper draws their size. Or a name of `list_models` of a ViT, for a few
hundred images of your own: the same settings at a larger rate. DATA: a source with boxes, such as
coco:FOLDER or voc:FOLDER.
"""

from vit_jax.config import base
from vit_jax.errors import UserError

# size -> (batch, epochs, rate)
PAPERS = {"tiny": (16, 300, 5e-5), "small": (8, 150, 2.5e-5), "base": (8, 150, 2.5e-5)}


def get_config(arguments: str = ""):
    size, _, data = arguments.partition(",")
    if not size or not data:
        raise UserError("yolos.py needs a size and data: --config=yolos.py:tiny,coco:FOLDER")
    c = base(f"yolos_{size}", "detection")
    if "mid_positions" not in c.model:
        raise UserError(f"yolos.py knows no size {size!r}: {', '.join(PAPERS)}, or a name of a ViT")
    batch_size, epochs, rate = PAPERS.get(size, (16, 300, 2e-4))
    c.batch_size = batch_size
    c.total_epochs = float(epochs)
    c.log_every_steps = 100 if size in PAPERS else 50
    c.eval_every_epochs = 10.0 if size in PAPERS else 50.0

    c.data.train.source = data
    crop = "size_crop|fit|pad" if size in PAPERS else "zoom_out(1.5)|canvas_crop"
    c.data.train.pipeline = f"decode|flip_lr|{crop}"
    c.data.eval.pipeline = "decode|fit|pad"

    c.optimizer.name = "adamw"
    c.optimizer.lr = rate
    c.optimizer.weight_decay = 1e-4
    c.optimizer.clip_norm = 0.1
    c.schedule.name = "cosine"
    return c
