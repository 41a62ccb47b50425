"""Made weights and data stand with the tests that need no other package."""

import contextlib
import sys
from pathlib import Path

FOLDERS = ("pretrained", "preparing", "exporting")
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in FOLDERS]

# PyTorch for CPUs beside a torchvision for GPUs: its operators cannot be loaded, and its import
# ends in an error over the first ones that are missing. timm imports it, and calls none of them.
OPERATORS = ("nms", "qnms")

with contextlib.suppress(ImportError):
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
