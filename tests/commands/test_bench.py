"""`vit bench`: a row a stage, in lines and as JSON; what it cannot measure is one line."""

import json

import pytest
from made_images import folder_of_images

from vit_jax import cli


@pytest.fixture
def vit(capsys):
    def run(*arguments):
        code = cli.main(["bench", *arguments])
        return code, *capsys.readouterr()

    return run


def test_every_stage_of_the_input_is_told(vit, tmp_path):
    photos = folder_of_images(tmp_path, {"train/a": 8, "train/b": 8, "val/a": 1, "val/b": 1})
    options = (
        f"--config=folder.py:{photos}", "--config.batch_size=8", "--seconds=0.2",
        "--config.data.train.pipeline=decode|inception_crop(32)|resize|flip_lr",
    )  # fmt: skip
    code, out, _ = vit("input", *options, "--json")
    stages = json.loads(out)["stages"]
    assert code == 0
    assert [row["stage"] for row in stages] == [
        "read", "decode (its head; the rest in what follows)", "inception_crop(32)", "resize",
        "flip_lr", "one thread", "batches on the host, 2 threads",
        "batches on the devices, 2 threads",
    ]  # fmt: skip
    parts = sum(row["us_per_image"] for row in stages[:5])
    assert stages[5]["us_per_image"] == pytest.approx(parts)
    for row in stages:
        assert row["images_per_second"] == pytest.approx(1e6 / row["us_per_image"])
        assert row["images_per_second_per_core"] <= row["images_per_second"]
    code, out, _ = vit("input", *options, f"--json={tmp_path}/input.json")
    assert code == 0
    assert len(out.splitlines()) == len(stages)
    assert len(json.loads((tmp_path / "input.json").read_text())["stages"]) == len(stages)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["input", "--config=digits.py", "--seconds=0"], "--seconds must be more than 0"),
        (["input", "--config=folder.py:/nowhere"], "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_measured_is_one_line(vit, options, told):
    code, _, said = vit(*options)
    assert (code, said.count("\n")) == (2, 1)
    assert told in said
