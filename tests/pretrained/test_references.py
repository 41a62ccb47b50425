"""The restated Google models, held to timm, which reads Google's own files into its own models.

timm is an independent port: what both agree on, the imports may be held to. Where timm differs
(GroupNorm's epsilon, how a kernel is standardised, the exact GELU) the restatement is asked for
timm's form, and other tests see that each of these would be noticed.
"""

import functools
import math

import numpy as np
import pytest
from linen_big_vision import BigVisionViT, sincos2d
from linen_google import BiTResNet, GoogleMixer, GoogleViT
from made_weights import fill, forward, names_and_shapes, save_npz

TIMM_NORMS = {"gn_eps": 1e-5, "weight_std": ("var", 1e-8)}
TINY = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 128, "num_classes": 5}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed (the peers extra)")


@pytest.fixture(scope="module")
def timm(torch):
    return pytest.importorskip("timm", reason="timm is not installed (the peers extra)")


@pytest.fixture
def timm_vit(timm):
    """A tiny VisionTransformer of timm with the GELU that Google trained with."""
    return functools.partial(
        timm.models.vision_transformer.VisionTransformer,
        embed_dim=32, depth=2, num_heads=2, num_classes=5, act_layer="gelu_tanh",
    )  # fmt: skip


def some_images(height=16, width=24, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def read_by_timm(model, tmp_path, flat, prefix=""):
    save_npz(tmp_path / "made.npz", flat, prefix)
    model.load_pretrained(str(tmp_path / "made.npz"))
    return model.eval()


def run_timm(torch, model, images, modules):
    """Logits and the outputs of some modules, channels last."""
    out = {}

    def keep(name, _module, _inputs, output):
        output = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
        out[name] = output.detach().numpy()

    hooks = [
        module.register_forward_hook(functools.partial(keep, name))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    for hook in hooks:
        hook.remove()
    return logits, out


def blocks_of(model):
    return {f"block{i:02d}": block for i, block in enumerate(model.blocks)}


def units_of(stages, digits=1):
    return {
        f"block{i + 1}/unit{j + 1:0{digits}d}": unit
        for i, stage in enumerate(stages)
        for j, unit in enumerate(stage.blocks)
    }


def assert_same(ours, theirs, tolerance=5e-6):
    """Largest difference of logits and intermediates, relative to the largest value."""
    (logits, out), (their_logits, their_out) = ours, theirs
    pairs = {name: (out[name], value) for name, value in their_out.items()}
    for name, (a, b) in (pairs | {"logits": (logits, their_logits)}).items():
        assert a.shape == b.shape, name
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), name


def difference(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


PUBLISHED = {  # at 224 pixels and 1000 classes: of the registry of timm, and of the papers
    "Ti/16": (GoogleViT(16, 192, 12, 3, 768, 1000), 5_717_416),
    "B/16": (GoogleViT(16, 768, 12, 12, 3072, 1000), 86_567_656),
    "H/14": (GoogleViT(14, 1280, 32, 16, 5120, 1000), 632_045_800),
    "R50+B/16": (GoogleViT(1, 768, 12, 12, 3072, 1000, resnet=(3, 4, 9)), 98_659_112),
    "BiT-R50x1": (BiTResNet(1000), 25_549_352),
    "Mixer-B/16": (GoogleMixer(16, 768, 12, 384, 3072, 1000), 59_880_472),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_number_as_published(name):
    module, number = PUBLISHED[name]
    assert sum(map(math.prod, names_and_shapes(module, 224).values())) == number


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vit_tiny_r_s16_p8_224", GoogleViT(8, 192, 12, 3, 768, 1000, resnet=())),
        ("vit_small_r26_s32_224", GoogleViT(1, 384, 12, 6, 1536, 1000, resnet=(2, 2, 2, 2))),
        ("vit_base_r50_s16_224", GoogleViT(1, 768, 12, 12, 3072, 1000, resnet=(3, 4, 9))),
        ("resnetv2_50x1_bit", BiTResNet(1000)),
        ("resnetv2_50x3_bit", BiTResNet(1000, width_factor=3)),
        ("mixer_b16_224", GoogleMixer(16, 768, 12, 384, 3072, 1000)),
    ],
)
def test_parameters_number_as_in_timm(torch, timm, name, module):
    with torch.device("meta"):
        theirs = sum(p.numel() for p in timm.create_model(name, num_classes=1000).parameters())
    assert sum(map(math.prod, names_and_shapes(module, 224).values())) == theirs


def test_names_and_shapes_of_published_files():
    vit = names_and_shapes(PUBLISHED["B/16"][0], 224)
    hybrid = names_and_shapes(PUBLISHED["R50+B/16"][0], 224)
    big_vision = names_and_shapes(BigVisionViT(16, 768, 12, 12, 3072, 1000, "map", scan=True), 224)
    block = "Transformer/encoderblock_11"
    assert (
        vit.items()
        >= {
            "cls": (1, 1, 768),
            "embedding/kernel": (16, 16, 3, 768),
            "Transformer/posembed_input/pos_embedding": (1, 197, 768),
            f"{block}/LayerNorm_0/scale": (768,),
            f"{block}/MultiHeadDotProductAttention_1/query/kernel": (768, 12, 64),
            f"{block}/MultiHeadDotProductAttention_1/key/bias": (12, 64),
            f"{block}/MultiHeadDotProductAttention_1/out/kernel": (12, 64, 768),
            f"{block}/LayerNorm_2/bias": (768,),
            f"{block}/MlpBlock_3/Dense_0/kernel": (768, 3072),
            f"{block}/MlpBlock_3/Dense_1/kernel": (3072, 768),
            "Transformer/encoder_norm/scale": (768,),
            "head/kernel": (768, 1000),
        }.items()
    )
    assert len(vit) == 1 + 1 + 2 + 12 * 16 + 2 + 2  # cls, positions, embedding, blocks, norm, head
    assert (
        hybrid.items()
        >= {
            "conv_root/kernel": (7, 7, 3, 64),
            "gn_root/scale": (64,),
            "block1/unit1/conv_proj/kernel": (1, 1, 64, 256),
            "block1/unit1/gn_proj/bias": (256,),
            "block3/unit9/conv2/kernel": (3, 3, 256, 256),
            "block3/unit9/gn3/scale": (1024,),
            "embedding/kernel": (1, 1, 1024, 768),
            "Transformer/posembed_input/pos_embedding": (1, 197, 768),
        }.items()
    )
    assert (
        big_vision.items()
        >= {
            "pos_embedding": (1, 196, 768),
            "MAPHead_0/probe": (1, 1, 768),
            "MAPHead_0/MultiHeadDotProductAttention_0/query/kernel": (768, 12, 64),
            "MAPHead_0/LayerNorm_0/scale": (768,),
            "MAPHead_0/MlpBlock_0/Dense_0/kernel": (768, 3072),
            "Transformer/encoderblock/LayerNorm_1/scale": (12, 768),
            "Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": (12, 12, 64, 768),
        }.items()
    )


@pytest.mark.parametrize("pool", ["tok", "gap"])
def test_vit_is_timms(torch, timm_vit, tmp_path, pool):
    module = GoogleViT(8, **TINY, pool=pool)
    images = some_images()
    flat = fill(names_and_shapes(module, (16, 24)))
    theirs = timm_vit(
        img_size=(16, 24), patch_size=8, fc_norm=False,
        class_token=pool == "tok", global_pool={"tok": "token", "gap": "avg"}[pool],
    )  # fmt: skip
    read_by_timm(theirs, tmp_path, flat)
    modules = blocks_of(theirs) | {"encoded": theirs.norm}
    assert_same(forward(module, flat, images), run_timm(torch, theirs, images, modules))


def test_both_numberings_are_one_model():
    old, linen = (GoogleViT(8, **TINY, numbering=numbering) for numbering in ("old", "linen"))
    flat = fill(names_and_shapes(old, 16))
    renamed = {
        name.replace("Attention_1/", "Attention_0/")
        .replace("LayerNorm_2/", "LayerNorm_1/")
        .replace("MlpBlock_3/", "MlpBlock_0/"): value
        for name, value in flat.items()
    }
    images = some_images(16, 16)
    np.testing.assert_array_equal(forward(old, flat, images)[0], forward(linen, renamed, images)[0])


def test_hidden_layer_before_the_head_is_a_tanh_of_timms_features(torch, timm_vit, tmp_path):
    module = GoogleViT(8, **TINY, rep_size=12)
    images = some_images()
    flat = fill(names_and_shapes(module, (16, 24)))
    theirs = timm_vit(img_size=(16, 24), patch_size=8, num_classes=0)
    features, _ = run_timm(torch, read_by_timm(theirs, tmp_path, flat), images, {})
    hidden = np.tanh(features @ flat["pre_logits/kernel"] + flat["pre_logits/bias"])
    logits = hidden @ flat["head/kernel"] + flat["head/bias"]
    assert_same(forward(module, flat, images), (logits, {"pre_logits": hidden}))


@pytest.fixture
def timm_hybrid(timm, timm_vit):
    """A tiny hybrid of timm, on images of 40 x 56, whose feature maps have odd sizes."""

    def make(resnet):
        conv = functools.partial(timm.layers.StdConv2dSame, eps=1e-8)
        sizes = {"preact": False, "stem_type": "same", "conv_layer": conv}
        v2 = timm.models.resnetv2
        if resnet:
            backbone = v2.ResNetV2(resnet, num_classes=0, global_pool="", **sizes)
        else:
            backbone = v2.create_resnetv2_stem(3, **sizes)
        embed = functools.partial(timm.layers.HybridEmbed, backbone=backbone)
        return timm_vit(img_size=(40, 56), patch_size=1 if resnet else 2, embed_layer=embed)

    return make


@pytest.mark.parametrize("old_norms", [False, True])
def test_hybrid_is_timms(torch, timm_hybrid, tmp_path, old_norms):
    module = GoogleViT(1, **TINY, resnet=(2, 1), **TIMM_NORMS)
    images = some_images(40, 56)
    flat = fill(names_and_shapes(module, (40, 56)))
    if old_norms:
        flat = {name: v[None, None, None] if "gn" in name else v for name, v in flat.items()}
    theirs = read_by_timm(timm_hybrid((2, 1)), tmp_path, flat)
    backbone = theirs.patch_embed.backbone
    modules = blocks_of(theirs) | units_of(backbone.stages) | {"stem": backbone.stem}
    assert len(modules) == 2 + 3 + 1
    assert_same(forward(module, flat, images), run_timm(torch, theirs, images, modules))


def test_hybrid_of_a_stem_alone_is_timms(torch, timm_hybrid, tmp_path):
    module = GoogleViT(2, **TINY, resnet=(), **TIMM_NORMS)
    images = some_images(40, 56)
    flat = fill(names_and_shapes(module, (40, 56)))
    theirs = read_by_timm(timm_hybrid(()), tmp_path, flat)
    modules = blocks_of(theirs) | {"stem": theirs.patch_embed.backbone}
    assert_same(forward(module, flat, images), run_timm(torch, theirs, images, modules))


@pytest.fixture
def timm_bit(timm):
    """A small BiT of timm."""
    return timm.models.resnetv2.ResNetV2(
        (1, 2), channels=(256, 512), num_classes=5, stem_type="fixed",
        conv_layer=functools.partial(timm.layers.StdConv2d, eps=1e-8),
    )  # fmt: skip


def test_bit_is_timms(torch, timm_bit, tmp_path):
    module = BiTResNet(5, (1, 2), eps=1e-5, weight_std=("var", 1e-8))
    images = some_images(40, 56)
    flat = fill(names_and_shapes(module, (40, 56)))
    theirs = read_by_timm(timm_bit, tmp_path, flat)
    modules = units_of(theirs.stages, digits=2) | {"stem": theirs.stem, "encoded": theirs.norm}
    assert len(modules) == 3 + 2
    assert_same(forward(module, flat, images), run_timm(torch, theirs, images, modules))


def test_mixer_is_timms(torch, timm):
    module = GoogleMixer(8, 32, 2, 16, 128, 5)
    images = some_images(24, 24)
    flat = fill(names_and_shapes(module, 24))
    theirs = timm.models.mlp_mixer.MlpMixer(
        img_size=24, patch_size=8, num_blocks=2, embed_dim=32, num_classes=5,
        act_layer=timm.layers.get_act_layer("gelu_tanh"),
    ).eval()  # fmt: skip
    replaced = {
        "MixerBlock_": "blocks.", "LayerNorm_0": "norm1", "LayerNorm_1": "norm2",
        "token_mixing": "mlp_tokens", "channel_mixing": "mlp_channels", "Dense_0": "fc1",
        "Dense_1": "fc2", "pre_head_layer_norm": "norm", "stem/": "stem.proj.",
        "kernel": "weight", "scale": "weight", "/": ".",
    }  # fmt: skip
    state = {}
    for name, value in flat.items():
        for old, new in replaced.items():
            name = name.replace(old, new)
        axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[value.ndim]
        state[name] = torch.from_numpy(value.transpose(axes).copy())
    theirs.load_state_dict(state, strict=True)
    modules = blocks_of(theirs) | {"encoded": theirs.norm}
    assert_same(forward(module, flat, images), run_timm(torch, theirs, images, modules))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("posemb", ["learn", "sincos2d"])
@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_big_vision_is_timms(torch, timm_vit, tmp_path, pool, posemb, scan):
    module = BigVisionViT(8, **TINY, pool=pool, posemb=posemb, scan=scan)
    images = some_images()
    flat = fill(names_and_shapes(module, (16, 24)))
    assert ("pos_embedding" in flat) == (posemb == "learn")
    table = {"pos_embedding": np.asarray(sincos2d(2, 3, 32))} if posemb == "sincos2d" else {}
    theirs = timm_vit(
        img_size=(16, 24), patch_size=8, fc_norm=False, no_embed_class=True,
        class_token=pool == "tok", global_pool={"tok": "token", "gap": "avg", "map": "map"}[pool],
    )  # fmt: skip
    read_by_timm(theirs, tmp_path, flat | table, prefix="params/")
    modules = blocks_of(theirs) | {"encoded": theirs.norm}
    assert_same(forward(module, flat, images), run_timm(torch, theirs, images, modules))


def test_big_visions_hidden_layer_before_the_head_is_a_tanh():
    module, plain = BigVisionViT(8, **TINY, rep_size=12), BigVisionViT(8, **TINY)
    images = some_images()
    flat = fill(names_and_shapes(module, (16, 24)))
    with_head = {k: v for k, v in flat.items() if "pre_logits" not in k and "head" not in k}
    with_head |= {"head/kernel": np.eye(32, 5, dtype=np.float32), "head/bias": np.zeros(5, "f")}
    features = forward(plain, with_head, images)[1]["pre_logits"]
    hidden = np.tanh(features @ flat["pre_logits/kernel"] + flat["pre_logits/bias"])
    assert difference(forward(module, flat, images)[1]["pre_logits"], hidden) < 1e-5


def test_sines_and_cosines_entry_by_entry():
    table = sincos2d(3, 2, 12)
    assert table.shape == (1, 6, 12)
    for y in range(3):
        for x in range(2):
            for i in range(3):
                omega = 1 / 10_000 ** (i / 2)
                entries = (math.sin(x * omega), math.cos(x * omega),
                           math.sin(y * omega), math.cos(y * omega))  # fmt: skip
                np.testing.assert_allclose(table[0, 2 * y + x, i::3], entries, atol=1e-6)


def test_another_gelu_would_be_noticed():
    images = some_images()
    flat = fill(names_and_shapes(GoogleViT(8, **TINY), (16, 24)))
    tanh, exact = (
        forward(GoogleViT(8, **TINY, gelu=g), flat, images)[0] for g in ("tanh", "exact")
    )
    assert difference(exact, tanh) > 2e-5  # narrow models show it little


def test_another_padding_would_be_noticed(torch, timm_bit, timm_hybrid, tmp_path):
    """A maximum over -inf instead of zeros, or SAME padding, in the stem of BiT and of a hybrid."""
    images = some_images(40, 56)
    module = BiTResNet(5, (1, 2), eps=1e-5, weight_std=("var", 1e-8))
    flat = fill(names_and_shapes(module, (40, 56)))
    theirs = read_by_timm(timm_bit, tmp_path, flat)
    theirs.stem.pad = torch.nn.ConstantPad2d(1, -math.inf)
    _, out = run_timm(torch, theirs, images, {"stem": theirs.stem})
    assert difference(forward(module, flat, images)[1]["stem"], out["stem"]) > 1e-2
    module = GoogleViT(2, **TINY, resnet=(), **TIMM_NORMS)
    flat = fill(names_and_shapes(module, (40, 56)))
    theirs = read_by_timm(timm_hybrid(()), tmp_path, flat)
    theirs.patch_embed.backbone.conv.same_pad = False
    theirs.patch_embed.backbone.conv.padding = (3, 3)
    _, out = run_timm(torch, theirs, images, {"stem": theirs.patch_embed.backbone})
    assert difference(forward(module, flat, images)[1]["stem"], out["stem"]) > 1e-2


@pytest.mark.parametrize(
    "other",
    [{"weight_std": ("var", 1e-8)}, {"weight_std": ("var", 1e-10)}, {"gn_eps": 1e-5}],
    ids=str,
)
def test_another_standardisation_would_be_noticed(other):
    """In kernels of deviation 1e-4 and faint images, where an epsilon is not lost."""
    images = 1e-3 * some_images(40, 56)
    module = GoogleViT(2, **TINY, resnet=())
    flat = fill(names_and_shapes(module, (40, 56)))
    kernel = flat["conv_root/kernel"]
    flat["conv_root/kernel"] = 1e-4 * kernel / kernel.std()
    ours, theirs = (forward(m, flat, images)[1]["stem"] for m in (module, module.clone(**other)))
    assert difference(theirs, ours) > 1e-4


def test_values_depend_on_the_name_and_seed_alone():
    shapes = {"a/kernel": (4, 6), "b/kernel": (4, 6), "b/bias": (6,)}
    flat = fill(shapes)
    alone = fill({"b/kernel": (4, 6)})
    np.testing.assert_array_equal(flat["b/kernel"], alone["b/kernel"])
    assert not np.array_equal(flat["a/kernel"], flat["b/kernel"])
    assert not np.array_equal(flat["a/kernel"], fill(shapes, seed=1)["a/kernel"])
    assert {value.dtype for value in flat.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("layout", "name", "shape", "mean", "deviation"),
    [
        ("flax", "a/query/kernel", (64, 4, 16), 0, 1 / 8),
        ("flax", "a/out/kernel", (4, 16, 64), 0, 1 / 8),
        ("flax", "T/encoderblock/MlpBlock_0/Dense_0/kernel", (3, 64, 128), 0, 1 / 8),
        ("flax", "conv_root/kernel", (4, 4, 4, 64), 0, 1 / 8),
        ("flax", "resnet/group_norm/gamma", (4096,), 1, 0.1),
        ("flax", "resnet/group_norm/beta", (4096,), 0, 0.1),
        ("flax", "pos_embedding", (1, 64, 64), 0, 0.3),
        ("flax", "MAPHead_0/probe", (1, 1, 4096), 0, 0.3),
        ("torch", "patch_embed.proj.weight", (64, 4, 4, 4), 0, 1 / 8),
        ("torch", "blocks.0.norm1.weight", (4096,), 1, 0.1),
        ("torch", "blocks.0.ls1.gamma", (4096,), 1, 1 / math.sqrt(12)),
        ("torch", "encoder.layer.0.layer_scale1.lambda1", (4096,), 1, 1 / math.sqrt(12)),
        ("torch", "blocks.0.attn.qkv.bias", (4096,), 0, 0.1),
        ("torch", "vit.embeddings.cls_token", (1, 1, 4096), 0, 0.3),
        ("torch", "vit.embeddings.patch_embeddings.projection.weight", (64, 4, 4, 4), 0, 1 / 8),
        ("torch", "embeddings.position_embedding.weight", (64, 64), 0, 0.3),
        ("torch", "attn_pool.latent", (1, 1, 4096), 0, 0.3),
        ("torch", "head.in_proj_weight", (192, 64), 0, 1 / 8),
    ],
)
def test_values_are_of_the_size_that_the_name_asks_for(layout, name, shape, mean, deviation):
    value = fill({name: shape}, layout=layout)[name]
    assert value.shape == shape
    assert value.mean() == pytest.approx(mean, abs=0.1 * deviation)
    assert value.std() == pytest.approx(deviation, rel=0.1)


def test_a_name_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match="no rule says what rope/periods"):
        fill({"rope/periods": (16,)})


def test_npz_has_the_prefix_and_bfloat16_as_voids(tmp_path):
    flat = {"a/kernel": np.array([[1.0, -2.5]], np.float32)}
    save_npz(tmp_path / "made", flat, prefix="opt/target/", bfloat16_as_void=True)
    with np.load(tmp_path / "made") as read:
        value = read["opt/target/a/kernel"]
    assert value.dtype == np.dtype("V2")
    assert value.tobytes() == np.array([[0x3F80, 0xC020]], np.uint16).tobytes()
    save_npz(tmp_path / "made", flat)
    with np.load(tmp_path / "made") as read:
        np.testing.assert_array_equal(read["a/kernel"], flat["a/kernel"])


def test_other_names_or_shapes_are_refused():
    module = GoogleMixer(8, 32, 1, 16, 32, 5)
    flat = fill(names_and_shapes(module, 16))
    with pytest.raises(ValueError, match=r"names differ: .*extra"):
        forward(module, flat | {"extra": flat["head/bias"]}, some_images(16, 16))
    with pytest.raises(ValueError, match="head/bias is"):
        forward(module, flat | {"head/bias": np.zeros(4, np.float32)}, some_images(16, 16))
