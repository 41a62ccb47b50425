"""`vit ckpt average`: the mean of what checkpoints hold, as weights that every command takes."""

import json
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli
from vit_jax.checkpoint import checksums, manager
from vit_jax.pretrained.average import average

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints 6, 9 and 10."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config(checkpoint__every_steps=3, ema=0.9, optimizer__freeze="embed/.*")
    vit_jax.train(config, folder, devices=ONE, quiet=True)
    return folder


def stored(checkpoint, prefix="params/"):
    """path -> array, as the files hold it, the layers listed one by one."""
    shapes = manager.stored_shapes(checkpoint)
    wanted = {path: leaf for path, leaf in shapes.items() if path.startswith(prefix)}
    arrays = {}
    for path, array in manager.read_host(checkpoint, wanted).items():
        path = path.removeprefix(prefix)
        if "/block/" in path:
            arrays |= {path.replace("/block/", f"/block{i:02d}/"): a for i, a in enumerate(array)}
        else:
            arrays[path] = array
    return arrays


def assert_mean(output, parts):
    found = stored(output)
    assert found.keys() == parts[0].keys()
    for path, array in found.items():
        wanted = np.mean([np.asarray(part[path], np.float64) for part in parts], axis=0)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, wanted.astype(np.float32), err_msg=path)


@pytest.mark.parametrize(("more", "steps"), [([], [6, 9, 10]), (["--last=2"], [9, 10])])
def test_it_is_the_mean_in_float64_rounded_once(trained, tmp_path, capsys, more, steps):
    output = tmp_path / "mean"
    assert cli.main(["ckpt", "average", str(trained), *more, f"--output={output}"]) == 0
    assert f"mean of {len(steps)} checkpoints" in capsys.readouterr().out
    assert_mean(output, [stored(trained / "checkpoints" / str(step)) for step in steps])
    assert {path.split("/")[0] for path in manager.stored_shapes(output)} == {"params"}
    assert checksums.damages(output) == []
    about, last = (manager.about(place) for place in (output, trained / "checkpoints" / "10"))
    assert about["config"] == last["config"]
    assert about["classes"] == last["classes"]
    assert not (tmp_path / ".mean.part").exists()


def test_everything_takes_it_as_weights(trained, tmp_path, capsys):
    output = tmp_path / "mean"
    named = [str(trained / "checkpoints" / step) for step in ("9", "6")]
    assert cli.main(["ckpt", "average", *named, f"--output={output}"]) == 0
    assert_mean(output, [stored(trained / "checkpoints" / step) for step in ("6", "9")])
    model, params, _ = vit_jax.load_pretrained(output, say=None)
    source = vit_jax.data.sources.open_source("digits", "val")
    images = np.stack([source[i]["image"] for i in range(len(source))])
    labels = np.array([source[i]["label"] for i in range(len(source))])
    logits, _ = model.apply(params, model.data_config.normalise(images))
    logits = np.asarray(logits, np.float64)
    loss = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels])
    capsys.readouterr()
    assert cli.main(["evaluate", f"--checkpoint={output}", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels), abs=1e-9)
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)
    result = vit_jax.train(
        tiny_config(init=str(output), total_steps=1), tmp_path / "next", devices=ONE, quiet=True
    )
    assert result["steps"] == 1
    assert cli.main(["inspect", str(output)]) == 0


def test_stacked_layers_and_listed_ones_are_averaged_alike(trained, tmp_path):
    config = tiny_config(model__scan=True, total_steps=2, optimizer__freeze="embed/.*")
    vit_jax.train(config, tmp_path / "scanned", devices=ONE, quiet=True)
    parts = [tmp_path / "scanned" / "checkpoints" / "2", trained / "checkpoints" / "10"]
    average(parts, tmp_path / "mean")
    assert_mean(tmp_path / "mean", [stored(part) for part in parts])


