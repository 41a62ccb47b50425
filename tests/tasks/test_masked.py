"""The loss of masked patches equals its definition. Masked autoencoders train, continue and are
measured by the commands that do so for classifiers, and a classifier begins with one."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import rows, told
from vit_jax.errors import UserError
from vit_jax.recipe import load, override
from vit_jax.training.resolve import known, resolve
from vit_jax.training.run import run_of

TINY = {
    "batch_size": 32, "total_steps": 6, "log_every_steps": 1, "eval_every_steps": 6,
    "checkpoint.every_steps": 3, "schedule.warmup_steps": 2, "schedule.name": "constant",
    "model.hidden_size": 16, "model.num_layers": 2, "model.mlp_dim": 16,
    "model.decoder_width": 16, "model.decoder_mlp_dim": 16, "mesh.min_shard_size": 64,
}  # fmt: skip


def config(**changes):
    c = load("mae.py:digits")
    with c.unlocked():
        c.schedule.warmup_epochs = c.total_epochs = c.eval_every_epochs = None
        for key, value in (TINY | {k.replace("__", "."): v for k, v in changes.items()}).items():
            c.update_from_flattened_dict({key: value})
    return c


def loss_of(told, images, masked, patch, normalised):
    """One image and one masked patch at a time, of `images` as the model is shown them."""
    losses = []
    for pixels, prediction, mask in zip(images, told, masked, strict=True):
        columns, errors = pixels.shape[1] // patch, []
        for number in np.flatnonzero(mask):
            top, left = patch * (number // columns), patch * (number % columns)
            wanted = pixels[top : top + patch, left : left + patch].reshape(-1).astype(float)
            if normalised:
                wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var(ddof=1) + 1e-6)
            errors.append(np.mean((prediction[number] - wanted) ** 2))
        losses.append(np.mean(errors))
    return np.array(losses)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_the_error_of_masked_pixels(normalised):
    run = run_of(config(model__norm_pixels=normalised), data=known)
    task, model = run.task, run.model
    params, rng = model.init(), np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)}
    batch = task.prepared(batch, jax.random.key(4))
    images = batch["image"] / 127.5 - 1
    prediction, out = model.apply(params, images.astype(np.float32), noise=batch["noise"])
    assert np.asarray(out["mask"]).sum(axis=1).tolist() == [8] * 5
    expected = loss_of(prediction, images, out["mask"], 2, normalised)
    np.testing.assert_allclose(task.losses(params, batch), expected, rtol=1e-4)
    found, parts = task.loss(params, batch, jax.random.key(0))
    assert float(found) == pytest.approx(expected.mean(), rel=1e-4)
    assert parts == {}


def first_losses(steps=2, devices=1, **changes):
    """The losses of the first steps."""
    run = run_of(config(**changes), devices=jax.devices()[:devices])
    step, state = run.compile_train_step(), run.init_state()
    batches = run.train_batches(0, steps)
    found = []
    for _, batch in batches:
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    batches.close()
    return found


def test_passes_of_any_size_have_the_same_masks():
    np.testing.assert_allclose(first_losses(microbatch=8), first_losses(), rtol=2e-6)


def test_every_step_masks_other_patches():
    """The same batch at a rate of 0: what differs are the masks."""
    run = run_of(config(optimizer__lr=0.0), devices=jax.devices()[:1])
    step, state = run.compile_train_step(), run.init_state()
    batches = run.train_batches(0, 1)
    _, batch = next(batches)
    state, first = step(state, batch)
    _, second = step(state, batch)
    batches.close()
    assert float(first["loss"]) != float(second["loss"])
    assert int(first["examples_hash"]) == int(second["examples_hash"])


@pytest.mark.long
def test_losses_agree_on_every_mesh():
    reference = first_losses(4)
    for mesh in ((8, 1, 1), (1, 8, 1), (2, 2, 2)):
        sizes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
        for scan in (False, True):
            found = first_losses(4, 8, model__scan=scan, **sizes)
            np.testing.assert_allclose(found, reference, rtol=1e-5, err_msg=f"{mesh} {scan}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mae")
    return workdir, vit_jax.train(config(), workdir, quiet=True)


def test_it_trains_and_its_result_has_the_held_out_loss(trained):
    workdir, result = trained
    assert next(iter(result)) == "loss"
    assert result["loss"] == result["eval/val/loss"]
    assert result["eval/val/examples"] == 355
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    card = (workdir / "model_card.md").read_text()
    assert f"**Held out**: loss {result['loss']:.4g} on 355 images" in card
    assert "Classes" not in card


def test_it_continues_bit_for_bit(trained, tmp_path):
    vit_jax.train(config(total_steps=3), tmp_path, quiet=True)
    vit_jax.train(config(), tmp_path, quiet=True)
    assert told(tmp_path) == told(trained[0])


def test_positions_stay_while_it_trains(trained):
    model, params, _ = vit_jax.load_pretrained(trained[0], decoder=True, say=None)
    first = model.init()
    for name in ("pos_embed", "decoder_pos_embed"):
        jax.tree.map(np.testing.assert_array_equal, params[name], first[name])
    assert (np.asarray(params["mask_token"]) != np.asarray(first["mask_token"])).any()


def test_the_held_out_loss_is_the_same_at_any_batch_size(trained, vit):
    workdir, result = trained
    for size in (8, 96):
        code, out, err = vit("evaluate", f"--workdir={workdir}", "--json",
                             f"--config.eval_batch_size={size}")  # fmt: skip
        assert code == 0, err
        measured = json.loads(out.splitlines()[-1])
        assert measured["loss"] == pytest.approx(result["loss"], rel=1e-6)
        assert measured["examples"] == 355


@pytest.mark.long
def test_it_is_planned_described_benched_reported_and_averaged(trained, tmp_path, vit):
    workdir, _ = trained
    small = [f"--config.{key}={TINY[key]}" for key in ("model.hidden_size", "model.num_layers")]
    code, out, err = vit("plan", "--config=mae.py:digits", "--topology=local", *small)
    assert (code, "mae_vit_nano_patch2_8" in out) == (0, True), err
    code, out, err = vit("describe", "--config=mae.py:digits", *small)
    assert (code, "model.mask_ratio = 0.5" in out) == (0, True), err
    code, out, err = vit("bench", "step", "--config=mae.py:digits", *small)
    assert (code, "mae_vit_nano_patch2_8, step" in out) == (0, True), err
    code, _, err = vit("report", workdir, f"--output={tmp_path}/report.html")
    assert code == 0, err
    code, _, err = vit("ckpt", "average", workdir, "--last=2", f"--output={tmp_path}/mean")
    assert code == 0, err
    model, _, report = vit_jax.load_pretrained(tmp_path / "mean", decoder=True, say=None)
    assert model.family.name == "mae"
    assert set(report.fates.values()) == {"loaded"}


# -- a classifier from it --------------------------------------------------------------------------


def test_a_classifier_begins_with_its_encoder_and_says_what_it_leaves(trained, tmp_path, capsys):
    c = load("digits.py")
    with c.unlocked():
        c.model.update({"patch_size": 2, "hidden_size": 16, "num_layers": 2, "mlp_dim": 16,
                        "pool": "cls", "image_size": 16})  # fmt: skip
        c.data.train.pipeline = c.data.eval.pipeline = "decode|resize"
        c.total_epochs, c.total_steps, c.schedule.warmup_epochs = None, 1, None
        c.eval_every_epochs, c.optimizer.lr, c.init = None, 0.0, str(trained[0])
    vit_jax.train(c, tmp_path, named=["model.image_size"])
    said = capsys.readouterr().err
    assert "2 re-initialised" in said
    assert "resized (4 x 4 to 8 x 8, huggingface): pos_embed/grid" in said
    assert "unused (the decoder of a masked autoencoder): 21 tensors" in said
    _, params, _ = vit_jax.load_pretrained(tmp_path, say=None)
    _, mae, _ = vit_jax.load_pretrained(trained[0], decoder=True, say=None)
    assert "decoder" not in params
    for part in ("encoder", "norm", "embed", "cls"):
        jax.tree.map(np.testing.assert_array_equal, params[part], mae[part])


def test_without_its_decoder_it_is_a_vit_for_every_command(trained, tmp_path, vit):
    workdir, _ = trained
    model, params, report = vit_jax.load_pretrained(workdir, say=None)
    assert (model.family.name, model.config.num_classes) == ("vit", 0)
    assert report.fates["mask_token"] == "unused (the decoder of a masked autoencoder)"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "a.png")
    code, _, err = vit("predict", workdir, tmp_path / "a.png")
    assert (code, "has no head: it predicts no classes" in err) == (2, True)
    code, _, err = vit("predict", workdir, tmp_path / "a.png", f"--features={tmp_path}/f.npz")
    assert code == 0, err
    features = np.load(tmp_path / "f.npz")["features"]
    _, out = model.apply(params, np.full((1, 8, 8, 1), 90 / 127.5 - 1, np.float32))
    np.testing.assert_allclose(features, out["pre_logits"], atol=1e-5)
    code, _, err = vit("convert", workdir, tmp_path / "vit.safetensors", "--to=timm")
    assert code == 0, err
    again, _, _ = vit_jax.load_pretrained(tmp_path / "vit.safetensors", say=None)
    assert again.family.name == "vit"


def test_another_one_begins_with_it_whole(trained, tmp_path):
    c = config(init=str(trained[0]), total_steps=1, optimizer__lr=0.0)
    vit_jax.train(c, tmp_path, quiet=True)
    both = [vit_jax.load_pretrained(path, decoder=True, say=None)[1]
            for path in (trained[0], tmp_path)]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *both)


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__mask_ratio": 0.0}, "masks none of 16 patches: there is nothing to predict"),
        ({"model__num_classes": 10}, "num_classes is 0: a masked autoencoder has no head, .* 10"),
        ({"task": "classification"}, "has no head, and task=masked trains it, not 10"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        resolve(config(**changes), data=known)


def test_the_recipe_is_the_papers():
    c = resolve(load("mae.py:b16,imagenet2012"), devices=8, data=known).config
    assert (c.model.name, c.task, c.batch_size) == ("mae_vit_base_patch16_224", "masked", 4096)
    assert c.optimizer.lr == pytest.approx(1.5e-4 * 16)
    assert (c.optimizer.b1, c.optimizer.b2, c.optimizer.weight_decay) == (0.9, 0.95, 0.05)
    assert c.total_steps == round(800 * 1_281_167 / 4096)
    assert c.schedule.warmup_steps == round(40 * 1_281_167 / 4096)
    assert (c.model.mask_ratio, c.model.norm_pixels, c.model.gelu) == (0.75, True, "exact")
    assert c.data.train.pipeline == "decode|inception_crop(None, 0.2)|flip_lr"


@pytest.mark.parametrize("arguments", ["b16", "r50_b16,digits", "mixer_b16,digits", "x9,digits"])
def test_the_recipe_says_what_it_takes(arguments):
    with pytest.raises(
        UserError, match=r"mae.py (needs a size and data|takes a plain ViT)|unknown"
    ):
        load(f"mae.py:{arguments}")


def test_the_mask_task_is_not_for_other_models():
    c = load("mae.py:digits")
    named = override(c, {"model.name": "vit_nano_patch2_8"})
    with pytest.raises(UserError, match="vit_nano_patch2_8 is for task=classification"):
        resolve(c, named, data=known)


def test_weights_without_a_decoder_do_not_begin_one(tmp_path, vit):
    vit_model = vit_jax.create_model("vit_nano_patch2_8", num_classes=3, channels=1)
    vit_jax.save_pretrained(vit_model, vit_model.init(), tmp_path / "vit", to="orbax")
    code, _, err = vit("train", "--config=mae.py:digits", f"--workdir={tmp_path}/run",
                       f"--config.init={tmp_path}/vit")  # fmt: skip
    assert code == 2
    assert "holds a ViT (vit" in err
    assert "but model.name is mae_vit_nano_patch2_8" in err
