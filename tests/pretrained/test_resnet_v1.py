"""ResNets of torchvision and timm are read: a batch norm becomes a scale and a bias that stay, and
such a classifier is the backbone of a detector."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_jax
from tests.refusals import refused
from vit_jax.pretrained.load import fill, load_pretrained
from vit_jax.pretrained.weights import open_weights


def state_dict(width=4, units=(2, 1), inputs=None, norm="batch"):
    """Random tensors under torchvision's names. `inputs`: channels of a 3 x 3 kernel."""
    rng = np.random.default_rng(0)
    tensors = {}

    def put(name, *shape):
        spread = max(np.prod(shape[1:]), 1) ** -0.5
        tensors[name] = (spread * rng.standard_normal(shape)).astype(np.float32)

    def put_norm(name, features):
        put(f"{name}.bias", features)
        tensors[f"{name}.weight"] = rng.uniform(0.5, 2, features).astype(np.float32)
        if norm == "batch":
            put(f"{name}.running_mean", features)
            tensors[f"{name}.running_var"] = rng.uniform(0.5, 2, features).astype(np.float32)
            tensors[f"{name}.num_batches_tracked"] = np.array(7)

    put("conv1.weight", width, 3, 7, 7)
    put_norm("bn1", width)
    before = width
    for stage, count in enumerate(units):
        narrow = width * 2**stage
        for unit in range(count):
            name = f"layer{stage + 1}.{unit}"
            for n, (out, into, side) in enumerate(
                [(narrow, before, 1), (narrow, inputs or narrow, 3), (4 * narrow, narrow, 1)], 1
            ):
                put(f"{name}.conv{n}.weight", out, into, side, side)
                put_norm(f"{name}.bn{n}", out)
            if unit == 0:
                put(f"{name}.downsample.0.weight", 4 * narrow, before, 1, 1)
                put_norm(f"{name}.downsample.1", 4 * narrow)
            before = 4 * narrow
    put("fc.weight", 5, before)
    put("fc.bias", 5)
    return tensors


def test_a_batch_norm_becomes_a_scale_and_a_bias(tmp_path):
    tensors = state_dict()
    save_file(tensors, tmp_path / "a.safetensors")
    model, params, report = load_pretrained(tmp_path / "a.safetensors", say=None)
    c = model.config
    assert (c.norm, c.resnet_layers, c.stage_width, c.num_classes) == ("frozen", (2, 1), 4, 5)
    norm = params["backbone"]["stage1"]["unit02"]["norm3"]
    x = np.random.default_rng(1).standard_normal((3, 16))
    theirs = [tensors[f"layer1.1.bn3.{part}"].astype(np.float64)
              for part in ("running_mean", "running_var", "weight", "bias")]  # fmt: skip
    normalised = (x - theirs[0]) / np.sqrt(theirs[1] + 1e-5) * theirs[2] + theirs[3]
    np.testing.assert_allclose(x * norm["scale"] + norm["bias"], normalised, atol=1e-5)
    np.testing.assert_array_equal(
        params["backbone"]["stage2"]["unit01"]["conv2"]["kernel"],
        tensors["layer2.0.conv2.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["fc.weight"].T)
    assert report.fates["bn1.num_batches_tracked"] == "unused (a counter)"
    assert model.data_config.mean == (0.485, 0.456, 0.406)


def test_group_norms_are_read_by_the_same_names(tmp_path):
    tensors = state_dict(norm="group")
    save_file(tensors, tmp_path / "a.safetensors")
    model, params, _ = load_pretrained(tmp_path / "a.safetensors", say=None)
    assert model.config.norm == "group"
    np.testing.assert_array_equal(
        params["backbone"]["root"]["norm"]["scale"], tensors["bn1.weight"]
    )


def test_it_is_the_backbone_of_a_detector(tmp_path):
    save_file(state_dict(), tmp_path / "a.safetensors")
    classifier, theirs, _ = load_pretrained(
        tmp_path / "a.safetensors", image_size=(32, 48), say=None
    )
    detector = vit_jax.create_model(
        "detr_resnet50", resnet_layers=(2, 1), stage_width=4, image_size=(32, 48), num_classes=2,
        detector_width=8, detector_heads=2, detector_mlp_dim=8, detector_encoder=1,
        detector_decoder=1, num_queries=3,
    )  # fmt: skip

    params, report = fill(open_weights(tmp_path / "a.safetensors"), detector)
    x = np.random.default_rng(2).standard_normal((2, 32, 48, 3)).astype(np.float32)
    _, out = jax.jit(detector.apply)(params, x)
    _, wanted = jax.jit(classifier.apply)(theirs, x)
    np.testing.assert_allclose(out["backbone_encoded"], wanted["encoded"], atol=1e-4)
    assert report.fates["head/kernel"].startswith("unused")


def test_other_resnets_are_refused_in_one_line(tmp_path, vit):
    cases = {
        "resnext": (state_dict(inputs=2), "kernel of 2 to 4 channels, not 4 to 4: ResNeXt"),
        "cut": ({k: v for k, v in state_dict().items() if k != "layer1.0.conv1.weight"}, "missing"),
        "se": (state_dict() | {"layer1.0.se.fc1.weight": np.zeros((1, 4), np.float32)}, "se.fc1"),
        "basic": ({k: v for k, v in state_dict().items() if "conv3" not in k}, "no known layout"),
    }
    for name, (tensors, said) in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        assert said in refused(vit, "inspect", tmp_path / f"{name}.safetensors"), name


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_names_say_the_depth(depth):
    model = vit_jax.create_model(f"resnet{depth}_frozen_bn")
    assert model.num_params == {50: 25_557_032, 101: 44_549_160, 152: 60_192_808}[depth]
    assert vit_jax.models.registry.name_of(model.config) == f"resnet{depth}_frozen_bn"
