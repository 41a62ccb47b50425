"""Updates of a whole step against NumPy statements of each optimiser's paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.checkpoint.tree import flatten
from vit_jax.config import base
from vit_jax.errors import UserError
from vit_jax.models import create_model, list_models
from vit_jax.models.family import Family, Param
from vit_jax.training.groups import decay_mask
from vit_jax.training.optimizer import OWN, averaged, known, make_optimizer

RNG = np.random.default_rng(0)
PARAMS = {"a/kernel": RNG.normal(size=(3, 2)), "a/bias": RNG.normal(size=(2,))}
GRADS = [{k: RNG.normal(size=v.shape) for k, v in PARAMS.items()} for _ in range(5)]
LR, WD, B1, B2, EPS = 0.01, 0.3, 0.8, 0.95, 1e-6

TWO = Family("two", object, object, int, (Param(".*/kernel", decays=True), Param(".*/bias")))


def ours(**settings):
    """Parameters after five updates at rate LR."""
    c = base().optimizer
    with c.unlocked():
        c.update(settings)
    tx = make_optimizer(c, TWO)
    nested = {
        "a": {"kernel": jnp.float32(PARAMS["a/kernel"]), "bias": jnp.float32(PARAMS["a/bias"])}
    }
    state = tx.init(nested)
    for grads in GRADS:
        tree = {"a": {n: jnp.float32(grads[f"a/{n}"]) for n in ("kernel", "bias")}}
        updates, state = tx.update(tree, state, nested)
        nested = jax.tree.map(lambda p, u: p + LR * u, nested, updates)
    return {f"a/{name}": np.asarray(leaf) for name, leaf in nested["a"].items()}


def clipped(grads, norm):
    total = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {k: g * min(1.0, norm / total) for k, g in grads.items()}


def adam(decay, clip=None):
    p = {k: v.copy() for k, v in PARAMS.items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    for t, grads in enumerate(GRADS, 1):
        grads = clipped(grads, clip) if clip else grads
        for k, g in grads.items():
            m[k] = B1 * m[k] + (1 - B1) * g
            v[k] = B2 * v[k] + (1 - B2) * g**2
            step = (m[k] / (1 - B1**t)) / (np.sqrt(v[k] / (1 - B2**t)) + EPS)
            p[k] = p[k] - LR * (step + (decay * p[k] if k.endswith("kernel") else 0))
    return p


def sgd(momentum, nesterov=False):
    p = {k: v.copy() for k, v in PARAMS.items()}
    trace = {k: np.zeros_like(v) for k, v in p.items()}
    for grads in GRADS:
        for k, g in grads.items():
            trace[k] = momentum * trace[k] + g
            p[k] = p[k] - LR * (momentum * trace[k] + g if nesterov else trace[k])
    return p


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"name": "adam", "b1": B1, "b2": B2, "eps": EPS}, adam(0.0)),
        ({"name": "adamw", "b1": B1, "b2": B2, "eps": EPS, "weight_decay": WD}, adam(WD)),
        ({"name": "adamw", "b1": B1, "b2": B2, "eps": EPS, "weight_decay": WD, "clip_norm": 0.5},
         adam(WD, clip=0.5)),
        ({"name": "sgd", "momentum": 0.9}, sgd(0.9)),
        ({"name": "sgd", "momentum": 0.9, "kwargs": {"nesterov": True}}, sgd(0.9, True)),
    ],
)  # fmt: skip
def test_five_updates_equal_numpy(settings, wanted):
    found = ours(**settings)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=1e-6, err_msg=name)


def lion(b1, b2, decay):
    """arXiv 2302.06675, program 1."""
    p = {k: v.copy() for k, v in PARAMS.items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    for grads in GRADS:
        for k, g in grads.items():
            update = np.sign(b1 * m[k] + (1 - b1) * g)
            p[k] = p[k] - LR * (update + (decay * p[k] if k.endswith("kernel") else 0))
            m[k] = b2 * m[k] + (1 - b2) * g
    return p


@pytest.mark.parametrize("decay", [0.0, WD])
def test_lion_by_its_name_in_optax_decays_kernels_by_our_key_alone(decay):
    found = ours(name="lion", weight_decay=decay, kwargs={"b1": 0.7, "b2": 0.9})
    wanted = lion(0.7, 0.9, decay)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_decay_by_the_schedule_alone_does_not_grow_with_the_rate():
    """The reference code subtracts the decay times schedule / lr, outside of the rate."""
    c = {"name": "adamw", "b1": B1, "b2": B2, "eps": EPS}
    reference = ours(**c, weight_decay=LR * WD, decay_by="schedule", lr=LR)
    for name, value in adam(WD).items():
        np.testing.assert_allclose(reference[name], value, rtol=2e-5, atol=1e-6)


def test_sgd_with_decay_subtracts_it_from_kernels_apart_from_the_momentum():
    found, wanted = ours(name="sgd", momentum=0.0, weight_decay=WD), {}
    for k, p in PARAMS.items():
        for grads in GRADS:
            p = p - LR * (grads[k] + (WD * p if k.endswith("kernel") else 0))
        wanted[k] = p
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6)


def test_what_takes_no_mask_decays_kernels_alone():
    zero = [{k: np.zeros_like(v) for k, v in PARAMS.items()}]
    for name in ("novograd", "yogi", "lars"):
        nested = {"a": {k[2:]: jnp.float32(v) for k, v in PARAMS.items()}}
        gradients = [{"a": {k[2:]: jnp.float32(v) for k, v in g.items()}} for g in zero]
        _, found = updates_of({"name": name, "weight_decay": WD}, nested, gradients)
        np.testing.assert_allclose(found["a"]["bias"], PARAMS["a/bias"], rtol=1e-5, err_msg=name)


def updates_of(settings, params, gradients, schedule=1.0, family=TWO):
    """The optimiser's last state and the parameters after all updates at rate LR."""
    c = base().optimizer
    with c.unlocked():
        c.update(settings)
    tx = make_optimizer(c, family, schedule)
    state = tx.init(params)
    factor = LR if schedule == 1.0 else 1.0
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + factor * u, params, updates)
    return state, jax.device_get(params)


