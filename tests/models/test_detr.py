"""DETR equals its paper's equations, written here a second time in NumPy."""

import re

import jax
import numpy as np
import pytest
from jaxpr_walk import macs
from test_resnet import assert_close, images, random_like

from tests.models import paper_numpy as paper
from vit_jax.errors import UserError
from vit_jax.models import create_model
from vit_jax.models.detr import sine, spread

SIZES = {
    "image_size": (16, 24), "num_classes": 3, "num_queries": 5, "detector_width": 8,
    "detector_heads": 2, "detector_mlp_dim": 12, "detector_encoder": 2, "detector_decoder": 3,
    "detector_dropout": 0.0,
}  # fmt: skip
VIT = {"hidden_size": 8, "num_heads": 2, "num_layers": 1, "mlp_dim": 12}


def detr(name="detr_vit_mu_patch4_16", **fields):
    return create_model(name, **(SIZES | (VIT if "vit" in name else {}) | fields))


def norm(x, p):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attention(queries, keys, values, p, keep):
    """One head and one query at a time. `keep` are the keys that count."""
    q, k, v = (
        np.einsum("nd,dhe->nhe", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("q", queries), ("k", keys), ("v", values))
    )
    out = np.zeros_like(q)
    for head in range(q.shape[1]):
        for i, query in enumerate(q[:, head]):
            scores = np.where(keep, k[:, head] @ query / np.sqrt(q.shape[-1]), -np.inf)
            out[i, head] = paper.softmax(scores) @ v[:, head]
    return np.einsum("nhe,hed->nd", out, p["out"]["kernel"]) + p["out"]["bias"]


def layer(x, p, first, places, keep, memory=None, memory_places=None):
    everything = np.ones(len(x), bool)
    parts = [
        (lambda y: attention(y + places, y + places, y, p["attention"],
                             keep if memory is None else everything), "norm1"),
        (lambda y: np.maximum(y @ p["fc1"]["kernel"] + p["fc1"]["bias"], 0) @ p["fc2"]["kernel"]
         + p["fc2"]["bias"], "norm3"),
    ]  # fmt: skip
    if memory is not None:
        parts.insert(1, (lambda y: attention(y + places, memory + memory_places, memory,
                                             p["cross"], keep), "norm2"))  # fmt: skip
    for part, name in parts:
        x = x + part(norm(x, p[name])) if first else norm(x + part(x), p[name])
    return x


