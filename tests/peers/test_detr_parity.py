"""DETR is Transformers' `DetrForObjectDetection`: logits, boxes, loss, and the folders of both.
Names of facebookresearch's.

Norms are random, because two layer norms in a row are nearly one as they begin.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
pytest.importorskip("transformers", reason=PEERS)
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

import vit_jax  # noqa: E402
from tests.exporting.tiny_models import DETECTOR, NAMES, RESNET, VIT, made  # noqa: E402
from vit_jax.data.pipeline_text import parse  # noqa: E402
from vit_jax.pretrained.detr import FACEBOOK_DETR, HUGGINGFACE_DETR  # noqa: E402
from vit_jax.pretrained.huggingface_detectors import processor_of  # noqa: E402
from vit_jax.pretrained.save import save_pretrained  # noqa: E402
from vit_jax.pretrained.weights import open_weights  # noqa: E402
from vit_jax.tasks.detection import LossWeights, set_loss  # noqa: E402

SIZE = (96, 128)


BACKBONES = {
    "timm": {"use_timm_backbone": True, "backbone": "resnet50", "use_pretrained_backbone": False},
    "transformers": {
        "use_timm_backbone": False, "backbone": None,
        "backbone_config": ResNetConfig(out_features=["stage4"], depths=[2, 1, 1, 2]),
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=BACKBONES)
def theirs(request, tmp_path_factory):
    """(their model, the folder that it is saved in)."""
    torch.manual_seed(0)
    config = DetrConfig(
        **BACKBONES[request.param], num_queries=7, d_model=32, encoder_layers=2, decoder_layers=3,
        encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=8,
        decoder_attention_heads=8, num_labels=5, auxiliary_loss=False,
    )  # fmt: skip
    model = DetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name or ".bn" in name or "downsample.1" in name:
                positive = name.endswith(("weight", "running_var"))
                tensor.copy_((1.0 if positive else 0.0) + 0.2 * torch.rand_like(tensor))
    folder = tmp_path_factory.mktemp("detr")
    model.save_pretrained(folder)
    return model, folder


def pixels():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *SIZE, 3)).astype(np.float32)
    images[1, 64:], images[1, :, 96:] = 0.0, 0.0
    mask = np.zeros((2, *SIZE), np.int64)
    mask[0], mask[1, :64, :96] = 1, 1
    return images, mask, np.array([[1.0, 1.0], [64 / 96, 0.75]], np.float32)


def ours(path, images, content):
    model, params, _ = vit_jax.load_pretrained(path, image_size=SIZE, say=None)
    return jax.jit(lambda p, x: model.apply(p, x, content=content))(params, images)


def test_logits_and_boxes_of_every_layer_are_transformers(theirs):
    model, folder = theirs
    images, mask, content = pixels()
    with torch.no_grad():
        expected = model(
            torch.from_numpy(images.transpose(0, 3, 1, 2)), pixel_mask=torch.from_numpy(mask),
            output_hidden_states=True,
        )  # fmt: skip
    logits, out = ours(folder, images, content)
    of_encoder, of_decoder = expected.encoder_hidden_states, expected.decoder_hidden_states
    for layer in range(2):
        found = out[f"encoder_block{layer:02d}"][0]
        np.testing.assert_allclose(found, of_encoder[1 + layer][0].numpy(), atol=1e-4)
    of_ours = [out["decoder_block00"], out["decoder_block01"], out["pre_logits"]]  # that is normed
    for found, layer in zip(of_ours, of_decoder[1:], strict=True):
        np.testing.assert_allclose(found, layer.numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(out["boxes"], expected.pred_boxes.numpy(), atol=1e-4)
    np.testing.assert_allclose(
        out["encoded"][0], expected.encoder_last_hidden_state.numpy()[0], atol=1e-4
    )


def test_the_loss_is_transformers(theirs):
    model, folder = theirs
    images, mask, content = pixels()
    rng = np.random.default_rng(1)
    label = np.array([[3, 1, 0], [2, -1, -1]])
    boxes = np.concatenate([rng.uniform(0.3, 0.6, (2, 3, 2)), rng.uniform(0.1, 0.5, (2, 3, 2))], -1)
    targets = [
        {"class_labels": torch.tensor(one[one >= 0]),
         "boxes": torch.tensor(box[one >= 0], dtype=torch.float32)}
        for one, box in zip(label, boxes, strict=True)
    ]  # fmt: skip
    expected = model(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), pixel_mask=torch.from_numpy(mask),
        labels=targets,
    ).loss_dict  # fmt: skip
    logits, out = ours(folder, images, content)
    parts = set_loss(logits, out["boxes"], jnp.asarray(label), jnp.asarray(boxes, jnp.float32),
                     LossWeights(5.0, 2.0, 0.1))  # fmt: skip
    assert float(parts["class"]) == pytest.approx(float(expected["loss_ce"]), rel=1e-4)
    assert float(parts["l1"]) == pytest.approx(5 * float(expected["loss_bbox"]), rel=1e-4)
    assert float(parts["giou"]) == pytest.approx(2 * float(expected["loss_giou"]), rel=1e-4)


def test_facebooks_names_hold_the_same_model(theirs, tmp_path):
    _, folder = theirs
    images, _, content = pixels()
    model, params, _ = vit_jax.load_pretrained(folder, image_size=SIZE, say=None)
    path = tmp_path / "detr.safetensors"
    save_pretrained(model, params, path, to=FACEBOOK_DETR.name)
    from safetensors.numpy import load_file

    names = load_file(path)
    assert names["transformer.encoder.layers.0.self_attn.in_proj_weight"].shape == (96, 32)
    assert names["backbone.0.body.layer1.0.downsample.1.running_var"].shape == (256,)
    expected, _ = ours(folder, images, content)
    found, _ = ours(path, images, content)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_folder_of_theirs_is_written_again_tensor_by_tensor(theirs, tmp_path):
    from safetensors.numpy import load_file

    _, folder = theirs
    weights = open_weights(folder)
    model, params, _ = vit_jax.load_pretrained(folder, say=None)
    save_pretrained(model, params, tmp_path / "again", HUGGINGFACE_DETR.name,
                    dialect=weights.dialect)  # fmt: skip
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if "norm" not in name and ".bn" not in name and "downsample.1" not in name:
            np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    stated = DetrConfig.from_pretrained(tmp_path / "again").to_dict()
    for key in ("encoder_layers", "decoder_ffn_dim", "num_queries", "d_model", "id2label"):
        assert stated[key] == theirs[0].config.to_dict()[key]


TRAINED = {
    "resnet of Transformers": (
        "detr_resnet50", RESNET | DETECTOR | {"resnet_layers": (2, 1, 2)}, "huggingface-detr",
    ),
    "dilated resnet of timm": (
        "detr_resnet50_dc5", DETECTOR | {"image_size": SIZE, "num_classes": 3}, "huggingface-detr",
    ),
    "yolos": (
        "yolos_tiny", VIT | {"num_queries": 5, "mid_positions": True, "num_layers": 3},
        "huggingface-yolos",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED)
def test_transformers_read_what_is_written(kind, tmp_path):
    name, fields, to = TRAINED[kind]
    model, params = made(name, fields | {"image_size": SIZE}, written="decode|fit|pad")
    save_pretrained(model, params, tmp_path / "a", to, classes=NAMES)
    peer, found = AutoModelForObjectDetection.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert not any(found.values())
    assert list(peer.config.id2label.values()) == NAMES
    # A wide photo, which fills 83 of the canvas's 96 rows; the rest is padding.
    photo = np.random.default_rng(0).integers(0, 256, (41, 63, 3), np.uint8)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "a")
    pixels = processor(photo, return_tensors="pt")
    assert pixels["pixel_values"].shape[2:] == SIZE
    again = open_weights(tmp_path / "a").model.data_config
    assert again.written == "decode|fit|pad"  # the metadata of this package
    settings = processor_of(tmp_path / "a").images[0]
    values = np.asarray(settings.normalise(parse(settings.written, SIZE)(photo, None)))
    theirs = pixels["pixel_values"][0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(values, theirs, atol=1.01 / 255 / 0.25)  # one level
    with torch.no_grad():
        expected = peer.eval()(**pixels)
    images = pixels["pixel_values"].numpy().transpose(0, 2, 3, 1)
    content = np.array([[83 / SIZE[0], 1.0]], np.float32)
    logits, out = jax.jit(lambda p, x: model.apply(p, x, content=content))(params, images)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(out["boxes"], expected.pred_boxes.numpy(), atol=1e-4)
