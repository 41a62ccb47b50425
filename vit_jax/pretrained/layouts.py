"""The layouts that the package reads and writes, by name; `register` adds your own.

To add a layout, write one file that makes a `Layout`. Then call `register` with it in a recipe or a
script, or name it on the command line: `--layout=MODULE:NAME`.
"""

from vit_jax.errors import UserError, printable
from vit_jax.pretrained.detr import FACEBOOK_DETR, HUGGINGFACE_DETR
from vit_jax.pretrained.google import BIG_VISION, GOOGLE
from vit_jax.pretrained.huggingface import HUGGINGFACE
from vit_jax.pretrained.layout import Layout, Reader, Writer
from vit_jax.pretrained.resnet_v1 import TORCHVISION_RESNET
from vit_jax.pretrained.timm import DINOV2_HUB, TIMM
from vit_jax.pretrained.yolos import HUGGINGFACE_YOLOS

OWN = "orbax"  # this package's own checkpoints, which have no `Layout`
_SHIPPED = {
    layout.name: layout
    for layout in (
        GOOGLE, BIG_VISION, TIMM, DINOV2_HUB, HUGGINGFACE, FACEBOOK_DETR, HUGGINGFACE_DETR,
        HUGGINGFACE_YOLOS, TORCHVISION_RESNET,
    )
}  # fmt: skip
_LAYOUTS = dict(_SHIPPED)


def register(layout: Layout) -> None:
    """Adds a layout, or replaces one that was registered under the same name before.

    Raises UserError: it is no layout, or its name belongs to a layout of this package.
    """
    if not isinstance(layout, Layout):
        raise UserError(f"a layout is a vit_jax.pretrained.Layout, not {printable(layout)[:80]}")
    if layout.name in (*_SHIPPED, OWN):
        raise UserError(f"the name {layout.name!r} belongs to a layout of vit_jax: take another")
    _LAYOUTS[layout.name] = layout


def readers() -> list[tuple[Layout, Reader]]:
    """The layouts that can be read."""
    return [(layout, layout.reader) for layout in _LAYOUTS.values() if layout.reader]


def writers() -> dict[str, tuple[Layout, Writer]]:
    """The layouts that can be written, by name."""
    return {name: (layout, layout.writer) for name, layout in _LAYOUTS.items() if layout.writer}