def test_of_a_schedule_free_run_its_averages_are_averaged(tmp_path):
    config = tiny_config(optimizer__name="schedule_free", schedule__name="constant",
                         total_steps=4, checkpoint__every_steps=2)  # fmt: skip
    vit_jax.train(config, tmp_path / "run", devices=ONE, quiet=True)
    parts = [tmp_path / "run" / "checkpoints" / step for step in ("2", "4")]
    average(parts, tmp_path / "mean")
    b1, means = config.optimizer.b1, stored(tmp_path / "mean")
    xs = []
    for part in parts:  # y = b1 x + (1 - b1) z
        y = stored(part)
        (z_prefix,) = {
            path.partition("/z/")[0] + "/z/"
            for path in manager.stored_shapes(part) if "/z/" in path
        }  # fmt: skip
        z = stored(part, z_prefix)
        xs.append({path: (y[path] - (1 - b1) * z[path]) / b1 for path in y})
    for path, array in means.items():
        np.testing.assert_allclose(array, (xs[0][path] + xs[1][path]) / 2, rtol=1e-5, atol=1e-6)


def test_checkpoints_of_different_models_are_refused_by_what_differs(trained, tmp_path, capsys):
    config = tiny_config(model__num_layers=1, data__mean=0.4, total_steps=1)
    vit_jax.train(config, tmp_path / "other", devices=ONE, quiet=True)
    output = tmp_path / "mean"
    line = ["ckpt", "average", str(tmp_path / "other"), str(trained), f"--output={output}"]
    assert cli.main(line) == 2
    assert capsys.readouterr().err == (
        f"vit: error: {tmp_path}/other/checkpoints/1 and {trained}/checkpoints/10 are of "
        "different models: model.num_layers 1 and 2, data.mean 0.4 and 0.5\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_one_that_is_not_finite_is_named(trained, tmp_path, capsys):
    bad = tmp_path / "bad"
    about = manager.about(trained / "checkpoints" / "9")
    arrays = stored(trained / "checkpoints" / "9")
    arrays["head/bias"] = np.full_like(arrays["head/bias"], np.nan)
    manager.write(bad, {"params": arrays}, about)
    line = ["ckpt", "average", str(trained), str(bad), f"--output={tmp_path / 'mean'}"]
    assert cli.main(line) == 2
    assert f"head/bias of {bad} is not finite: leave that checkpoint out" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(("arguments", "line"), [
    (["RUN", "--last=4", "--output=OUT"], "an average is of 2 checkpoints or more, and RUN has 3, "
     "not 4; a run keeps as many as --config.checkpoint.keep"),
    (["RUN", "--last=1", "--output=OUT"], "has 3, not 1"),
    (["RUN/checkpoints/9", "--output=OUT"], "RUN/checkpoints/9 has 1;"),
    (["RUN", "RUN", "--output=OUT"], "RUN/checkpoints/10 is named twice"),
    (["RUN", "RUN/checkpoints/9", "--last=2", "--output=OUT"], "--last=N is of one run"),
    (["RUN"], "vit ckpt average, and it alone, takes --output=DEST"),
    (["RUN", "--output=RUN/checkpoints/mean"], "would count as a step of a run"),
    (["RUN", "--output=12"], "would count as a step of a run"),
    (["RUN", "--output=RUN"], "RUN is there already"),
    (["RUN", "--output=RUN/nowhere/mean"], "there is no folder RUN/nowhere; make it first"),
    (["RUN", "RUN/nothing", "--output=OUT"], "RUN/nothing holds no checkpoint"),
])  # fmt: skip
def test_what_cannot_be_averaged_is_one_line(trained, tmp_path, capsys, arguments, line):
    places = {"RUN": str(trained), "OUT": str(tmp_path / "mean")}
    for name, place in places.items():
        arguments = [word.replace(name, place) for word in arguments]
        line = line.replace(name, place)
    assert cli.main(["ckpt", "average", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mean").exists()


def test_a_damaged_one_is_refused(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    file = max((run / "checkpoints" / "9" / "state").rglob("*"),
               key=lambda p: p.is_file() and p.stat().st_size)  # fmt: skip
    file.write_bytes(file.read_bytes()[:-7])
    assert cli.main(["ckpt", "average", str(run), f"--output={tmp_path / 'mean'}"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