def code_of(y, x, width):
    """Of a place in 0 … 1, one number at a time."""
    out = []
    for place in (y, x):
        for i in range(width // 2):
            angle = 2 * np.pi * place / 10_000 ** (2 * (i // 2) / (width // 2))
            out.append(np.sin(angle) if i % 2 == 0 else np.cos(angle))
    return np.array(out)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def between(features, point, content, shown):
    """The four features around a point of the content, weighted by how near they are."""
    y, x = (
        min(max(one * share * side - 0.5, 0), n - 1)
        for one, share, side, n in zip(point, content, features.shape[:2], shown, strict=True)
    )
    i, j = int(y), int(x)
    below, right = min(i + 1, int(shown[0]) - 1), min(j + 1, int(shown[1]) - 1)
    upper = (1 - (x - j)) * features[i, j] + (x - j) * features[i, right]
    lower = (1 - (x - j)) * features[below, j] + (x - j) * features[below, right]
    return (1 - (y - i)) * upper + (y - i) * lower


def forward(features, p, c, content=(1.0, 1.0)):
    """Logits and boxes of every layer, from one image's features [rows, columns, …]."""
    rows, columns, _ = features.shape
    shown = np.ceil(np.array(content) * [rows, columns] - 1e-3)
    keep = np.array([[i < shown[0] and j < shown[1] for j in range(columns)] for i in range(rows)])
    if c.map_positions == "sine":
        places = np.array([
            [code_of(min(i + 1, shown[0]) / (shown[0] + 1e-6),
                     min(j + 1, shown[1]) / (shown[1] + 1e-6), c.detector_width)
             for j in range(columns)] for i in range(rows)
        ])  # fmt: skip
    else:
        places = np.array([
            [np.concatenate([p["columns"][j], p["rows"][i]]) for j in range(columns)]
            for i in range(rows)
        ])  # fmt: skip
    places, keep = places.reshape(rows * columns, -1), keep.ravel()
    x = features.reshape(rows * columns, -1) @ p["project"]["kernel"] + p["project"]["bias"]
    first = c.detector_norm == "pre"
    for i in range(c.detector_encoder):
        x = layer(x, p["encoder"][f"block{i:02d}"], first, places, keep)
    if c.detector_encoder and first:
        x = norm(x, p["encoder_norm"])
    if c.queries != "learned":
        point = sigmoid(p["points"])
        query = np.array([code_of(*one, c.detector_width) for one in point])
    else:
        query = p["queries"]
    y, told = np.zeros_like(query), []
    if c.queries == "refined":
        boxes = np.concatenate([point[:, ::-1], np.full_like(point, sigmoid(-2))], axis=1)
    for i in range(c.detector_decoder):
        block = p["decoder"][f"block{i:02d}"]
        if c.queries == "refined":
            features = x.reshape(rows, columns, -1)
            looked = np.array([looks(features, box, content, shown) for box in boxes])
            y = y + looked @ block["look"]["kernel"] + block["look"]["bias"]
            query = np.array([code_of(cy, cx, c.detector_width) for cx, cy, _, _ in boxes])
        y = layer(y, block, first, query, keep, x, places)
        z = norm(y, p["norm"])
        if c.queries == "refined":
            move = four(norm(y, block["norm_box"]), block)
            boxes = np.concatenate(
                [boxes[:, :2] + move[:, :2] * boxes[:, 2:],
                 np.clip(boxes[:, 2:] * np.exp(np.clip(move[:, 2:], -4, 4)), 1e-3, 2)], axis=1
            )  # fmt: skip
        else:
            boxes = four(z, p)
            if c.queries == "points":
                boxes[:, :2] += p["points"][:, ::-1]
            boxes = sigmoid(boxes)
        told.append((z @ p["head"]["kernel"] + p["head"]["bias"], boxes))
    return [np.stack(part) for part in zip(*told, strict=True)]


def four(x, p):
    """The numbers of boxes, through three layers."""
    for name in ("box1", "box2"):
        x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
    return x @ p["box3"]["kernel"] + p["box3"]["bias"]


def looks(features, box, content, shown):
    """The features at nine places of a box, the upper ones first."""
    cx, cy, w, h = box
    return np.concatenate([
        between(features, (cy + i * h, cx + j * w), content, shown)
        for i in (-0.5, 0, 0.5) for j in (-0.5, 0, 0.5)
    ])  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"detector_norm": "pre"}, {"queries": "points", "detector_encoder": 0},
        {"map_positions": "learned"}, {"queries": "points", "detector_norm": "pre"},
        {"queries": "refined", "detector_encoder": 0},
        {"queries": "refined", "detector_norm": "pre"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "padded",
    [None, [[1.0, 0.5], [0.75, 1.0]], [[0.6, 0.7], [0.99, 0.2]]],
    ids=["whole", "padded", "padded within a feature"],
)
def test_every_layers_logits_and_boxes_equal_the_equations(fields, padded):
    model = detr(**fields)
    params, x = random_like(model.abstract_params), images(16, 24)
    content = np.array(padded or np.ones((2, 2)), np.float32)
    more = {"content": content} if padded else {}
    logits, out = jax.jit(model.apply)(params, x, **more)
    p, c = paper.as_float64(params), model.config
    encoded = np.asarray(out["backbone_encoded"], np.float64)
    for i in range(2):
        features = encoded[i, c.num_prefix :].reshape(4, 6, -1)
        all_logits, all_boxes = forward(features, p, c, content[i])
        assert_close(out["layers_logits"][:, i], all_logits, 2e-5)
        assert_close(out["layers_boxes"][:, i], all_boxes, 2e-5)
    np.testing.assert_array_equal(logits, out["layers_logits"][-1])
    np.testing.assert_array_equal(out["boxes"], out["layers_boxes"][-1])
    assert logits.shape == (2, 5, 4)


@pytest.mark.parametrize("queries", ["learned", "refined"])
def test_scanned_recomputed_and_listed_layers_are_one_function(queries):
    def found(model, params):
        """Everything that a loss reads, and its gradient."""

        def loss(params):
            _, out = model.apply(params, x)
            return sum((out[name] ** 2).sum() for name in names), [out[name] for name in names]

        names = "layers_logits", "layers_boxes"
        (_, values), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return values, grads["head"], grads["backbone"]["cls"]

    def same(one, other):
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), one, other)

    plain = detr(queries=queries)
    params, x = random_like(plain.abstract_params), images(16, 24)
    expected = found(plain, params)
    same(found(detr(queries=queries, remat="full"), params), expected)
    scanned = detr(queries=queries, scan=True)
    stacked = dict(params)
    for name in ("encoder", "decoder"):
        stacked[name] = {"block": paper.stack_layers(list(params[name].values()))}
    backbone = params["backbone"]["encoder"]
    stacked["backbone"] = params["backbone"] | {
        "encoder": {"block": paper.stack_layers(list(backbone.values()))}
    }
    same(found(scanned, stacked), expected)
    narrow = detr(queries=queries, scan=True, dtype="bfloat16")
    _, out = jax.jit(narrow.apply)(stacked, x)
    assert out["layers_boxes"].dtype == np.float32
    assert_close(out["layers_boxes"], expected[0][1], 0.2)


