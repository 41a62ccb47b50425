"""`vit look`: the numbers behind its page are those of the weights, what they lack is named, and
nothing is written where something is wrong."""

import base64
import io
import re

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.models.tiny_vit import tiny
from vit_jax import cli, look
from vit_jax.data.pipeline_text import parse
from vit_jax.models import create_model
from vit_jax.pretrained.save import save_pretrained

TARGETS = ((1, 2), (0, 1))  # the patch that each head attends to


def looking_at(targets):
    """A ViT of one layer, whose heads attend from everywhere to one patch each."""
    model = tiny(num_layers=1)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.abstract_params)
    params["cls"][0, 0] = 1.0
    for number in range(6):  # each token has a dimension of its own
        params["pos_embed"]["grid"][number // 3, number % 3, 1 + number] = 1.0
    block = params["encoder"]["block00"]
    for norm in (block["norm1"], block["norm2"], params["norm"]):
        norm["scale"][:] = 1.0
    for head, (row, column) in enumerate(targets):
        # Every query asks for what one key has.
        block["attention"]["qkv"]["bias"][0, head, 0] = 30.0
        block["attention"]["qkv"]["kernel"][1 + 3 * row + column, 1, head, 0] = 30.0
    params["head"]["bias"][:] = [0.0, 2.0, 1.0]
    return model, params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds `vit.safetensors` and `a.png`."""
    folder = tmp_path_factory.mktemp("look")
    model, params = looking_at(TARGETS)
    save_pretrained(model, params, folder / "vit.safetensors", to="timm")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


KNOWN = ["--config.model.num_heads=2", "--config.model.image_size=8,12",
         "--config.model.patch_size=4"]  # fmt: skip


def looked(folder, tmp_path, *more):
    page = tmp_path / "page.html"
    arguments = ["look", str(folder / "vit.safetensors"), str(folder / "a.png"), *KNOWN]
    code = cli.main([*arguments, f"--output={page}", *more])
    return code, page


def pictures(page, title):
    """The pictures of a page with a title, as arrays."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" title="([^"]*)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data, of in found if of == title]  # fmt: skip


def test_the_page_of_a_vit_whose_attention_is_known_shows_it(folder, tmp_path, capsys):
    code, file = looked(folder, tmp_path, f"--arrays={tmp_path}/numbers.npz")
    assert code == 0, capsys.readouterr().err
    page = file.read_text(encoding="utf-8")
    numbers = np.load(tmp_path / "numbers.npz")
    for head, place in enumerate(TARGETS):
        (shade,) = pictures(page, f"layer 1, head {head + 1}")
        expected = np.full((2, 3), 255)
        expected[place] = 0  # all of the photograph is seen there, and nothing elsewhere
        np.testing.assert_array_equal(shade[..., 3], expected)
        assert not shade[..., :3].any()
        weights = numbers["attention"][0, 0, head]
        assert (weights.argmax(axis=-1) == 1 + 3 * place[0] + place[1]).all()
        apart = [4 * np.hypot(place[0] - n // 3, place[1] - n % 3) for n in range(6)]
        assert numbers["distance"][0, head] == pytest.approx(np.mean(apart), rel=1e-5)
    np.testing.assert_allclose(numbers["position_similarity"].reshape(6, 6), np.eye(6), atol=1e-6)
    shares = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    for share in shares:
        assert f"<td>{share:.2%}</td>" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in page


def test_statistics_of_a_source_are_means_over_its_images(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    rng = np.random.default_rng(1)
    for number in range(11):  # more than are shown at once, and not a multiple of it
        (photos / f"train/{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"train/{number % 2}/{number}.png")
    model = tiny()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.abstract_params
    )
    save_pretrained(model, params, tmp_path / "vit.safetensors", to="timm")
    Image.fromarray(pixels).save(tmp_path / "a.png")  # the last one of them
    code, page = looked(tmp_path, tmp_path, f"--data=folder:{photos}", "--split=train",
                        f"--arrays={tmp_path}/numbers.npz")  # fmt: skip
    assert code == 0, capsys.readouterr().err
    numbers = np.load(tmp_path / "numbers.npz")
    model, params, _ = vit_jax.load_pretrained(
        tmp_path / "vit.safetensors", num_heads=2, image_size=(8, 12), patch_size=4, say=None
    )
    prepare = parse(model.data_config.pipeline((8, 12)), (8, 12))
    images = [np.asarray(Image.open(file)) for file in sorted(photos.rglob("*.png"))]
    seen = look.see(model, params, np.stack([prepare(image, None) for image in images]))
    expected = look.distance(seen, (8, 12))
    np.testing.assert_allclose(numbers["distance"], expected, rtol=1e-5)
    text = page.read_text(encoding="utf-8")
    near = re.findall(r"<figcaption>(\S+\.png), ([\d.]+)</figcaption>", text)
    assert near[0] == ("10.png", "1.000")
    assert len(near) == 5


def test_the_class_is_named_or_numbered(folder, tmp_path, capsys):
    _, page = looked(folder, tmp_path, "--class=2")
    assert "evidence for 2" in page.read_text(encoding="utf-8")
    code, page = looked(folder, tmp_path / "no", "--class=7")
    assert (code, page.exists()) == (2, False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--class=dog"], "--class=dog: no class of these weights; there are: 0, 1, 2"),
        (["--split=train"], "--split is of --data=SOURCE"),
        (["--examples=0"], "--examples is at least 1"),
        (["--arrays=/not/there/x.npz"], "there is no folder /not/there"),
        (["--data=folder:/not/there"], "/not/there"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(more, said, folder, tmp_path, capsys):
    code, page = looked(folder, tmp_path, *more)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert (code, page.exists()) == (2, False)
    assert said in line


def test_a_page_that_cannot_be_written_is_said_before_the_weights_are_read(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    weights = tmp_path / "not_there.safetensors"
    command = ["look", str(weights), str(tmp_path / "a.png"), f"--output={tmp_path}/no/page.html"]
    assert cli.main(command) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_what_a_family_does_not_have_is_named(tmp_path, capsys):
    model = create_model("resnetv2_50x1_bit", image_size=32, resnet_layers=(1, 1, 1, 1),
                         num_classes=3)  # fmt: skip
    save_pretrained(model, model.init(), tmp_path / "bit.npz", to="google")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = ["look", str(tmp_path / "bit.npz"), str(tmp_path / "a.png")]
    assert cli.main([*command, f"--output={tmp_path}/page.html"]) == 0
    said = capsys.readouterr().err + (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "It has no attention between patches, no evidence for a class, no positions" in said
    assert "Principal components of the first filters" in said
    assert "attention rollout" not in said


def test_a_detector_shows_where_each_box_looks(tmp_path, capsys):
    model = create_model(
        "yolos_vit_nano_patch8_64", num_classes=3, hidden_size=8, num_heads=2, num_layers=2,
        mlp_dim=8, image_size=(24, 32), num_queries=5,
    )  # fmt: skip
    params = model.init()
    params["head"]["bias"] = np.array([0.0, 5.0, 0.0, 0.0], np.float32)
    save_pretrained(model, params, tmp_path / "yolos", to="orbax")
    Image.new("RGB", (64, 48), (90, 20, 60)).save(tmp_path / "a.png")
    command = [
        "look",
        str(tmp_path / "yolos"),
        str(tmp_path / "a.png"),
        f"--output={tmp_path}/page.html",
    ]
    assert cli.main(command) == 0, capsys.readouterr().err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<figcaption>1 \d+%</figcaption>", page)) == 5
    assert len(pictures(page, "layer 2, head 2")) == 1
