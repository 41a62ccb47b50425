"""Every quantity of `vit_jax.look` is its definition's, written again in NumPy and one image, layer
and head at a time; gradients are slopes."""

import jax
import numpy as np
import pytest

from tests.models import paper_numpy as paper
from tests.models.tiny_vit import randomised, tiny
from vit_jax import look
from vit_jax.models import create_model


def pixels(model, batch=2, seed=1):
    shape = (batch, *model.config.image_size, model.config.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def vit():
    """(model, params, images, what was seen)."""
    model = tiny(num_layers=3)
    params, images = randomised(model), pixels(model)
    return model, params, images, look.see(model, params, images)


def test_attention_is_that_of_the_papers_equations(vit):
    model, params, images, seen = vit
    shown = np.asarray(model.data_config.normalise(images), np.float64)
    expected = paper.forward(params, shown, pool=model.config.pool, gelu=model.config.gelu)
    layers = np.stack([expected[f"attention{layer:02d}"] for layer in range(3)])
    np.testing.assert_allclose(seen.attention, layers, atol=1e-5)
    np.testing.assert_allclose(seen.logits, expected["logits"], atol=1e-5)
    assert (seen.prefix, seen.grid) == (1, (2, 3))


def test_looking_changes_no_logits(vit):
    model, params, images, seen = vit
    logits, out = model.apply(params, model.data_config.normalise(images))
    np.testing.assert_allclose(seen.logits, logits, atol=1e-5)
    np.testing.assert_allclose(seen.features, out["pre_logits"], atol=1e-5)
    tokens = np.asarray(out["encoded"])[:, 1:].reshape(2, 2, 3, 8)
    np.testing.assert_allclose(seen.tokens, tokens, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_the_gradient_of_attention_is_the_slope_of_the_classes_logit(scan):
    model = tiny(scan=scan)
    params, images = randomised(model), pixels(model)
    classes = np.array([2, 0])
    seen = look.see(model, params, images, classes)
    direction = seen.gradient / np.linalg.norm(seen.gradient)  # in which the logits rise most

    @jax.jit
    def at(step):
        shown = model.data_config.normalise(images)
        logits, _ = model.apply(
            params, shown, attention_weights=True, attention_added=step * direction
        )
        return logits[np.arange(2), classes].sum()

    slope = (float(at(1e-2)) - float(at(-1e-2))) / 2e-2
    assert np.linalg.norm(seen.gradient) == pytest.approx(slope, rel=1e-3)


def test_by_default_the_gradient_is_that_of_the_predicted_classes(vit):
    model, params, images, seen = vit
    asked = look.see(model, params, images, seen.logits.argmax(axis=-1))
    np.testing.assert_allclose(asked.gradient, seen.gradient, atol=1e-6)


def test_rollout_is_the_product_over_layers_of_half_attention_and_half_identity(vit):
    *_, seen = vit
    for image in range(2):
        expected = np.eye(7)
        for layer in range(3):
            mean = sum(seen.attention[layer, image, head] for head in range(2)) / 2
            expected = (0.5 * mean + 0.5 * np.eye(7)) @ expected
        np.testing.assert_allclose(look.rollout(seen.attention)[image], expected, atol=1e-6)


def test_evidence_adds_each_layers_positive_attention_times_gradient(vit):
    *_, seen = vit
    found = look.evidence(seen.attention, seen.gradient)
    for image in range(2):
        expected = np.eye(7)
        for layer in range(3):
            positive = np.zeros((7, 7))
            for head in range(2):
                product = seen.attention[layer, image, head] * seen.gradient[layer, image, head]
                positive += np.where(product > 0, product, 0) / 2
            expected = expected + positive @ expected
        np.testing.assert_allclose(found[image], expected, atol=1e-6)


def test_distance_is_the_weighted_mean_of_distances_between_patches(vit):
    model, _, _, seen = vit
    found = look.distance(seen, model.config.image_size)
    assert found.shape == (3, 2)
    for layer, head in [(0, 0), (2, 1)]:
        total = 0.0
        for image in range(2):
            for query in range(6):
                weights = seen.attention[layer, image, head, 1 + query, 1:].astype(np.float64)
                apart = [
                    4 * np.hypot(query // 3 - key // 3, query % 3 - key % 3) for key in range(6)
                ]
                total += (weights / weights.sum()) @ apart
        assert found[layer, head] == pytest.approx(total / 12)


def test_the_head_reads_the_class_token_or_the_mean_of_the_patches(vit):
    model, _, _, seen = vit
    tokens = np.arange(2 * 7 * 7, dtype=np.float64).reshape(2, 7, 7)
    np.testing.assert_array_equal(look.read(model, tokens, seen), tokens[:, 0, 1:].reshape(2, 2, 3))
    mean = tiny(pool="gap")
    expected = tokens[:, 1:, 1:].mean(axis=1).reshape(2, 2, 3)
    np.testing.assert_allclose(look.read(mean, tokens, seen), expected)


def test_positions_are_compared_by_the_cosine_of_their_angle(vit):
    model, params, _, _ = vit
    table = look.positions(model, params)
    found = look.position_similarity(table)
    for (a, b), (c, d) in [((0, 0), (1, 2)), ((1, 1), (1, 1)), ((0, 2), (1, 0))]:
        x, y = table[a, b], table[c, d]
        cosine = x @ y / np.sqrt((x @ x) * (y @ y))
        assert found[a, b, c, d] == pytest.approx(cosine)
    fixed = tiny(posemb="sincos2d")
    table = look.positions(fixed, fixed.abstract_params)
    np.testing.assert_allclose(table, paper.sincos2d(2, 3, 8), atol=1e-6)


def principal(rows):
    """Eigenvectors of the covariance, the largest eigenvalue first."""
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return vectors[:, np.argsort(-values)].T


def test_filters_are_the_principal_components_of_the_first_kernel(vit):
    _, params, _, _ = vit
    kernel = np.asarray(params["embed"]["kernel"], np.float64)
    found = look.filters(params)
    expected = principal(kernel.reshape(-1, 8).T).reshape(-1, *kernel.shape[:3])
    for number in range(5):  # up to the sign
        same = abs((found[number] * expected[number]).sum())
        assert same == pytest.approx(1)


def test_colours_are_the_first_three_components_of_the_tokens_of_all_images(vit):
    *_, seen = vit
    found = look.token_colours(seen.tokens).reshape(-1, 3)
    flat = seen.tokens.reshape(-1, 8).astype(np.float64)
    values = (flat - flat.mean(axis=0)) @ principal(flat)[:3].T
    for component in range(3):
        column = values[:, component]
        scaled = (column - column.min()) / (column.max() - column.min())
        turned = 1 - scaled  # the other sign
        one, other = (np.abs(found[:, component] - side).max() for side in (scaled, turned))
        assert min(one, other) < 1e-5
    assert look.token_colours(seen.tokens[..., :2]).shape == (2, 2, 3, 3)


def test_the_nearest_have_the_largest_cosine_similarity():
    rng = np.random.default_rng(0)
    ours, others = rng.standard_normal((3, 5)), rng.standard_normal((7, 5))
    order, similar = look.nearest(ours, others, 2)
    for row in range(3):
        cosine = [a @ ours[row] / np.linalg.norm(a) / np.linalg.norm(ours[row]) for a in others]
        best = sorted(range(7), key=lambda i: -cosine[i])[:2]
        assert order[row].tolist() == best
        np.testing.assert_allclose(similar[row], [cosine[i] for i in best])


@pytest.mark.parametrize(
    ("name", "fields", "attention", "grid", "has_filters"),
    [
        ("resnet50_gn", {"resnet_layers": (1, 1, 1, 1), "stage_width": 4, "image_size": 64}, None,
         (2, 2), True),
        ("mixer_s16_224", {"hidden_size": 8, "num_layers": 1, "tokens_mlp_dim": 8,
         "mlp_dim": 8, "image_size": 32}, None, (2, 2), True),
        ("axial_vit_small_patch16_224", {"hidden_size": 8, "num_heads": 2, "num_layers": 1,
         "mlp_dim": 8, "image_size": 32}, None, (2, 2), True),
        ("detr_vit_nano_patch8_64", {"hidden_size": 8, "num_heads": 2, "num_layers": 1,
         "mlp_dim": 8, "image_size": 24, "num_queries": 5, "detector_width": 8,
         "detector_heads": 2, "detector_mlp_dim": 8, "detector_encoder": 1,
         "detector_decoder": 2, "queries": "refined"}, (2, 2, 2, 5, 9), (3, 3), True),
        ("yolos_vit_nano_patch8_64", {"hidden_size": 8, "num_heads": 2, "num_layers": 2,
         "mlp_dim": 8, "image_size": 24, "num_queries": 5}, (2, 2, 2, 15, 15), (3, 3), True),
    ],
)  # fmt: skip
def test_families_have_what_they_have(name, fields, attention, grid, has_filters):
    model = create_model(name, num_classes=3, **fields)
    params = model.init()
    seen = look.see(model, params, pixels(model))
    assert (None if seen.attention is None else seen.attention.shape) == attention
    assert seen.gradient is None
    assert seen.grid == grid
    assert seen.tokens.shape[:3] == (2, *grid)
    assert (look.filters(params) is not None) == has_filters
    if seen.boxes is not None:
        where = look.of_boxes(seen)
        assert where.shape == (2, 5, *grid)
        assert (where.sum(axis=(2, 3)) <= 1 + 1e-6).all()


def test_what_a_query_of_a_yolos_looks_at_are_the_patches_behind_the_class_token():
    model = create_model("yolos_vit_nano_patch8_64", num_classes=3, hidden_size=8, num_heads=2,
                         num_layers=2, mlp_dim=8, image_size=24, num_queries=5)  # fmt: skip
    seen = look.see(model, model.init(), pixels(model))
    expected = seen.attention[1, 0, :, 10 + 3, 1:10].mean(axis=0)  # class token, patches, queries
    np.testing.assert_allclose(look.of_boxes(seen)[0, 3].ravel(), expected, atol=1e-6)
