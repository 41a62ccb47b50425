"""Weights of one layout, written in another, give the same logits in that one's own package."""

import numpy as np
import pytest

PEERS = "needs the peers extra: pip install vit_jax[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
timm = pytest.importorskip("timm", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

from linen_big_vision import BigVisionViT  # noqa: E402
from linen_google import BiTResNet, GoogleMixer, GoogleViT  # noqa: E402
from made_weights import fill, forward, names_and_shapes, save_npz  # noqa: E402
from peer_models import (  # noqa: E402
    LOGITS,
    assert_no_warning_but_of_images,
    computed,
    filled,
    run,
    some_images,
    unmade,
)
from safetensors.numpy import save_file  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_round_trips import dinov2_shapes  # noqa: E402
from test_transformers_parity import answer  # noqa: E402

from vit_jax import cli  # noqa: E402
from vit_jax.errors import UserError  # noqa: E402
from vit_jax.pretrained.load import load_pretrained  # noqa: E402
from vit_jax.pretrained.save import save_pretrained  # noqa: E402

SIDE = 32
TINY = {"patch": 8, "width": 48, "depth": 2, "num_heads": 3, "mlp_dim": 80, "num_classes": 5}
TIMM = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": SIDE, "num_classes": 5}
HUGGINGFACE = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
    "image_size": SIDE, "patch_size": 8, "num_labels": 5,
}  # fmt: skip
# What timm computes with where Google's hybrids and BiT have other numbers.
TIMM_NORMS = {"gn_eps": 1e-5, "weight_std": ("var", 1e-8)}


@pytest.fixture
def converted(tmp_path):
    """Writes a source in another layout, by way of a checkpoint of our own where asked to;
    returns the path and the notes."""

    def convert(source, to, by_orbax=False, **given):
        model, params, report = load_pretrained(source, say=None, **given)
        assert_no_warning_but_of_images(report)
        if by_orbax:
            save_pretrained(model, params, tmp_path / "orbax", "orbax")
            model, params, _ = load_pretrained(tmp_path / "orbax", say=None)
        target = tmp_path / {"google": "b.npz", "big_vision": "b.npz"}.get(to, f"{to}_folder")
        return target, save_pretrained(model, params, target, to)

    return convert


@pytest.fixture
def npz(tmp_path):
    """A file of a Linen model for images of that size, and its values."""

    def make(module, images):
        flat = fill(names_and_shapes(module, images.shape[1:3]))
        save_npz(tmp_path / "a.npz", flat)
        return tmp_path / "a.npz", flat

    return make


def by_timm(folder, images, **arguments):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()
    return run(model, images)[0]


def by_transformers(folder, images, expected):
    """Nothing may be missing from the folder or superfluous in it."""
    kind = getattr(transformers, expected)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures == [expected]
    model, how = kind.from_pretrained(folder, output_loading_info=True)
    # The pooler of a model without a head is the one part that other packages do not have.
    assert {name for name in how["missing_keys"] if "pooler" not in name} == set()
    assert not how["unexpected_keys"]
    assert not how["mismatched_keys"]
    return run(model.eval(), images, logits=answer)[0]


