"""Distillation from a second model and weights of classes, against NumPy statements."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.digits_run import tiny_config
from vit_jax.checkpoint import manager
from vit_jax.errors import UserError
from vit_jax.tasks.distillation import Hard, Soft
from vit_jax.tasks.losses import sigmoid_cross_entropy, softmax_cross_entropy, weighted
from vit_jax.training.run import run_of
from vit_jax.training.same_run import check_same_run

RNG = np.random.default_rng(0)
LOGITS, TEACHER = RNG.normal(size=(2, 6, 4))
TARGETS = np.eye(4)[RNG.integers(0, 4, 6)] * 0.8 + 0.05
ONE = jax.devices()[:1]


def softmax(x):
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_hintons(temperature):
    p, q = softmax(TEACHER / temperature), softmax(LOGITS / temperature)
    wanted = temperature**2 * (p * np.log(p / q)).sum(-1)
    found = Soft("any", temperature=temperature).loss(jnp.float32(LOGITS), jnp.float32(TEACHER))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    same = Soft("any", temperature=temperature).loss(jnp.float32(TEACHER), jnp.float32(TEACHER))
    np.testing.assert_allclose(same, 0, atol=1e-6)


def test_hard_distillation_is_cross_entropy_to_the_teachers_class():
    wanted = -np.log(softmax(LOGITS))[np.arange(6), TEACHER.argmax(-1)]
    found = Hard("any").loss(jnp.float32(LOGITS), jnp.float32(TEACHER))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_class_weights_multiply_each_classs_term():
    weights = [0.5, 1.0, 2.0, 0.0]
    found = weighted(softmax_cross_entropy, weights)(jnp.float32(LOGITS), jnp.float32(TARGETS))
    wanted = -(np.array(weights) * TARGETS * np.log(softmax(LOGITS))).sum(-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    found = weighted(sigmoid_cross_entropy, weights)(jnp.float32(LOGITS), jnp.float32(TARGETS))
    p = 1 / (1 + np.exp(-LOGITS))
    terms = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p))
    np.testing.assert_allclose(found, (np.array(weights) * terms).sum(-1), rtol=1e-5)
    assert weighted(softmax_cross_entropy, None) is softmax_cross_entropy


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    vit_jax.train(tiny_config(total_steps=30, optimizer__lr=1e-2), workdir, devices=ONE, quiet=True)
    return workdir


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_of_a_step_is_the_mix_of_both(teacher, kind, weight):
    plain = {"mixup": 0.0, "model__dropout": 0.0, "model__drop_path": 0.0,
             "model__attention_dropout": 0.0, "seed": 3}  # fmt: skip
    temperature = ", temperature=2.0" if kind == "soft" else ""
    config = tiny_config(distill=f"{kind}('{teacher}', weight={weight}{temperature})", **plain)
    run = run_of(config, devices=ONE)
    state = run.init_state()
    rng = np.random.default_rng(5)
    state["params"]["head"]["kernel"] = jnp.float32(
        rng.normal(size=state["params"]["head"]["kernel"].shape)
    )
    batches = run.train_batches(0, 1)
    batch = next(batches)[1]
    batches.close()
    images = run.model.data_config.normalise(batch["image"])
    logits = np.asarray(run.model.apply(state["params"], images)[0], np.float64)
    taught_model, taught_params = run.task.teacher, run.task.held
    taught = np.asarray(taught_model.apply(taught_params, images)[0], np.float64)
    label = np.asarray(batch["label"])
    _, metrics = run.compile_train_step()(state, batch)
    log_q = np.log(softmax(logits))
    own = -log_q[np.arange(len(label)), label].mean()
    part = -log_q[np.arange(len(label)), taught.argmax(-1)].mean()
    if kind == "soft":
        p, q = softmax(taught / 2), softmax(logits / 2)
        part = 4 * (p * np.log(p / q)).sum(-1).mean()
    assert float(metrics["loss"]) == pytest.approx((1 - weight) * own + weight * part, rel=1e-4)


def test_a_distilled_vit_learns_from_the_teacher_with_its_second_token(teacher):
    config = tiny_config(
        distill=f"hard('{teacher}', weight=1.0)",
        model__distilled=True, mixup=0.0,
    )  # fmt: skip
    run = run_of(config, devices=ONE)
    step, state = run.compile_train_step(), run.init_state()
    batches = run.train_batches(0, 2)
    before = jax.device_get(state["params"])
    for _ in range(2):
        state, _ = step(state, next(batches)[1])
    batches.close()
    after = jax.device_get(state["params"])
    moved = {h: np.abs(after[h]["bias"] - before[h]["bias"]).max() for h in ("head", "head_dist")}
    assert moved["head"] == 0.0  # the labels count for nothing
    assert moved["head_dist"] > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distill": "soft"}, r"distill soft: .*'teacher' \(it takes teacher"),
        ({"distill": "mild('W')"}, "unknown distill 'mild': .*hard"),
        ({"distill": "hard('W', weight=3)"}, "distill hard: weight lies in 0 … 1, not 3"),
        ({"distill": "soft('W', temperature=0)"}, "temperature is a number above 0, not 0"),
        ({"distill": "hard('W', temperature=2)"}, "distill hard: .*temperature"),
        ({"distill": "soft('W'"}, "distill .* cannot be read"),
        ({"distill": "soft('V')|soft('W')"}, "names 2 teachers"),
        ({"distill": "soft('/none')"}, "/none"),
        ({"loss__name": "sigmoid", "loss__label_smoothing": 0.1},
         "loss.label_smoothing is set, but loss.name='sigmoid' does not read it"),
        ({"loss__class_weights": [1.0, 2.0]}, "a number, 0 or more, for each of the 10 classes"),
        ({"ema": 1.0}, "ema is a number between 0 and 1"),
        ({"optimizer__layer_decay": 0.0}, r"optimizer.layer_decay is a number in \(0, 1\]"),
        ({"optimizer__name": "schedule_free"}, "needs schedule.name=constant"),
        ({"optimizer__decay_by": "lr"}, "decay_by is one of rate, schedule, not .lr."),
        ({"optimizer__name": "muon", "optimizer__kwargs": {"steps": 3}}, "optimiser muon: .*steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(changes, says, tmp_path):
    with pytest.raises(UserError, match=says):
        vit_jax.train(tiny_config(**changes), tmp_path / "run", devices=ONE, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_class_count_is_refused(teacher, tmp_path):
    config = tiny_config(
        distill=f"soft('{teacher}')", model__channels=1,
        data__train__source="synthetic:classes=4,size=8,channels=1",
    )  # fmt: skip
    with pytest.raises(UserError, match="has 10 classes, the model 4: a teacher knows the same"):
        vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)


def test_a_teacher_of_other_classes_or_channels_is_refused(teacher, tmp_path):
    from made_images import folder_of_images

    counts = {f"{split}/c{c}": 2 for split in ("train", "val") for c in range(10)}
    photos = folder_of_images(tmp_path / "photos", counts)
    wanted = {
        "distill": f"hard('{teacher}')", "batch_size": 8,
        "data__train__pipeline": "decode|resize", "data__eval__pipeline": "decode|resize",
    }  # fmt: skip
    for channels, says in ((1, "knows other classes"), (3, "takes images of 1 channels")):
        config = tiny_config(
            data__train__source=f"folder:{photos}", model__channels=channels, **wanted
        )
        with pytest.raises(UserError, match=says):
            vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)


def test_a_distilled_run_is_measured_when_its_teacher_is_gone(teacher, tmp_path, capsys):
    import shutil

    from vit_jax import cli

    shutil.copytree(teacher, tmp_path / "teacher")
    config = tiny_config(distill=f"soft('{tmp_path}/teacher')", total_steps=1)
    vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    shutil.rmtree(tmp_path / "teacher")
    assert cli.main(["evaluate", f"--workdir={tmp_path}/run", "--json"]) == 0
    capsys.readouterr()


def test_a_rate_for_another_batch_size_is_scaled_aloud():
    run = run_of(tiny_config(optimizer__lr=1e-3, optimizer__lr_per=256), devices=ONE)
    assert run.config.optimizer.lr == pytest.approx(1e-3 * 32 / 256)
    assert any("learning rate 0.001 for batches of 256 is 0.000125" in line for line in run.said)
    assert run_of(tiny_config(optimizer__lr=1e-3), devices=ONE).config.optimizer.lr == 1e-3


def test_a_teacher_may_lie_elsewhere_when_the_run_goes_on_but_be_no_other_one(teacher, tmp_path):
    def run(weights):
        return run_of(tiny_config(distill=f"hard('{weights}')", total_steps=1), devices=ONE)

    first = shutil.copytree(teacher, tmp_path / "first")
    config = tiny_config(distill=f"hard('{first}')", total_steps=1)
    vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    checkpoint = manager.find(tmp_path / "run")
    first.rename(tmp_path / "second")
    (line,) = check_same_run(run(tmp_path / "second"), checkpoint)
    assert line == f"the data has moved: hard('{first}') -> hard('{tmp_path}/second')"
    with pytest.raises(UserError, match=r"distill hard\('.*'\) has other weights"):
        check_same_run(run(tmp_path / "second" / "checkpoints" / "20"), checkpoint)
