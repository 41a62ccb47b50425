"""Files of timm and Transformers that are read and written again hold the same tensors."""

import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from peer_models import filled, unmade  # noqa: E402
from round_trip import assert_round_trip  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

SMALL = {"embed_dim": 48, "num_heads": 3, "num_classes": 5}


def read(path):
    return load_file(path / "model.safetensors" if path.is_dir() else path)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_base_patch16_224", SMALL),
        ("vit_base_patch16_224", SMALL | {"qk_norm": True, "num_classes": 0}),
        ("vit_base_patch16_224", SMALL | {"global_pool": "avg", "reg_tokens": 3}),
        ("vit_medium_patch16_gap_256", SMALL),
        ("vit_tiny_r_s16_p8_224", SMALL),
        ("vit_small_r26_s32_224", SMALL),
        ("vit_base_r50_s16_224", SMALL),
        ("resnetv2_50x1_bit", {"num_classes": 5}),
        ("mixer_s32_224", {"num_classes": 5}),
        ("deit_small_distilled_patch16_224", SMALL),
        ("deit3_small_patch16_224", SMALL),
        ("vit_small_patch14_reg4_dinov2", SMALL | {"img_size": 112}),
        ("vit_giant_patch14_reg4_dinov2", SMALL | {"img_size": 112}),
        ("vit_giant_patch14_dinov2", SMALL | {"img_size": 112}),
        ("vit_base_patch16_siglip_224", SMALL),
        ("vit_base_patch16_clip_224", SMALL),
    ],
    ids=str,
)
def test_timm(tmp_path, name, arguments):
    """And timm makes the same model from the folder that is written."""
    depth = {"depth": 2} if "embed_dim" in arguments else {}
    with unmade():
        model = timm.create_model(name, **arguments, **depth)
    theirs, flat = filled(model)
    heads = {"num_heads": 3} if "num_heads" in arguments else {}
    save_file(flat, tmp_path / "a.safetensors")
    assert_round_trip(tmp_path / "a.safetensors", tmp_path / "b", "timm", read, **heads)
    again = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True)
    # Every layer with its sizes and epsilons; timm's own GELU is PyTorch's.
    described = [str(m).replace("(approximate='none')", "()") for m in (again.eval(), theirs)]
    assert described[0] == described[1]
    for key, value in again.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), flat[key], err_msg=key)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ViTForImageClassification", {"qkv_bias": False}),
        ("ViTModel", {}),
        ("DeiTForImageClassification", {}),
        ("DeiTForImageClassificationWithTeacher", {}),
        ("DeiTModel", {}),
        ("Dinov2ForImageClassification", {}),
        ("Dinov2Model", {"use_swiglu_ffn": True}),
        ("Dinov2Model", {"use_mask_token": False}),
        ("Dinov2WithRegistersForImageClassification", {"num_register_tokens": 3}),
        ("Dinov2WithRegistersModel", {}),
    ],
    ids=str,
)
def test_transformers(tmp_path, name, config):
    """Mask token and pooler, which have no meaning here, are carried along."""
    kind = getattr(transformers, name)
    with unmade():
        model = kind(
            kind.config_class(
                hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                patch_size=8, num_labels=5, **config,
            )
        )  # fmt: skip
    theirs, _ = filled(model)
    theirs.save_pretrained(tmp_path / "a")
    assert_round_trip(tmp_path / "a", tmp_path / "b", "huggingface", read)
    again, how = kind.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(how.values())  # nothing missing, unexpected or of another shape
    state = theirs.state_dict()
    assert all(torch.equal(x, state[key]) for key, x in again.state_dict().items())