def assert_equal_logits(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.ptp(theirs) > 0.1  # made weights give logits of order one
    difference = np.abs(ours - theirs).max()
    print(f"logits {difference:.1e}")
    assert difference <= LOGITS


@pytest.fixture
def images():
    return some_images((SIDE, SIDE), 2)


@pytest.mark.parametrize("by_orbax", [False, True])
@pytest.mark.parametrize("how", [{}, {"pool": "gap"}, {"numbering": "linen"}], ids=str)
def test_google_to_timm(converted, npz, images, how, by_orbax):
    module = GoogleViT(**TINY, **how)
    source, flat = npz(module, images)
    folder, notes = converted(source, "timm", by_orbax)
    assert notes == []
    assert_equal_logits(by_timm(folder, images), forward(module, flat, images)[0])


def test_google_to_transformers(converted, npz, images):
    source, flat = npz(GoogleViT(**TINY), images)
    folder, notes = converted(source, "huggingface")
    assert notes == []
    there = by_transformers(folder, images, "ViTForImageClassification")
    assert_equal_logits(there, forward(GoogleViT(**TINY), flat, images)[0])


def test_an_image_that_is_no_square_to_timm(converted, npz):
    images = some_images((16, 40), 2)
    source, flat = npz(GoogleViT(**TINY), images)
    folder, _ = converted(source, "timm", source_image_size=(16, 40))
    assert_equal_logits(by_timm(folder, images), forward(GoogleViT(**TINY), flat, images)[0])


@pytest.mark.parametrize("resnet", [(), (2, 2, 2, 2)])
def test_a_hybrid_of_google_to_timm_with_its_numbers_said(converted, npz, resnet):
    """timm's norms and standardisation are others, which the notes say: its logits are those of
    Google's model with timm's numbers."""
    images = some_images((64, 64), 2)
    patch = 8 if resnet == () else 1  # of features; timm's architectures have these
    module = GoogleViT(**TINY | {"patch": patch}, resnet=resnet)
    source, flat = npz(module, images)
    folder, notes = converted(source, "timm")
    assert [note.split(" ")[0] for note in notes] == ["groupnorm_eps", "standardization"]
    logits, _ = forward(module.clone(**TIMM_NORMS), flat, images)
    assert_equal_logits(by_timm(folder, images), logits)


def test_bit_of_google_to_timm_with_its_standardisation_said(converted, npz):
    images = some_images((64, 64))
    module = BiTResNet(5)
    source, flat = npz(module, images)
    folder, notes = converted(source, "timm", image_size=64)
    assert [note.split(" ")[0] for note in notes] == ["standardization"]
    logits, _ = forward(module.clone(weight_std=("var", 1e-8)), flat, images)
    assert_equal_logits(by_timm(folder, images), logits)


def test_mixer_of_google_to_timm_with_its_gelu_said(converted, npz):
    images = some_images((64, 64), 2)
    module = GoogleMixer(32, 512, 8, 40, 96, 5)
    source, flat = npz(module, images)
    logits = forward(module, flat, images)[0]
    folder, notes = converted(source, "timm")
    assert [note.split(" ")[0] for note in notes] == ["gelu"]
    tanh = by_timm(folder, images, act_layer=timm.layers.GELUTanh)  # config.json cannot say it
    assert_equal_logits(tanh, logits)
    assert np.abs(by_timm(folder, images) - logits).max() > 1e-5


def test_a_mixer_that_timm_has_no_name_for_is_refused(converted, npz, images):
    source, _ = npz(GoogleMixer(8, 32, 2, 24, 40, 5), images)
    with pytest.raises(UserError, match="patch_size 8, num_layers 2, hidden_size 32"):
        converted(source, "timm")


@pytest.mark.parametrize("posemb", ["learn", "sincos2d"])
@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_big_vision_to_timm(converted, npz, images, pool, posemb):
    module = BigVisionViT(**TINY, pool=pool, posemb=posemb, scan=pool == "gap")
    source, flat = npz(module, images)
    logits = forward(module, flat, images)[0]
    size = {"source_image_size": (SIDE, SIDE)}
    folder, notes = converted(source, "timm", by_orbax=pool == "map", **size)
    assert notes == []
    assert_equal_logits(by_timm(folder, images), logits)


@pytest.mark.parametrize("posemb", ["learn", "sincos2d"])
def test_big_vision_to_google_and_transformers(converted, npz, images, posemb):
    module = BigVisionViT(**TINY, pool="tok", posemb=posemb)
    source, flat = npz(module, images)
    logits = forward(module, flat, images)[0]
    size = {"source_image_size": (SIDE, SIDE)}
    target, notes = converted(source, "google", **size)
    assert notes == []
    with np.load(target) as flat:
        assert_equal_logits(forward(GoogleViT(**TINY), dict(flat), images)[0], logits)
    folder, notes = converted(source, "huggingface", **size)
    assert notes == []
    assert_equal_logits(by_transformers(folder, images, "ViTForImageClassification"), logits)


def test_google_to_big_vision(converted, npz, images):
    module = GoogleViT(**TINY)
    source, flat = npz(module, images)
    logits = forward(module, flat, images)[0]
    target, notes = converted(source, "big_vision")
    assert notes == []
    with np.load(target) as flat:
        there = forward(BigVisionViT(**TINY, pool="tok"), dict(flat), images)[0]
    assert_equal_logits(there, logits)


@pytest.fixture
def of_timm(tmp_path):
    """A file of a timm model, and its logits."""

    def make(name, images, **arguments):
        with unmade():
            model = timm.create_model(name, **TIMM | arguments)
        model, flat = filled(model)
        save_file(flat, tmp_path / "a.safetensors")
        return tmp_path / "a.safetensors", run(model, images)[0]

    return make


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("vit_base_patch16_224", {"patch_size": 8}, "ViTForImageClassification"),
        ("vit_base_patch16_224", {"num_classes": 0, "qkv_bias": False}, "ViTModel"),
        (
            "vit_base_patch16_224", {"patch_size": 8, "no_embed_class": True},
            "ViTForImageClassification",
        ),
        ("deit_small_distilled_patch16_224", {}, "DeiTForImageClassificationWithTeacher"),
        ("vit_small_patch14_dinov2", {"num_classes": 0}, "Dinov2Model"),
        ("vit_small_patch14_reg4_dinov2", {"num_classes": 0}, "Dinov2WithRegistersModel"),
        ("vit_giant_patch14_reg4_dinov2", {"num_classes": 0}, "Dinov2WithRegistersModel"),
    ],
)  # fmt: skip
def test_timm_to_transformers(converted, of_timm, name, arguments, expected):
    side = 56 if "dinov2" in name else SIDE
    images = some_images((side, side), 2)
    source, logits = of_timm(name, images, img_size=side, **arguments)
    folder, notes = converted(source, "huggingface", by_orbax="reg4" in name, num_heads=3)
    assert notes == []
    assert_equal_logits(by_transformers(folder, images, expected), logits)


