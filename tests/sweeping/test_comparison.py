"""How much compute one model needs where another reaches the same, of curves that are known."""

import dataclasses

import numpy as np
import pytest

from vit_jax import cli
from vit_jax.sweeping.comparison import Row, curves_of, interval, page, ratio, ratios, speeds

BUDGETS = (1e12, 3e12, 1e13, 3e13)


def curve(shift=1.0, seeds=(0.0,), slope=0.1, sign=1):
    """value = slope log10(compute / shift): a model that needs `shift` times the compute."""
    return {b: [sign * slope * np.log10(b / shift) + s for s in seeds] for b in BUDGETS}


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 4.0])
def test_a_model_that_needs_so_many_times_the_compute_is_told_so(shift):
    assert ratio(curve(), curve(shift)) == pytest.approx(shift)
    assert ratio(curve(sign=-1), curve(shift, sign=-1), sign=-1) == pytest.approx(shift)


def test_only_values_that_both_reach_are_compared():
    assert ratio(curve(), {1e12: [0.0], 1e13: [0.5]}) is None  # below all of ours
    one = {1e12: [1.0], 3e12: [2.0]}
    assert ratio(one, {1e13: [2.0], 3e13: [3.0]}) == pytest.approx(1e13 / 3e12)


def test_a_budget_that_brings_nothing_is_left_out():
    """The best by then counts: more compute with a worse end does not make a curve fall."""
    falling = curve(2.0) | {1e14: [0.0]}
    assert ratio(curve(), falling) == pytest.approx(2.0)


def test_the_interval_is_that_of_the_seeds():
    """Two seeds of ours, a factor of 10**0.2 of compute apart: resamples are both, or one twice."""
    ours, theirs = curve(seeds=(-0.01, 0.01)), curve(2.0, seeds=(0.0, 0.0))
    low, high = interval(ours, theirs)
    assert low < 2.0 < high
    assert low >= 2.0 / 10**0.1 - 1e-9
    assert high <= 2.0 * 10**0.1 + 1e-9
    assert interval(curve(seeds=(0.0, 0.0)), theirs) == pytest.approx((2.0, 2.0))
    assert interval(curve(), theirs) is None  # one seed
    assert interval(ours, {1e12: [0.0, 0.0], 1e13: [0.5, 0.5]}) is None  # they do not meet


def rows():
    made = []
    for model, shift, macs in (("a", 1.0, 10), ("b", 2.0, 20), ("c<x>", 1e9, 30)):
        for budget in BUDGETS:
            for seed in (0, 1):
                value = 0.1 * np.log10(budget / shift) + 0.001 * seed
                made.append(Row(len(made), model, seed, 5, macs, int(budget / (6 * macs)), budget,
                                2.0 * budget * shift / 1e12, 100.0, value))  # fmt: skip
    return made


def test_models_are_compared_with_the_first_one():
    curves = curves_of(rows())
    assert list(curves) == ["a", "b", "c<x>"]
    assert sorted(curves["a"]) == list(BUDGETS)
    assert all(len(values) == 2 for values in curves["b"].values())
    head, b, c = ratios(rows())
    assert head[1] == "flops for the same, a = 1"
    assert b[:2] == ["b", "2.00"]
    assert c == ["c<x>", "no value that both reach", ""]
    assert ratios(rows(), cost="seconds")[1][1] == "4.00"
    assert speeds(rows(), "accuracy", 1)[2][:5] == ["b", "5", "20", "100.0", "0.0"]


def test_what_other_evaluators_say_stands_beside():
    shots = {"eval/fewshot/accuracy_5": 0.5, "eval/fewshot/accuracy_10": 0.6}
    more = [dataclasses.replace(row, further=shots) for row in rows()]
    html = page(Study([None] * 24), more, "eval/val/accuracy", ["<p>and this</p>"])
    assert html.count("<svg") == 5
    assert "eval/fewshot/accuracy_10 against training FLOPs" in html
    assert "<p>and this</p>" in html


class Study:
    """What the page reads of Optuna's."""

    class direction:
        name = "MAXIMIZE"

    def __init__(self, trials):
        self._trials = trials

    def get_trials(self, deepcopy):
        return self._trials


