"""Losses of the user's own, by import path: they train as the built-in ones do, on every mesh, and
what cannot train is refused before anything is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config, told
from tests.made_images import folder_of_images
from tests.refusals import refused
from tests.xla_flags import xla_flags
from vit_jax import cli, recipe
from vit_jax.errors import UserError
from vit_jax.pretrained.weights import open_weights
from vit_jax.tasks.own_loss import own_loss

ONE = jax.devices()[:1]
FOCAL = "tests.extensions.toy_loss:focal"
BINARY = "tests.extensions.toy_loss:binary_focal"


def softmax(x):
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("text", "gamma"),
    [(FOCAL, 2), (f"{FOCAL}(gamma=0.5)", 0.5), (f"{FOCAL}(3)", 3), (f"{BINARY}(gamma=1)", 1)],
)
def test_the_loss_is_its_definition_on_soft_targets(text, gamma):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (6, 4)), softmax(rng.normal(size=(6, 4)))
    if "binary" in text:
        p = 1 / (1 + np.exp(-logits))
        terms = targets * (1 - p) ** gamma * np.log(p) + (1 - targets) * p**gamma * np.log(1 - p)
    else:
        p = softmax(logits)
        terms = targets * (1 - p) ** gamma * np.log(p)
    found = own_loss(text)(jnp.float32(logits), jnp.float32(targets))
    np.testing.assert_allclose(found, -terms.sum(-1), rtol=1e-5)


def losses(folder, loss, devices=ONE, **changes):
    """The losses of a run with mixup, CutMix and smoothing."""
    config = tiny_config(
        loss__name=loss, loss__label_smoothing=0.1, cutmix=0.5, total_steps=4, mixup=0.2,
        data__eval__split="", schedule__name="constant", model__num_layers=1, **changes,
    )  # fmt: skip
    vit_jax.train(config, folder, devices=devices, quiet=True)
    return np.array([row["loss"] for row in rows(folder) if "loss" in row])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """With loss=softmax, on one device, by what else differs."""
    folder = tmp_path_factory.mktemp("plain")
    passes = {"microbatch": 8} | dict.fromkeys(DROPS, 0.0)
    return {
        "plain": losses(folder / "plain", "softmax"),
        "passes": losses(folder / "passes", "softmax", **passes),
        "bfloat16": losses(folder / "bfloat16", "softmax", model__dtype="bfloat16"),
    }


DROPS = ("model__dropout", "model__attention_dropout", "model__drop_path")


@pytest.mark.parametrize(
    ("like", "devices", "changes"),
    [
        ("plain", ONE, {}),
        ("plain", None, {"mesh__fsdp": 2, "mesh__tensor": 2, "mesh__min_shard_size": 1}),
        ("passes", ONE, {"microbatch": 8} | dict.fromkeys(DROPS, 0.0)),
        ("bfloat16", ONE, {"model__dtype": "bfloat16"}),
    ],
    ids=["one device", "eight devices", "four passes", "bfloat16"],
)
def test_without_focus_it_trains_as_the_softmax_does(plain, tmp_path, like, devices, changes):
    """With gamma=0 the focal loss is cross-entropy (arXiv 1708.02002, section 3.2)."""
    found = losses(tmp_path / "run", f"{FOCAL}(gamma=0)", devices, **changes)
    np.testing.assert_allclose(found, plain[like], rtol=1e-4 if like == "bfloat16" else 2e-5)


def test_with_focus_it_does_not(plain, tmp_path):
    assert not np.allclose(losses(tmp_path / "run", FOCAL), plain["plain"], rtol=0.1)


def test_a_run_is_continued_bit_for_bit_and_by_the_same_loss_alone(tmp_path):
    for total in (3, 6):
        config = tiny_config(
            loss__name=FOCAL, total_steps=total, checkpoint__every_steps=3, data__eval__split="",
            schedule__name="constant", schedule__warmup_steps=2, model__num_layers=1,
        )  # fmt: skip
        vit_jax.train(config, tmp_path / "parts", devices=ONE, quiet=True)
    vit_jax.train(config, tmp_path / "whole", devices=ONE, quiet=True)
    assert told(tmp_path / "parts") == told(tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["loss.name"] == FOCAL
    config.total_steps, config.loss.name = 8, f"{FOCAL}(gamma=1)"
    with pytest.raises(UserError, match=rf"loss.name: '{FOCAL}' -> '{FOCAL}\(gamma=1\)'"):
        vit_jax.train(config, tmp_path / "parts", devices=ONE, quiet=True)


@pytest.mark.long
def test_another_process_evaluates_and_predicts_and_the_loss_is_not_run_to_predict(tmp_path):
    (tmp_path / "losses_of_mine.py").write_text(
        "import jax\nfrom pathlib import Path\nPath('ran').touch()\n"
        "def mine(logits, targets):\n"
        "    return (jax.nn.softplus(logits) - targets * jax.nn.log_sigmoid(logits)).sum(-1)\n"
        "mine.activation = 'sigmoid'\n"
    )
    folder_of_images(tmp_path / "photos", {"cat": 6, "dog": 6})
    image = tmp_path / "photos" / "cat" / "0.jpg"

    def vit(*arguments):
        code = f"import sys; from vit_jax import cli; sys.exit(cli.main({list(arguments)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {
                "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(Path(__file__).parents[2])
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        ran = (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink(missing_ok=True)
        return done.stdout, ran

    _, ran = vit(
        "train", "--config=folder.py:photos", "--config.loss=losses_of_mine:mine", "--workdir=run",
        "--config.model.name=vit_mu_patch4_8", "--config.model.image_size=8",
        "--config.total_steps=1", "--config.batch_size=8",
    )  # fmt: skip
    assert ran
    out, ran = vit("evaluate", "--workdir=run", "--json")
    assert ran
    assert json.loads(out)["examples"] > 0
    out, ran = vit("predict", "run", str(image), "--json", "--threshold=0.0001")
    assert not ran
    assert len(json.loads(out)[0]["predictions"]) == 2  # of a softmax, --threshold is refused
    assert cli.main(["convert", f"{tmp_path}/run", f"{tmp_path}/own", "--to=orbax"]) == 0
    assert open_weights(tmp_path / "own").model.activation == "sigmoid"


def test_several_labels_need_an_activation_of_each_class_by_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path, {"images": 12})
    lines = [f"images/{n}.jpg,{'a;b' if n % 2 else 'b;c'},{'val' if n > 8 else 'train'}"
             for n in range(12)]  # fmt: skip
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split", *lines]))

    def config(loss):
        return tiny_config(
            loss__name=loss, data__train__source=f"csv:{tmp_path}/table.csv", batch_size=8,
            data__train__pipeline="decode|resize", data__eval__pipeline="decode|resize",
            model__channels=3, total_steps=2, data__eval__split="", mixup=0.2,
        )  # fmt: skip

    with pytest.raises(UserError, match=f"loss={FOCAL} takes one: .* the activation 'sigmoid'"):
        vit_jax.train(config(FOCAL), tmp_path / "run", devices=ONE, quiet=True)
    vit_jax.train(config(BINARY), tmp_path / "run", devices=ONE, quiet=True)
    assert open_weights(tmp_path / "run").model.activation == "sigmoid"


# -- what cannot be a loss ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("mean", r"returns float32 [] for logits [18, 10], not float32 [18]; a loss takes logits"),
        ("of_classes", "returns float32 [10] for logits [18, 10], not float32 [18]; a loss takes"),
        ("numpys", "raises TracerArrayConversionError: The numpy.ndarray conversion method"),
        ("nothing", "returns a NoneType; a loss takes logits and targets"),
        ("whole", "returns int32 [18] for logits [18, 10], not float32 [18]"),
        ("of_labels", "indices must be of integer type, got float32; a loss takes logits and"),
        ("fails", "raises RuntimeError: out of; a loss takes"),
        ("divergence", "its loss is NaN or infinite for logits of 0, as a new head has them, and"),
        ("cosine", "its loss is NaN or infinite for logits of 0"),
        ("root", "its gradient is NaN or infinite for logits of 0"),
        ("flat", "cannot train: its gradient by the logits is 0 everywhere"),
        ("number", "bad_losses:number is no function: a loss takes logits and targets"),
        ("missing", "bad_losses:missing: the module has no 'missing'"),
        ("mean(2)", "too many positional arguments (it takes logits, targets)"),
        ("mean(gamma=2)", "unexpected keyword argument 'gamma' (it takes logits, targets)"),
        ("mean(gamma=)", "cannot be read"),
        ("mean|tests.tasks.bad_losses:flat", "names 2 of them: name one, as in my_package"),
        ("shy", "its activation is one of softmax, sigmoid, none, not 'relu'"),
    ],
)
def test_a_function_that_cannot_train_is_one_line_before_anything_is_written(
    vit, tmp_path, loss, said
):
    for command in (["train", f"--workdir={tmp_path}/run"], ["describe"]):
        line = refused(
            vit, *command, "--config=digits.py", f"--config.loss=tests.tasks.bad_losses:{loss}"
        )
        assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.loss=nowhere.to_be:found"], "nowhere.to_be:found: a loss cannot be imported: "),
        (["--config.loss=sofmax"], "did you mean softmax?; or give my_package.my_module:NAME"),
        (["--config.loss=:"], "loss ':': name one, as in my_package.my_module:focal"),
        ([f"--config.loss={FOCAL}", "--config.loss.class_weights=(1, 2)"],
         "(read by softmax, sigmoid); tests.extensions.toy_loss:focal reads loss.label_smoothing"),
        ([f"--config.loss={FOCAL}", "--config.task=tests.extensions.toy_task:Quadrants"],
         "is of task=classification; task=tests.extensions.toy_task:Quadrants has a loss of its"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_loss_is_one_line(vit, arguments, said):
    assert said in refused(vit, "describe", "--config=digits.py", *arguments)


def test_describe_names_the_loss_and_what_it_is_given(vit):
    code, out, _ = vit("describe", "--config=digits.py", f"--config.loss={FOCAL}(gamma=1)")
    assert code == 0
    assert f"loss.name = '{FOCAL}(gamma=1)'" in out
    assert (
        f"loss {FOCAL}(gamma=1): your own, of logits and targets [batch, 10]; predictions by "
        "softmax"
    ) in out.splitlines()


def test_a_recipe_and_a_sweep_name_it_as_any_other_value():
    config = recipe.load("digits.py", {"loss": f"{FOCAL}(gamma=1)"})
    assert config.loss.name == f"{FOCAL}(gamma=1)"
    assert config.loss.label_smoothing == recipe.load("digits.py").loss.label_smoothing
    weighted = {"loss.class_weights": "(1, 2)", "loss": FOCAL}
    with pytest.raises(UserError, match=r"loss\.class_weights is set"):
        vit_jax.train(recipe.load("digits.py", weighted), "nowhere", quiet=True)
