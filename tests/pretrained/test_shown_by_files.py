"""How a file says that images are shown: what can be done here is done, all else refused by name. A
run with `init` shows images itself, so it starts all the same, and says what is unused."""

import json
from pathlib import Path

import pytest
from made_weights import fill
from safetensors.numpy import save_file

from tests.digits_run import tiny_config
from vit_jax.errors import UserError
from vit_jax.pretrained.weights import open_weights
from vit_jax.training.start import open_origin

GOLDEN = Path(__file__).parent / "golden"


def folder(path: Path, name: str, preprocessor=None, **config) -> Path:
    told = json.loads((GOLDEN / f"{name}.json").read_text())
    save_file(fill(told["shapes"], layout="torch"), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(told["config"] | config))
    if preprocessor:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return path


def of_run(path: Path):
    return open_origin(tiny_config(init=str(path)), path / "work")


REFUSED = {
    "another processor": (
        "hf_vit", {"image_processor_type": "NobodysImageProcessor", "image_mean": [0.1, 0.2, 0.3]},
        {}, "NobodysImageProcessor is no processor of ViT, DeiT, Bit, Siglip, ConvNext",
    ),
    "a border": (
        "hf_vit", {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40},
                   "crop_size": 48, "image_mean": [0.1, 0.2, 0.3]},
        {}, "do_center_crop True, crop_size 48 together have no counterpart here",
    ),
    "padding": (
        "hf_vit", {"do_pad": True, "size": 48, "image_mean": [0.1, 0.2, 0.3]}, {},
        "have no counterpart here",
    ),
    "sizes of their own": (
        "hf_vit", {"do_resize": False, "image_mean": [0.1, 0.2, 0.3]}, {}, "do_resize False",
    ),
    "timm's border": (
        "timm_folder", None, {"pretrained_cfg": {"crop_mode": "border", "mean": [0.1, 0.2, 0.3]}},
        "crop_mode 'border' has no counterpart here",
    ),
    "timm's unknown filter": (
        "timm_folder", None, {"pretrained_cfg": {"interpolation": "cubic",
                                                 "mean": [0.1, 0.2, 0.3]}},
        "interpolation 'cubic' is none of nearest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_cannot_be_done_is_refused_and_unused_in_a_run_that_starts_from_it(tmp_path, wrong):
    name, preprocessor, config, says = REFUSED[wrong]
    path = folder(tmp_path, name, preprocessor, **config)
    with pytest.raises(UserError) as refused:
        open_weights(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    weights = of_run(path)
    (note,) = [note for note in weights.notes if says in note]
    assert note.endswith("; unused, because the run's pipeline shows the images")
    assert weights.model.data_config.mean == (0.1, 0.2, 0.3)  # which the run goes by


@pytest.mark.parametrize("how", ["BICUBIC", "hamming", "lanczos"])
def test_filters_of_timm_are_known_in_any_case(tmp_path, how):
    path = folder(tmp_path, "timm_folder", pretrained_cfg={"interpolation": how})
    assert open_weights(path).model.data_config.interpolation == how.lower()


PIPELINES = {
    "CLIP": ({"size": 56, "crop_size": 48}, "decode|resize_small(56, 'bicubic')|central_crop"),
    "Siglip": ({"size": {"height": 48, "width": 48}}, "decode|resize((48, 48), 'bicubic')"),
    "ConvNext": (
        {"size": {"shortest_edge": 48}, "crop_pct": 0.8},
        "decode|resize_small(60, 'bicubic')|central_crop",
    ),
    "EfficientNet": ({"size": 48, "resample": 0}, "decode|resize((48, 48), 'nearest')"),
    "ViT": ({"size": 48, "do_resize": False}, "decode"),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_processors_of_other_models_become_pipelines(tmp_path, kind):
    shown, pipeline = PIPELINES[kind]
    stated = shown | {"image_processor_type": f"{kind}ImageProcessor"}
    weights = open_weights(folder(tmp_path, "hf_vit", stated))
    size = weights.model.config.image_size
    assert size == (48, 48)
    assert weights.model.data_config.image_size is None
    assert weights.model.data_config.pipeline(size).removesuffix("(floor=True)") == pipeline


def test_efficientnets_processor_divides_twice(tmp_path):
    stated = {"image_processor_type": "EfficientNetImageProcessor", "size": 48,
              "image_mean": [0.4] * 3, "image_std": [0.2] * 3, "rescale_offset": True}  # fmt: skip
    data = open_weights(folder(tmp_path, "hf_vit", stated)).model.data_config
    # (p / 255 - 1 - 0.4) / 0.2, divided by 0.2 once more
    assert data.mean == pytest.approx((1.4,) * 3)
    assert data.std == pytest.approx((0.04,) * 3)