@pytest.mark.parametrize(
    ("name", "queries"),
    [("detr_resnet14w32_gn", "points"), ("detr_vit_mu_patch4_16", "points"),
     ("detr_vit_mu_patch4_16", "refined")],
)  # fmt: skip
def test_parameters_have_rows_and_every_one_a_gradient(name, queries):
    fields = {"image_size": (64, 96)} if "resnet" in name else {}
    model = detr(name, queries=queries, map_positions="learned", **fields)
    for keys, _ in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        model.family.row(jax.tree_util.keystr(keys, simple=True, separator="/"))
    params, x = random_like(model.abstract_params), images(*model.config.image_size)

    def of(params):
        logits, out = model.apply(params, x)
        return (logits**2).sum() + (out["layers_boxes"] ** 2).sum()

    grads = jax.jit(jax.grad(of))(params)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(grads):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        assert np.isfinite(leaf).all(), path
        # Queries begin as zeros, so the first layer's attention between them mixes nothing.
        if not re.match("decoder/block00/attention/[qkv]/", path):
            assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("queries", ["learned", "refined"])
def test_the_count_of_multiply_adds_is_that_of_the_traced_model(queries):
    model = detr(queries=queries)
    image = jax.ShapeDtypeStruct((1, *model.config.image_size, 3), np.float32)
    traced = jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])(model.abstract_params, image)
    assert model.macs == macs(traced)


def test_a_dilated_stage_has_the_features_of_the_strided_one_and_those_between():
    fields = {"resnet_layers": (1, 2), "stage_width": 4, "image_size": (32, 48)}
    plain, dense = (detr(name, **fields) for name in ("detr_resnet50", "detr_resnet50_dc5"))
    params = random_like(plain.abstract_params)
    x = images(32, 48)
    (_, strided), (_, dilated) = (jax.jit(model.apply)(params, x) for model in (plain, dense))
    assert dilated["backbone_encoded"].shape == (2, 8, 12, 32)
    assert_close(dilated["backbone_encoded"][:, ::2, ::2], strided["backbone_encoded"])


def test_a_yolos_without_a_class_token_has_positions_between_its_blocks():
    model = create_model(
        "yolos_vit_mu_patch4_16", **VIT | {"num_layers": 3}, image_size=(16, 24), num_classes=3,
        num_queries=5, pool="gap", mid_positions=True,
    )  # fmt: skip
    params = model.init()
    logits, before = jax.jit(model.apply)(params, images(16, 24))
    params["backbone"]["mid01"]["queries"] += 1.0
    _, after = jax.jit(model.apply)(params, images(16, 24))
    assert logits.shape == (2, 5, 4)
    np.testing.assert_array_equal(before["block00"], after["block00"])
    assert np.abs(before["block01"] - after["block01"]).max() > 0.1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resnet_layers": ()}, r"resnet_layers is \(\), which a YOLOS does not have"),
        ({"pre_norm": True}, "pre_norm is True, which a YOLOS does not have"),
        ({"posemb": "sincos2d"}, "a YOLOS has posemb 'learned', not 'sincos2d'"),
    ],
)
def test_what_a_yolos_does_not_have_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        create_model("yolos_vit_mu_patch4_16", **VIT, image_size=16, **fields)


def test_the_code_of_a_place_is_the_papers():
    places = np.random.default_rng(0).uniform(0, 1, (3, 2))
    expected = np.array([code_of(*place, 16) for place in places])
    np.testing.assert_allclose(sine(places.astype(np.float32), 16), expected, atol=1e-5)


def test_new_points_are_spread_evenly():
    """Every ninth of the image has its share of 90 points, give or take three."""
    points = spread(90)
    counts, _, _ = np.histogram2d(*points.T, bins=3, range=((0, 1), (0, 1)))
    assert (np.abs(counts - 10) <= 3).all()
