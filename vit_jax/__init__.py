"""vit_jax: trains Vision Transformers, from one CPU core to a pod, from one config.

Importing the package is cheap; what is named here is loaded when it is first used.
"""

import importlib
import os.path
from typing import Any

__version__ = "0.1.0"

# In a checkout, also one that is not installed, recipes and launchers stand beside the package.
_beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_beside, "launch", "job.py")):
    __path__.append(_beside)

_WHERE = {
    "create_model": "vit_jax.models.registry",
    "evaluate": "vit_jax.python",
    "export": "vit_jax.exporting.export",
    "list_models": "vit_jax.models.registry",
    "list_pretrained": "vit_jax.pretrained.catalog",
    "load_pretrained": "vit_jax.pretrained.load",
    "predict": "vit_jax.python",
    "save_pretrained": "vit_jax.pretrained.save",
    "train": "vit_jax.training.loop",
}
__all__ = [
    "create_model", "evaluate", "export", "list_models", "list_pretrained", "load_pretrained",
    "predict", "save_pretrained", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
