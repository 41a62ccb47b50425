"""YOLOS is Transformers' `YolosForObjectDetection`, with and without positions between blocks."""

import jax
import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
pytest.importorskip("transformers", reason=PEERS)
from transformers import YolosConfig, YolosForObjectDetection  # noqa: E402

import vit_jax  # noqa: E402
from vit_jax.pretrained.save import save_pretrained  # noqa: E402

SIZE = (64, 96)


@pytest.mark.parametrize("mid", [False, True])
def test_logits_and_boxes_are_transformers(mid, tmp_path):
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        image_size=list(SIZE), patch_size=16, num_detection_tokens=7, num_labels=5,
        use_mid_position_embeddings=mid,
    )  # fmt: skip
    theirs = YolosForObjectDetection(config).eval()
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if "norm" in name or "position" in name or "token" in name:
                tensor.copy_(float("norm" in name and "weight" in name) + 0.3
                             * torch.randn_like(tensor))  # fmt: skip
    theirs.save_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)), output_hidden_states=True)
    model, params, _ = vit_jax.load_pretrained(tmp_path, say=None)
    logits, out = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(out["boxes"], expected.pred_boxes.numpy(), atol=1e-4)
    for layer in range(2):  # of the last one there is the norm of it
        found = np.asarray(out[f"block{layer:02d}"])
        if not mid:  # positions are added behind a block there, before the next one here
            np.testing.assert_allclose(found, expected.hidden_states[1 + layer], atol=1e-4)
    assert model.config.mid_positions == mid
    save_pretrained(model, params, tmp_path / "again", to="huggingface-yolos")
    from safetensors.numpy import load_file

    again, before = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "again", tmp_path)
    )
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)
