"""`vit compare-curve`: where a run leaves a reference."""

import json

import pytest

from vit_jax import cli


def written(path, losses, accuracies):
    """Rows of losses every ten steps, and evaluations every fifty."""
    rows = [
        {"step": 10 * i, "loss": loss, "images_per_second": i} for i, loss in enumerate(losses, 1)
    ]
    rows += [{"step": 50 * i, "eval/val/accuracy": a} for i, a in enumerate(accuracies, 1)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reference(tmp_path):
    return written(
        tmp_path / "ref" / "metrics.jsonl", [2 / i for i in range(1, 21)], [0.2, 0.4, 0.5, 0.6]
    )


def test_a_run_that_follows_the_reference_is_within(reference, tmp_path, capsys):
    run = written(tmp_path / "run.jsonl", [2.04 / i for i in range(1, 21)], [0.21, 0.39, 0.5, 0.61])
    assert cli.main(["compare-curve", str(run), str(reference.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["loss", "eval/val/accuracy"]
    assert all(": within" in line for line in lines)


def test_the_first_step_away_from_the_reference_is_named(reference, tmp_path, capsys):
    losses = [2 / i for i in range(1, 13)] + [1.0] * 8
    run = written(tmp_path / "run.jsonl", losses, [0.2, 0.4, 0.45, 0.6])
    assert cli.main(["compare-curve", str(run), str(reference)]) == 1
    loss, accuracy = capsys.readouterr().out.splitlines()
    assert "leaves the reference at step 130" in loss
    assert (
        "leaves the reference at step 150; furthest at step 150 (0.4500, reference 0.5000"
        in accuracy
    )
    assert (
        cli.main(["compare-curve", str(run), str(reference), "--loss=99", "--accuracy=0.06"]) == 0
    )


def test_a_loss_that_is_not_a_number_leaves_the_reference(reference, tmp_path, capsys):
    run = written(tmp_path / "run.jsonl", [2.0, float("nan")], [])
    assert cli.main(["compare-curve", str(run), str(reference)]) == 1
    assert "leaves the reference at step 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("step 1", "holds no rows of metrics"), ("[1]", "holds no rows"),
     ('{"step": 7, "loss": 1.0}', "have no metric at the same step")],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(reference, tmp_path, capsys, text, says):
    file = tmp_path / "x.jsonl"
    if text is not None:
        file.write_text(text + "\n")
    assert cli.main(["compare-curve", str(file), str(reference)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_rows_at_other_intervals_are_compared_where_both_are(tmp_path, capsys):
    def loss(step):
        return 2 * 0.997**step + 0.1

    for name, every in (("often", 10), ("seldom", 50)):
        rows = [
            {"step": s, "loss": loss(s), "eval/val/accuracy": None}
            for s in range(every, 501, every)
        ]
        rows.append({"step": 500 + every, "eval/val/accuracy": 0.1 * every})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("often", "seldom")]
    assert cli.main(["compare-curve", *files]) == 0
    out = capsys.readouterr().out
    assert "eval/val/accuracy                not compared: no step in common" in out
    assert "10 rows to step 500: within" in out
