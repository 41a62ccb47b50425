"""Makes the golden files beside it: what the packages that weights come from compute.

PYTHONPATH=. python tests/pretrained/golden/make.py [NAME …]     takes torch, timm, transformers

A file holds names and shapes as the package writes them, its `config.json` where it writes one, and
logits; values of the tensors come from their names (made_weights.fill), images from a seed. So the
test that reads them (test_golden.py) needs no peer.
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
SIZES = {"num_classes": 5, "depth": 2, "embed_dim": 48, "num_heads": 4}
HF_SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 48}
LINEN = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48, "num_classes": 5}


def images(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def golden(name, made_with, layout, shapes, logits, sides, arguments=None, config=None):
    """Writes NAME.json."""
    about = {
        "made_with": made_with, "layout": layout, "arguments": arguments or {},
        "images": {"seed": 0, "shape": [2, *sides, 3]},
        "logits": [[float(f"{x:.7g}") for x in row] for row in logits], "config": config,
    }  # fmt: skip
    lines = [f'"{key}": {json.dumps(value)}' for key, value in about.items()]
    tensors = [f'  "{key}": {json.dumps(list(shape))}' for key, shape in shapes.items()]
    lines.append('"shapes": {\n' + ",\n".join(tensors) + "\n}")
    (HERE / f"{name}.json").write_text("{" + ",\n".join(lines) + "}\n")
    print(f"{name}: {len(shapes)} tensors, logits {np.ptp(logits):.2f} apart")


def run_torch(model, sides):
    """Logits of a model of PyTorch; DeiT's of Transformers are in an object."""
    import torch

    x = torch.from_numpy(images((2, *sides, 3)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        out = model.eval()(x)
    return np.asarray(getattr(out, "logits", out))


def filled(shapes):
    import torch
    from made_weights import fill

    return {name: torch.from_numpy(x) for name, x in fill(shapes, layout="torch").items()}


# -- timm ------------------------------------------------------------------------------------------


def of_timm(name, model, sides, arguments=None, config=None):
    import timm

    shapes = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    model.load_state_dict(filled(shapes), strict=True)
    logits = run_torch(model, sides)
    golden(name, f"timm {timm.__version__}", "timm", shapes, logits, sides, arguments, config)


def timm_vit(name, architecture, side=48, arguments=None, **sizes):
    """A small model of an architecture; shapes do not tell the heads of its width."""
    import timm

    model = timm.create_model(architecture, img_size=side, **SIZES | sizes)
    of_timm(name, model, (side, side), {"num_heads": 4} | (arguments or {}))


def timm_not_square():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2, num_classes=5)
    of_timm("timm_not_square", model, (32, 48), {"source_image_size": [32, 48]})


def timm_folder():
    """As timm saves a model for the Hub: `config.json` says what shapes do not."""
    import timm

    arguments = SIZES | {"img_size": 48, "num_heads": 6, "act_layer": "gelu_tanh"}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(model, folder, model_args=arguments)
        config = json.loads((Path(folder) / "config.json").read_text())
    of_timm("timm_folder", model, (48, 48), None, config)


def timm_bit():
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    model = ResNetV2(
        (1, 2), channels=(256, 512), num_classes=5, stem_type="fixed",
        conv_layer=functools.partial(StdConv2d, eps=1e-8),
    )  # fmt: skip
    of_timm("timm_bit", model, (40, 56), {"image_size": [40, 56]})


def timm_mixer():
    from timm.models.mlp_mixer import MlpMixer

    model = MlpMixer(img_size=24, patch_size=8, num_blocks=2, embed_dim=32, num_classes=5)
    of_timm("timm_mixer", model, (24, 24))


def dinov2_hub():
    """A file of DINOv2's own hub, read by timm, which renames its tensors."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    sizes = SIZES | {"num_classes": 0, "img_size": 42}
    model = timm.create_model("vit_small_patch14_reg4_dinov2", **sizes)
    shapes = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    shapes["register_tokens"] = shapes.pop("reg_token")
    shapes |= {"pos_embed": (1, 1 + 9, 48), "mask_token": (1, 48)}
    state = {k: x for k, x in filled(shapes).items() if k != "mask_token"}
    # timm knows a hub file by its mask token, and drops it.
    state = checkpoint_filter_fn(state | {"mask_token": filled(shapes)["mask_token"]}, model)
    model.load_state_dict(state, strict=True)
    logits = run_torch(model, (42, 42))
    golden("dinov2_hub", f"timm {timm.__version__}", "dinov2", shapes, logits, (42, 42),
           {"num_heads": 4})  # fmt: skip


# -- Transformers ----------------------------------------------------------------------------------


def huggingface(name, title, **sizes):
    """Names and `config.json` as `save_pretrained` writes them, logits of `from_pretrained`."""
    import transformers
    from safetensors import safe_open
    from safetensors.torch import save_file

    kind = title.removesuffix("WithTeacher").removesuffix("ForImageClassification")
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **HF_SIZES | sizes)
    family = getattr(transformers, title)
    with tempfile.TemporaryDirectory() as folder:
        family(config).save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, framework="numpy") as tensors:
            shapes = {k: tuple(tensors.get_slice(k).get_shape()) for k in tensors.keys()}  # noqa: SIM118
        save_file(filled(shapes), file, metadata={"format": "pt"})
        model = family.from_pretrained(folder)
        written = json.loads((Path(folder) / "config.json").read_text())
    sides = (config.image_size, config.image_size)
    logits = run_torch(model, sides)
    golden(name, f"transformers {transformers.__version__}", "huggingface", shapes, logits, sides,
           None, written)  # fmt: skip


# -- the re-statements of Google's models ----------------------------------------------------------


def linen(name, layout, make, sides=(16, 24), arguments=None):
    from made_weights import fill, forward, names_and_shapes

    module = make()
    shapes = names_and_shapes(module, sides)
    logits, _ = forward(module, fill(shapes), images((2, *sides, 3)))
    arguments = {"source_image_size": list(sides)} if arguments is None else arguments
    golden(name, "tests/pretrained/linen_*.py", layout, shapes, logits, sides, arguments)


def google(**sizes):
    from linen_google import GoogleViT

    return GoogleViT(**{"patch": 8} | LINEN | sizes)


def bit():
    from linen_google import BiTResNet

    return BiTResNet(5, (1, 2))


def mixer():
    from linen_google import GoogleMixer

    return GoogleMixer(8, 32, 2, 20, 48, 5)


def big_vision(**sizes):
    from linen_big_vision import BigVisionViT

    return BigVisionViT(8, **LINEN | sizes)


part = functools.partial
MAKERS = {
    "timm_vit": part(timm_vit, "timm_vit", "vit_tiny_patch16_224"),
    "timm_hybrid_stem": part(timm_vit, "timm_hybrid_stem", "vit_tiny_r_s16_p8_224", 64),
    "timm_hybrid": part(timm_vit, "timm_hybrid", "vit_base_r50_s16_224", 32, depth=1),
    "timm_deit": part(timm_vit, "timm_deit", "deit_tiny_distilled_patch16_224"),
    "timm_reg4_dinov2": part(timm_vit, "timm_reg4_dinov2", "vit_small_patch14_reg4_dinov2", 42),
    "timm_swiglu": part(timm_vit, "timm_swiglu", "vit_giant_patch14_dinov2", 42),
    "timm_siglip": part(timm_vit, "timm_siglip", "vit_base_patch16_siglip_224"),
    "timm_not_square": timm_not_square,
    "timm_folder": timm_folder,
    "timm_bit": timm_bit,
    "timm_mixer": timm_mixer,
    "dinov2_hub": dinov2_hub,
    "hf_vit": part(  # with an epsilon that would be missed
        huggingface, "hf_vit", "ViTForImageClassification", intermediate_size=64,
        layer_norm_eps=0.01, hidden_act="gelu_pytorch_tanh",
    ),
    "hf_deit": part(
        huggingface, "hf_deit", "DeiTForImageClassificationWithTeacher", intermediate_size=64
    ),
    "hf_deit_one_head": part(
        huggingface, "hf_deit_one_head", "DeiTForImageClassification", intermediate_size=64
    ),
    "hf_dinov2": part(
        huggingface, "hf_dinov2", "Dinov2ForImageClassification", patch_size=16, mlp_ratio=2
    ),
    "hf_dinov2_swiglu": part(
        huggingface, "hf_dinov2_swiglu", "Dinov2ForImageClassification", patch_size=16, mlp_ratio=2,
        use_swiglu_ffn=True,
    ),
    "hf_dinov2_registers": part(
        huggingface, "hf_dinov2_registers", "Dinov2WithRegistersForImageClassification",
        patch_size=16, mlp_ratio=2,
    ),
    "google_vit": part(linen, "google_vit", "google", google),
    "google_vit_linen": part(
        linen, "google_vit_linen", "google", part(google, numbering="linen", rep_size=32)
    ),
    "google_gap": part(linen, "google_gap", "google", part(google, pool="gap")),
    "google_hybrid": part(
        linen, "google_hybrid", "google", part(google, patch=1, resnet=(1, 1)), (40, 56)
    ),
    "google_mixer": part(linen, "google_mixer", "google", mixer),
    "google_bit": part(
        linen, "google_bit", "google", bit, (40, 56), {"image_size": [40, 56]}
    ),
    "big_vision_tok": part(linen, "big_vision_tok", "big_vision", part(big_vision, pool="tok")),
    "big_vision_map": part(
        linen, "big_vision_map", "big_vision", part(big_vision, pool="map", scan=True)
    ),
    "big_vision_sincos": part(
        linen, "big_vision_sincos", "big_vision", part(big_vision, posemb="sincos2d")
    ),
}  # fmt: skip

if __name__ == "__main__":
    for chosen in sys.argv[1:] or MAKERS:
        MAKERS[chosen]()