def test_adafactor_is_that_of_the_scaling_work():
    """arXiv 1804.04235, algorithm 4, with the changes of arXiv 2106.04560, section 3.4."""
    shape, start = (72, 66), RNG.normal(size=(72, 66))
    gradients = [RNG.normal(size=shape) for _ in range(5)]
    _, found = updates_of(
        {"name": "adafactor", "b1": 0.9, "mu_dtype": "float32", "weight_decay": WD},
        {"a": {"kernel": jnp.float32(start)}},
        [{"a": {"kernel": jnp.float32(g)}} for g in gradients],
    )
    p, m = start.copy(), np.zeros(shape)
    rows, columns = np.zeros(72), np.zeros(66)
    for t, g in enumerate(gradients, 1):
        b2 = min(0.999, 1 - t**-0.8)
        rows = b2 * rows + (1 - b2) * (g**2 + 1e-30).mean(axis=1)
        columns = b2 * columns + (1 - b2) * (g**2 + 1e-30).mean(axis=0)
        m = 0.9 * m + 0.1 * g / np.sqrt(np.outer(rows, columns) / rows.mean())
        p = p - LR * (m + WD * p)
    np.testing.assert_allclose(found["a"]["kernel"], p, rtol=3e-5, atol=1e-6)


def orthogonalised(g):
    """Five steps of Newton and Schulz towards u v of g = u s v (Muon's code)."""
    x = g / np.linalg.norm(g)
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_muon_orthogonalises_queries_keys_and_values_apart_and_leaves_the_head_to_adam():
    model = create_model("vit_mu_patch16_224", image_size=(32, 32), num_classes=3)
    params = model.init(0)
    rng = np.random.default_rng(1)
    gradients = [
        jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params) for _ in range(5)
    ]
    _, found = updates_of(
        {"name": "muon", "b1": B1, "b2": B2, "weight_decay": WD}, params, gradients,
        family=model.family,
    )  # fmt: skip
    block = "encoder/block00/attention"
    start, after = flatten(jax.device_get(params)), flatten(found)
    seen = [flatten(jax.device_get(g)) for g in gradients]

    def wanted(path, as_matrix):
        p, m = as_matrix(start[path]).astype(np.float64), 0.0
        for t, grads in enumerate(seen, 1):
            g = as_matrix(grads[path]).astype(np.float64)
            m = 0.95 * m + 0.05 * g
            # Nesterov's momentum, its bias taken out as optax does.
            looked = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
            scale = np.sqrt(max(1.0, p.shape[1] / p.shape[0]))
            p = p - LR * (scale * orthogonalised(looked) + WD * p)
        return p

    width = start[f"{block}/qkv/kernel"].shape[0]
    for part in range(3):
        matrix = lambda x, part=part: x[:, part].reshape(width, -1)  # noqa: E731
        np.testing.assert_allclose(
            matrix(after[f"{block}/qkv/kernel"]), wanted(f"{block}/qkv/kernel", matrix), atol=2e-4
        )
    out = wanted(f"{block}/out/kernel", lambda x: x.reshape(-1, width))
    np.testing.assert_allclose(after[f"{block}/out/kernel"].reshape(-1, width), out, atol=2e-4)
    # The head moves by Adam's steps, of about the rate each; a matrix of rank 3 would not.
    moved = np.abs(after["head/bias"] - start["head/bias"])
    assert (moved < 5.5 * LR).all()
    assert moved.max() > LR