def test_registers_that_vit_of_transformers_has_no_place_for_are_refused(
    converted, of_timm, images
):
    source, _ = of_timm("vit_base_patch16_224", images, patch_size=8, reg_tokens=2)
    with pytest.raises(UserError, match="registers"):
        converted(source, "huggingface", num_heads=3)


def test_timm_to_google(converted, of_timm, images):
    source, logits = of_timm("vit_base_patch16_224", images, patch_size=8)
    target, notes = converted(source, "google", num_heads=3)
    assert [note.split(" ")[0] for note in notes] == ["gelu"]
    with np.load(target) as flat:
        module = GoogleViT(**TINY | {"mlp_dim": 192}, gelu="exact")
        assert_equal_logits(forward(module, dict(flat), images)[0], logits)


@pytest.fixture
def of_transformers(tmp_path):
    """A folder of a model of Transformers, and its logits."""

    def make(name, images, **config):
        kind = getattr(transformers, name)
        with unmade():
            model = kind(kind.config_class(**HUGGINGFACE | config))
        model, _ = filled(model)
        model.save_pretrained(tmp_path / "a")
        return tmp_path / "a", run(model, images, logits=answer)[0]

    return make


@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_transformers_to_google(converted, of_transformers, images, eps):
    source, logits = of_transformers("ViTForImageClassification", images, layer_norm_eps=eps)
    target, notes = converted(source, "google")
    said = ["gelu"] if eps == 1e-6 else ["gelu", "layernorm_eps"]
    assert [note.split(" ")[0] for note in notes] == said
    with np.load(target) as flat:
        there, _ = forward(GoogleViT(**TINY, gelu="exact"), dict(flat), images)
    assert_equal_logits(there, logits)
    # timm reads Google's files too, into a model of its own.
    theirs = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5,
        mlp_ratio=80.5 / 48,
    )  # fmt: skip
    theirs.load_pretrained(str(target))
    assert_equal_logits(run(theirs.eval(), images)[0], logits)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ViTForImageClassification", {"hidden_act": "quick_gelu", "qkv_bias": False}),
        ("DeiTForImageClassificationWithTeacher", {}),
        ("DeiTForImageClassification", {}),
        ("Dinov2Model", {"mlp_ratio": 3}),
        ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
    ],
)
def test_transformers_to_timm(converted, of_transformers, images, name, config):
    config = {k: v for k, v in config.items()} | {"layer_norm_eps": 1e-6}
    source, logits = of_transformers(name, images, **config)
    folder, notes = converted(source, "timm")
    assert notes == []
    assert_equal_logits(by_timm(folder, images), logits)


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"]
)
def test_an_image_that_is_no_square_of_transformers_and_back(converted, of_transformers, name):
    images = some_images((16, 40), 2)
    source, logits = of_transformers(name, images, image_size=(16, 40))
    for to in ("huggingface", "timm"):
        folder, _ = converted(source, to)
        there = by_timm(folder, images) if to == "timm" else by_transformers(folder, images, name)
        assert_equal_logits(there, logits)


def test_an_image_that_is_no_square_is_refused_for_the_dinov2_of_transformers(converted, of_timm):
    images = some_images((56, 28), 1)
    source, _ = of_timm("vit_small_patch14_dinov2", images, img_size=(56, 28), num_classes=0)
    with pytest.raises(UserError, match="their DINOv2 takes squares"):
        converted(source, "huggingface", num_heads=3, source_image_size=(56, 28))


