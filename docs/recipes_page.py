"""Writes docs/recipes.md from the recipes themselves: `python docs/recipes_page.py`.

Each recipe's docstring, and the keys that it sets with its first arguments.
"""

import importlib.util
from pathlib import Path

from vit_jax import recipe
from vit_jax.config import base, leaves

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# In the order of reading; folder.py needs a folder.
ORDER = {
    "digits": "", "folder": ":PHOTOS", "pretrain": "", "augreg": "", "plain": "", "deit3": "",
    "bit": "", "mixer": "", "finetune": "", "vtab": "", "linear_probe": "", "detr": "",
    "yolos": ":tiny,coco", "mae": ":b16,imagenet2012",
    "study": "", "table6": "", "base": "",
}  # fmt: skip


def page() -> str:
    """The whole page, in Markdown."""
    parts = [
        "# Recipes",
        "A recipe is a small Python file that sets what differs from `base.py`. This page is made "
        "from the files in `configs/` (`python docs/recipes_page.py`): what each says of itself, "
        "and the keys it sets where its arguments are left out. Figures that are not stated to be "
        "runs of this code are the papers'; those that are stand in [results.md](results.md).",
    ]
    default = dict(leaves(base()))
    for name, arguments in ORDER.items():
        file = CONFIGS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"page_{name}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = recipe.load(f"{file}{arguments}")
        changed = [f"{k} = {v!r}" for k, v in leaves(config) if v != default.get(k)]
        parts += [f"## {name}.py", module.__doc__.strip()]
        if changed:
            parts += ["Sets:", "```\n" + "\n".join(changed) + "\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "recipes.md").write_text(page(), encoding="utf-8")