def test_schedule_free_is_judged_by_its_average():
    """arXiv 2405.15682, eq. 3-5 and appendix: z steps, x averages, gradients are taken at y."""
    settings = {"name": "schedule_free", "b1": 0.9, "b2": B2, "eps": EPS, "weight_decay": WD}
    params = {"a": {"kernel": jnp.float32(PARAMS["a/kernel"])}}
    gradients = [{"a": {"kernel": jnp.float32(g["a/kernel"])}} for g in GRADS]
    state, found = updates_of(settings, params, gradients, schedule=lambda step: LR)
    y = z = x = PARAMS["a/kernel"].copy()
    v = 0.0
    for t, grads in enumerate(GRADS, 1):
        g = grads["a/kernel"]
        v = B2 * v + (1 - B2) * g**2
        z = z - LR * (g / (np.sqrt(v / (1 - B2**t)) + EPS) + WD * y)
        x = (1 - 1 / t) * x + z / t  # every step weighs the same: the rate is constant
        y = 0.1 * z + 0.9 * x
    np.testing.assert_allclose(found["a"]["kernel"], y, rtol=1e-4, atol=1e-5)
    judged = averaged("schedule_free", state, found)
    np.testing.assert_allclose(judged["a"]["kernel"], x, rtol=1e-4, atol=1e-5)
    assert averaged("adamw", state, found) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "adamm"}, "adamm"),
        ({"name": "lion", "kwargs": {"b9": 1}}, "b9"),
        ({"name": "global_norm"}, "no optimiser"),
    ],
)
def test_what_optax_does_not_have_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        ours(**settings)


@pytest.mark.parametrize("name", ["resnet26_gn", "nonlocal_resnet50_5", "sasa_resnet26",
                                  "axial_resnet_s", "axial_vit_base_patch32_224"])  # fmt: skip
def test_kernels_of_other_architectures_decay_and_nothing_else(name):
    model = create_model(name)
    for path, decays in flatten(decay_mask(model.family, model.abstract_params)).items():
        assert decays == path.endswith("/kernel"), path


@pytest.mark.parametrize(
    "name",
    list_models("*mu*")
    + list_models("vit_base_patch16_224")
    + list_models("deit_base_patch16_224"),
)
def test_every_parameter_matches_exactly_one_decay_rule_and_kernels_decay(name):
    for pool in ("cls", "gap", "map"):
        model = create_model(
            name, pool=pool, registers=2, layer_scale=0.1, qk_norm=True, pre_logits=True
        )
        for path, decays in flatten(decay_mask(model.family, model.abstract_params)).items():
            assert decays == path.endswith("/kernel"), path


@pytest.mark.parametrize("name", sorted(set(known()) - set(OWN)))
def test_every_optimiser_taken_scales_with_the_rate(name):
    """Two updates at rate 1/4 are a quarter of those at rate 1, whatever optax's next release
    brings: the step applies the schedule outside of the optimiser."""
    make = getattr(optax, name)
    params = {k: jnp.float32(p) for k, p in PARAMS.items()}
    found = {}
    for rate in (1.0, 0.25):
        tx = make(learning_rate=rate)
        state, updates = tx.init(params), None
        for grads in GRADS[:2]:
            tree = {k: jnp.float32(g) for k, g in grads.items()}
            updates, state = tx.update(tree, state, params)
        found[rate] = updates
    for path in params:
        np.testing.assert_allclose(0.25 * found[1.0][path], found[0.25][path], rtol=2e-5, atol=1e-7)