@pytest.mark.parametrize("registers", ["", "WithRegisters"])
@pytest.mark.parametrize("to", ["timm", "dinov2"])
def test_a_classifier_of_dinov2_loses_its_head_and_what_only_that_read(
    of_transformers, tmp_path, images, registers, to
):
    source, _ = of_transformers(f"Dinov2{registers}ForImageClassification", images)
    target = tmp_path / ("b.safetensors" if to == "dinov2" else "b")
    command = ["convert", str(source), str(target), f"--to={to}", "--num-classes=0"]
    assert cli.main(command) == 0
    theirs = getattr(transformers, f"Dinov2{registers}Model").from_pretrained(source).eval()
    tokens = run(theirs, images, logits=lambda out: out.pooler_output)[0]
    if to == "timm":
        return assert_equal_logits(by_timm(target, images), tokens)
    model, params, _ = load_pretrained(target, say=None)
    return assert_equal_logits(computed(model, params, images)[0], tokens)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_wee_patch16_reg1_gap_256", {}), ("vit_little_patch16_reg4_gap_256", {}),
        ("vit_base_patch16_224", {"reg_tokens": 2, "class_token": False, "global_pool": "avg"}),
        ("vit_base_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
        ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ],
    ids=str,
)  # fmt: skip
def test_timm_and_back_with_registers_and_without_class_token(
    converted, of_timm, images, name, arguments
):
    source, logits = of_timm(name, images, patch_size=8, **arguments)
    folder, notes = converted(source, "timm", num_heads=3)
    assert notes == []
    assert_equal_logits(by_timm(folder, images), logits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch14_dinov2", "Dinov2Model"),
        ("vit_giant_patch14_dinov2", "Dinov2Model"),
        ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegistersModel"),
        ("vit_giant_patch14_reg4_dinov2", "Dinov2WithRegistersModel"),
    ],
)
@pytest.mark.parametrize("chunks", [0, 2])
def test_dinov2_hub_to_transformers_and_timm(converted, tmp_path, name, expected, chunks):
    """Held to timm's own reading of the hub's files, which it knows without chunks."""
    images = some_images((56, 56), 2)
    kind = {"registers": 4 * ("reg4" in name), "swiglu": "giant" in name, "depth": 4, "width": 48}
    kind["hidden"] = 128 if kind["swiglu"] else 192
    flat = fill(dinov2_shapes(**kind), layout="torch")
    theirs = timm.create_model(name, embed_dim=48, depth=4, num_heads=3, img_size=56).eval()
    state = {key: torch.from_numpy(x) for key, x in flat.items()}
    state = timm.models.vision_transformer.checkpoint_filter_fn(state, theirs)
    theirs.load_state_dict(state)
    logits = run(theirs, images)[0]
    if chunks:
        chunked = {f"blocks.{i}.": f"blocks.{i // 2}.{i}." for i in range(4)}
        for old, new in chunked.items():
            flat = {k.replace(old, new, 1) if k.startswith(old) else k: x for k, x in flat.items()}
        assert flat.keys() == dinov2_shapes(**kind, chunks=2).keys()
    save_file(flat, tmp_path / "a.safetensors")
    for to in ("timm", "huggingface"):
        folder, notes = converted(tmp_path / "a.safetensors", to, num_heads=3)
        assert notes == []
        there = (
            by_timm(folder, images) if to == "timm" else by_transformers(folder, images, expected)
        )
        assert_equal_logits(there, logits)


def test_a_width_that_no_dinov2_of_transformers_has_is_refused(converted, of_timm):
    images = some_images((56, 56), 1)
    source, _ = of_timm(
        "vit_small_patch14_dinov2", images, img_size=56, num_classes=0, mlp_ratio=3.5
    )
    with pytest.raises(UserError, match="width 48 with an mlp_dim of 168"):
        converted(source, "huggingface", num_heads=3)


def test_dinov2_of_timm_to_the_hub(converted, of_timm, tmp_path):
    """timm reads what is written as it reads the hub's files."""
    images = some_images((56, 56), 2)
    name = "vit_giant_patch14_reg4_dinov2"
    source, logits = of_timm(name, images, img_size=56, num_classes=0)
    model, params, _ = load_pretrained(source, say=None, num_heads=3)
    save_pretrained(model, params, tmp_path / "hub.safetensors", "dinov2")
    theirs = timm.create_model(name, **TIMM | {"img_size": 56, "num_classes": 0}).eval()
    state = load_file(tmp_path / "hub.safetensors")
    assert not state["mask_token"].any()
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, theirs))
    assert_equal_logits(run(theirs, images)[0], logits)