def test_the_page_has_what_names_mean_and_escapes_them():
    html = page(Study([None] * 30), rows(), "eval/val/accuracy")
    assert "24 of 30 trials finished" in html
    assert "c&lt;x&gt;" in html
    assert "<x>" not in html
    assert html.count("<svg") == 3  # against FLOPs, seconds, parameters
    assert "0 of 3 trials finished" in page(Study([None] * 3), [], "eval/val/accuracy")


BAD = [
    ([], "vit study needs budgets: --epochs=5,10,20 or --flops=1e15,3e15"),
    (["--epochs=1", "--flops=1"], "vit study needs budgets"),
    (["--epochs=1,x"], "--epochs=1,x: numbers above 0"),
    (["--epochs=0,1"], "numbers above 0"),
    (["--flops=inf"], "numbers above 0"),
    (["--epochs=1", "--seeds=0"], "--seeds is 1 or more, not 0"),
    (["--epochs=1", "--pixels=32,x"], "--pixels=32,x: different sides of images in pixels"),
    (["--epochs=1", "--pixels=32,32"], "different sides"),
    (["--epochs=1", "--pixels=32,36"], "vit_nano_patch8_64: image_size (36, 36)"),
    (["--epochs=1", "--pixels=0"], "different sides"),
    (["--epochs=1", "--parallel=0"], "--parallel is 1 or more, not 0"),
    (["--epochs=1", "--config.seed=3"], "seed is what a study varies"),
    (["--epochs=1", "--config.model.image_size=8"], "model.image_size is what a study varies"),
    (["--epochs=1", "--config.data.eval.split="], "a study compares by an evaluation"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_what_cannot_be_is_refused_before_anything_is_made(options, says, tmp_path, capsys):
    command = ["study", "--config=study.py:vit+resnet,digits", f"--workdir={tmp_path / 'study'}"]
    assert cli.main([*command, *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("digits.py", "lists no models"),
        ("study.py:vit+nothing_like_it,digits", "unknown model 'nothing_like_it'"),
        ("study.py:vit", "study.py needs families and data"),
        ("study.py:vit+vit_base_patch14_224,digits", "not divisible by patch_size 14"),
        ("study.py:vit+sasa,folder:/nowhere", "/nowhere"),
    ],
)
def test_a_model_that_the_data_cannot_feed_is_refused_before_the_first_trial(
    config, says, tmp_path, capsys
):
    command = ["study", f"--config={config}", f"--workdir={tmp_path / 'study'}", "--epochs=1"]
    assert cli.main(command) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_dry_run_tells_models_compute_and_hours(tmp_path, capsys):
    command = ["study", "--config=study.py:vit+sasa,digits", f"--workdir={tmp_path / 'study'}",
               "--epochs=2,1", "--seeds=3", "--dry-run"]  # fmt: skip
    assert cli.main(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["model", "parameters", "multiply-adds", "FLOPs,", "epochs", "1",
                               "FLOPs,", "epochs", "2"]  # fmt: skip
    name, _, macs, one, two = told[1].split()
    assert name == "vit_nano_patch8_64"
    flops = 6 * int(macs.replace(",", "")) * 1442
    assert (float(one), float(two)) == pytest.approx((flops, 2 * flops), rel=5e-3)
    assert told[3].startswith("2 models, 2 budgets, 3 seeds: ")
    assert "hours at this machine's" in told[4]
    assert not (tmp_path / "study").exists()


def test_devices_that_are_not_here_are_planned_for(tmp_path, capsys):
    """By formula where their compiler is not installed; nothing is made."""
    command = ["study", "--config=study.py:vit+resnet,digits", f"--workdir={tmp_path / 'study'}"]
    command += ["--epochs=1", "--topology=gpu:h100x1", "--config.batch_size=64"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    (head,) = (number for number, line in enumerate(lines) if "GB moved per PFLOP" in line)
    rows = [line.split() for line in lines[head + 1 :]]
    assert [row[0] for row in rows] == ["vit_nano_patch8_64", "resnet14w32_gn"]
    for _, batch, how, speed, *_ in rows:
        assert batch == "64"
        assert how in ("compiled", "analytic")
        assert float(speed.replace(",", "")) > 1000
    assert not (tmp_path / "study").exists()


def test_a_processor_is_no_topology_to_compare_on(tmp_path, capsys):
    command = ["study", "--config=study.py:vit,digits", "--epochs=1", "--topology=local"]
    assert cli.main([*command, f"--workdir={tmp_path / 'study'}"]) == 2
    assert "--topology: nothing is stated of a CPU's speed" in capsys.readouterr().err
