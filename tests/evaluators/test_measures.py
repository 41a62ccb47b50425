"""Measures of a split against their definitions in NumPy and scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from tests.digits_run import tiny_config
from vit_jax.evaluators import classification, frozen
from vit_jax.evaluators.named import first_of_each
from vit_jax.training.evaluation import measure
from vit_jax.training.run import run_of

RNG = np.random.default_rng(0)


def rows_of(logits, labels):
    """What the compiled step tells, from logits [N, C] and labels [N]."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    wanted = logits[np.arange(len(labels)), labels]
    return {
        "label": labels, "ahead": (logits > wanted[:, None]).sum(1), "predicted": logits.argmax(1),
        "nll": -np.log(shares[np.arange(len(labels)), labels]), "confidence": shares.max(1),
        "scores": logits,
    }  # fmt: skip


def test_1003_images_have_the_same_metrics_at_every_batch_size_and_number_of_devices():
    found = []
    for devices, batches in {1: (1, 7, 64), 8: (8, 56, 64)}.items():
        for batch_size in batches:
            config = tiny_config(
                eval_batch_size=batch_size, data__train__pipeline="decode", model__channels=1,
                data__train__source="synthetic:examples=1003,classes=10,size=8,channels=1",
            )  # fmt: skip
            run = run_of(config, devices=jax.devices()[:devices])
            params = run.init_state()["params"]
            head = np.random.default_rng(1).normal(size=params["head"]["kernel"].shape)
            params["head"]["kernel"] = jax.device_put(head.astype(np.float32))
            found.append(measure(run, params, print))
    assert found[0]["examples"] == 1003
    assert {"accuracy", "top5_accuracy", "loss", "class_accuracy", "ece"} < found[0].keys()
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)


def test_metrics_of_one_label_are_those_of_the_definitions():
    logits, labels = RNG.normal(size=(500, 7)) * 2, RNG.integers(0, 6, 500)  # none of class 6
    rows = rows_of(logits, labels)
    found = classification.metrics(rows)
    right = logits.argmax(1) == labels
    assert found["accuracy"] == right.mean()
    assert found["top5_accuracy"] == np.mean(
        [label in np.argsort(-row)[:5] for row, label in zip(logits, labels, strict=True)]
    )
    assert found["loss"] == pytest.approx(rows["nll"].mean())
    each = [right[labels == c].mean() for c in range(6)]
    assert found["class_accuracy"] == pytest.approx(np.mean(each))
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (rows["confidence"] > low) & (rows["confidence"] <= low + 1 / 15)
        if inside.any():
            gap = right[inside].mean() - rows["confidence"][inside].mean()
            ece += inside.mean() * abs(gap)
    assert found["ece"] == pytest.approx(ece, abs=1e-9)


def test_a_perfectly_calibrated_model_has_no_calibration_error():
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert classification.calibration_error(confidence, right) == pytest.approx(0, abs=1e-12)
    assert classification.calibration_error(np.ones(10), np.zeros(10, bool)) == 1.0


def test_mean_average_precision_is_the_area_under_precision_and_recall():
    scores = RNG.integers(0, 12, (60, 5)).astype(float)  # with ties
    labels = np.full((60, 3), classification.NO_LABEL)
    for row in labels:
        several = RNG.choice(4, RNG.integers(0, 4), replace=False)  # class 4 never occurs
        row[: len(several)] = several
    wanted = []
    for c in range(4):
        there = (labels == c).any(1)
        area = before = 0.0
        for threshold in sorted(set(scores[:, c]), reverse=True):
            chosen = scores[:, c] >= threshold
            recall = (chosen & there).sum() / there.sum()
            area += (recall - before) * (chosen & there).sum() / chosen.sum()
            before = recall
        wanted.append(area)
    found = classification.mean_average_precision(scores, labels)
    assert found == pytest.approx(np.mean(wanted), abs=1e-9)


def test_within_a_subset_the_model_chooses_among_its_classes_alone():
    logits, labels = RNG.normal(size=(300, 9)), RNG.choice([1, 4, 7], 300)
    found = classification.metrics(
        classification.within(rows_of(logits, labels), np.array([1, 4, 7]))
    )
    small = classification.metrics(
        rows_of(logits[:, [1, 4, 7]], np.searchsorted([1, 4, 7], labels))
    )
    for key in ("accuracy", "loss", "ece", "class_accuracy", "examples"):
        assert found[key] == pytest.approx(small[key], abs=1e-9), key


