"""The peers that are measured beside ours are the same model, and do train."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peer_sides

from vit_jax.benching import steps
from vit_jax.config import base
from vit_jax.training.groups import trainable
from vit_jax.training.resolve import known
from vit_jax.training.run import run_of

BATCH = 4


@pytest.fixture(scope="module")
def run():
    c = base()
    c.batch_size, c.total_steps = BATCH, 10
    c.model.update({
        "hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 64, "image_size": 32,
    })  # fmt: skip
    c.data.train.source, c.data.eval.split = "synthetic:examples=8,classes=5,size=32", ""
    return run_of(c, devices=1, data=known)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    return {"image": images, "label": np.arange(BATCH, dtype=np.int32) % 5}


@pytest.mark.parametrize("name", peer_sides.PEERS)
def test_a_peer_learns_its_batch_by_heart(run, batch, name):
    work = peer_sides.PEERS[name]("step", run, batch)
    losses = []
    for _ in range(100):
        loss = work.start()
        work.wait(loss)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(5), abs=1.0)
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("name", peer_sides.PEERS)
def test_a_forward_pass_gives_every_image_its_logits(run, batch, name):
    work = peer_sides.PEERS[name]("forward", run, batch)
    logits = np.asarray(work.start())
    assert logits.shape == (BATCH, 5)
    assert np.isfinite(logits).all()


def test_a_peer_of_another_size_is_left_out(run, batch):
    class Part:
        name = run.model.name
        config = run.model.config
        abstract_params = dict(list(run.model.abstract_params.items())[:1])

    class Other:
        config, model = run.config, Part

    for peer in peer_sides.PEERS.values():
        with pytest.raises(steps.NotMeasured, match="not the same model"):
            peer("forward", Other, batch)


def test_a_measured_detector_trains_as_many_parameters_as_transformers_does():
    run = steps.plain_run("detr_resnet50", 1, 91, image_size=(64, 96))
    theirs = peer_sides.huggingface_detr(run)
    trained = trainable(run.model.abstract_params, run.config.optimizer.freeze)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == sum(
        one.numel() for one in theirs.parameters() if one.requires_grad
    )
