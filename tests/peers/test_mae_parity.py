"""A masked autoencoder is Transformers' `ViTMAEForPreTraining`: prediction, mask, loss; and the
names of facebookresearch are those of a model with the same numbers.

All values are random, positions too: Transformers begin theirs with zeros.
"""

import jax
import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from peer_models import filled  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import vit_jax  # noqa: E402
from vit_jax.tasks.masked import targets  # noqa: E402

SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
    "image_size": 32, "patch_size": 4, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 40,
}  # fmt: skip


def saved(folder, **settings):
    config = transformers.ViTMAEConfig(**SIZES | settings)
    theirs, _ = filled(transformers.ViTMAEForPreTraining(config))
    theirs.save_pretrained(folder)
    return theirs.eval()


def drawn():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    return images, rng.uniform(size=(3, 64)).astype(np.float32)


def expected(theirs, images, noise):
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return theirs(pixels, noise=torch.from_numpy(noise))


def computed(folder, images, noise, **fields):
    model, params, report = vit_jax.load_pretrained(folder, decoder=True, say=None, **fields)
    assert not [fate for fate in report.fates.values() if fate != "loaded"]
    told, out = jax.jit(lambda p, x: model.apply(p, x, noise=noise))(params, images)
    wanted = targets(images, 4, model.config.norm_pixels)
    loss = np.square(told - wanted).mean(axis=-1)[out["mask"]].mean()
    return model, np.asarray(told), np.asarray(out["mask"]), loss


@pytest.mark.parametrize("settings", [
    {}, {"norm_pix_loss": True}, {"mask_ratio": 0.6, "hidden_act": "gelu_new"},
    {"layer_norm_eps": 1e-6, "qkv_bias": False},
], ids=str)  # fmt: skip
def test_prediction_mask_and_loss_are_those_of_transformers(tmp_path, settings):
    theirs = saved(tmp_path / "mae", **settings)
    images, noise = drawn()
    wanted = expected(theirs, images, noise)
    model, told, mask, loss = computed(tmp_path / "mae", images, noise)
    assert model.family.name == "mae"
    np.testing.assert_allclose(told, wanted.logits.numpy(), atol=1e-4)
    np.testing.assert_array_equal(mask, wanted.mask.numpy())
    assert float(loss) == pytest.approx(float(wanted.loss), rel=1e-4)


def renamed(folder, layers):
    """The tensors on disk, with the decoder's blocks as the published files name them."""
    tensors = load_file(folder / "model.safetensors")
    old = "decoder.decoder_encoder.layer."
    return {name.replace(old, layers): x for name, x in tensors.items()}


def test_the_decoder_has_the_names_of_published_folders_too(tmp_path):
    theirs = saved(tmp_path / "mae")
    tensors = renamed(tmp_path / "mae", "decoder.decoder_layers.")
    assert "decoder.decoder_layers.2.output.dense.bias" in tensors
    save_file(tensors, tmp_path / "mae" / "model.safetensors")
    images, noise = drawn()
    _, told, _, _ = computed(tmp_path / "mae", images, noise)
    np.testing.assert_allclose(told, expected(theirs, images, noise).logits.numpy(), atol=1e-4)


# facebookresearch's names, by Transformers' behind the prefix of a block.
PARTS = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1",
    "attention.output.dense": "attn.proj", "output.dense": "mlp.fc2",
}  # fmt: skip
WHOLE = {
    "vit.embeddings.cls_token": "cls_token", "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.layernorm": "norm",
}  # fmt: skip


def as_facebook(tensors):
    """As a state dict of models_mae.py, with one matrix for queries, keys and values."""
    out = {}
    for name, x in tensors.items():
        block, _, rest = name.partition(".layer.")
        if not rest:
            whole, dot, kind = name.rpartition(".")
            new = WHOLE.get(name) or WHOLE.get(whole, whole) + dot + kind
            out[new.removeprefix("decoder.")] = x
            continue
        number, _, rest = rest.partition(".")
        at = f"{'decoder_' if 'decoder' in block else ''}blocks.{number}"
        part, _, kind = rest.rpartition(".")
        if part.endswith("query"):
            of = [tensors[name.replace("query", one)] for one in ("query", "key", "value")]
            out[f"{at}.attn.qkv.{kind}"] = torch.cat(of)
        elif part in PARTS:
            out[f"{at}.{PARTS[part]}.{kind}"] = x
    return out


def test_the_names_of_facebookresearch_are_read_to_the_same_numbers(tmp_path, capsys):
    theirs = saved(tmp_path / "mae", layer_norm_eps=1e-6, norm_pix_loss=True)
    file = tmp_path / "mae_full.pth"
    tensors = as_facebook(load_file(tmp_path / "mae" / "model.safetensors"))
    assert {"decoder_blocks.2.attn.qkv.weight", "decoder_embed.bias", "mask_token"} <= set(tensors)
    torch.save({"model": tensors, "epoch": 3}, file)
    images, noise = drawn()
    heads = {"num_heads": 3, "decoder_heads": 2}
    model, told, _, loss = computed(file, images, noise, **heads)
    wanted = expected(theirs, images, noise)
    np.testing.assert_allclose(told, wanted.logits.numpy(), atol=1e-4)
    assert float(loss) == pytest.approx(float(wanted.loss), rel=1e-4)
    assert model.data_config.mean == (0.485, 0.456, 0.406)
    # Without its decoder, it is a ViT, as it was.
    vit, _, report = vit_jax.load_pretrained(file, num_heads=3, say=None)
    assert (vit.family.name, vit.config.num_classes) == ("vit", 0)
    assert report.fates["decoder_pred.weight"] == "unused (the decoder of another task)"


def test_the_sizes_of_the_papers_models_have_as_many_parameters():
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
    for name, sizes in {
        "mae_vit_base_patch16_224": {},
        "mae_vit_large_patch16_224": large | {"intermediate_size": 4096},
        "mae_vit_huge_patch14_224": huge | {"intermediate_size": 5120, "patch_size": 14},
    }.items():
        with torch.device("meta"):
            theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes))
        count = sum(p.numel() for p in theirs.parameters())
        assert vit_jax.create_model(name, scan=True).num_params == count