def test_real_accuracy_leaves_out_images_without_labels():
    predicted, numbers = np.array([3, 5, 1, 0]), np.array([2, 0, 1, 3])
    assert classification.real_accuracy(predicted, numbers, [[5, 6], [], [1, 2], [0]]) == 2 / 3


def test_confusion_counts_and_ranks_mistakes():
    logits, labels = RNG.normal(size=(200, 4)), RNG.integers(0, 4, 200)
    rows = rows_of(logits, labels)
    found = classification.Confusion.of(rows, 4)
    for true in range(4):
        for guess in range(4):
            wanted = ((labels == true) & (logits.argmax(1) == guess)).sum()
            assert found.counts[true, guess] == wanted
    wrong = logits.argmax(1) != labels
    assert set(found.mistakes) == set(np.flatnonzero(wrong))
    assert (np.diff(rows["confidence"][found.mistakes]) <= 0).all()


# -- frozen features


def clusters(count, classes=5, width=12, spread=2.5, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, count)
    return (centres[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize("count", [8, 60, 300])  # fewer than features, and more
def test_few_shot_is_ridge_regression_with_the_penalty_of_the_least_leave_one_out_error(count):
    train, labels = clusters(count)
    test, test_labels = clusters(400, seed=1)
    accuracy, penalty = frozen.few_shot(train, labels, test, test_labels, 5)
    mean, std = train.astype(float).mean(0), train.astype(float).std(0) + 1e-5
    x, z = (
        np.pad((f - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for f in (train, test)
    )
    y = np.where(np.arange(5) == labels[:, None], 1.0, -1.0)
    errors = {}
    for power in range(-10, 21, 5):
        ridge = Ridge(2.0**power, fit_intercept=False, solver="cholesky")
        errors[2.0**power] = sum(
            (
                (ridge.fit(np.delete(x, i, 0), np.delete(y, i, 0)).predict(x[i : i + 1]) - y[i])
                ** 2
            ).sum()
            for i in range(len(x))
        )
    chosen = Ridge(penalty, fit_intercept=False, solver="cholesky").fit(x, y)
    wanted = (chosen.predict(z).argmax(1) == test_labels).mean()
    assert accuracy == pytest.approx(wanted, abs=1e-4)
    residual = sum(
        ((Ridge(penalty, fit_intercept=False, solver="cholesky")
          .fit(np.delete(x, i, 0), np.delete(y, i, 0)).predict(x[i : i + 1]) - y[i]) ** 2).sum()
        for i in range(len(x))
    )  # fmt: skip
    assert residual <= min(errors.values()) * (1 + 1e-3)


def test_nearest_neighbours_vote_as_scikit_learns_do():
    train, labels = clusters(250)
    test, test_labels = clusters(300, seed=1)
    found = frozen.nearest(train, labels, test, test_labels, 5)
    assert list(found) == [10, 20, 100, 200]
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (train, test)]
    for k, accuracy in found.items():
        peer = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
        wanted = peer.fit(unit[0], labels).score(unit[1], test_labels)
        assert accuracy == pytest.approx(wanted, abs=1e-4)
    few = frozen.nearest(train[:7], labels[:7], test, test_labels, 5)
    assert list(few) == [7]


def test_a_linear_probe_is_logistic_regression_with_the_c_that_is_best_on_images_left_out():
    train, labels = clusters(200)
    test, test_labels = clusters(300, seed=1)
    accuracy, c = frozen.linear_probe(train, labels, test, test_labels, grid=(1e-4, 0.01, 1.0))
    x, z = frozen.standardised(train, test)
    out = np.arange(200) % 10 == 9
    scores = {}
    for one in (1e-4, 0.01, 1.0):
        peer = LogisticRegression(C=one, max_iter=1000).fit(x[~out], labels[~out])
        scores[one] = peer.score(x[out], labels[out])
    assert scores[c] == max(scores.values())
    wanted = LogisticRegression(C=c, max_iter=1000).fit(x, labels).score(z, test_labels)
    assert accuracy == pytest.approx(wanted, abs=1e-4)
    assert frozen.linear_probe(train[:4], np.array([0, 1, 0, 1]), test, test_labels)[0] >= 0


def test_the_first_examples_of_each_class_are_nested():
    labels = RNG.integers(0, 6, 200)
    before: set = set()
    for count in (1, 3, 10):
        chosen = first_of_each(labels, count)
        assert (np.bincount(labels[chosen], minlength=6) == count).all()
        assert before <= set(chosen)
        for c in range(6):
            assert (
                chosen[labels[chosen] == c].tolist() == np.flatnonzero(labels == c)[:count].tolist()
            )
        before = set(chosen)
