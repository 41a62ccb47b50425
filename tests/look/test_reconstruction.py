"""What a masked autoencoder reconstructs is its definition's, in NumPy, a patch at a time; and the
page and the arrays of `vit look` have it."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.models.tiny_vit import randomised, tiny
from vit_jax import look
from vit_jax.models import create_model
from vit_jax.models.data_config import IMAGENET
from vit_jax.pretrained.save import save_pretrained

MEAN, STD = np.array(IMAGENET.mean), np.array(IMAGENET.std)


def mae(**fields):
    sizes = {
        "hidden_size": 8, "num_heads": 2, "num_layers": 2, "mlp_dim": 12, "image_size": (8, 16),
        "decoder_width": 8, "decoder_layers": 1, "decoder_heads": 2, "decoder_mlp_dim": 12,
    }  # fmt: skip
    return create_model("mae_vit_mu_patch4_8", **(sizes | fields))


def pixels(batch=3):
    return np.random.default_rng(1).integers(0, 256, (batch, 8, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("normalised", [False, True])
def test_visible_patches_are_the_images_and_masked_ones_the_prediction(normalised):
    model = mae(norm_pixels=normalised)
    params, images = randomised(model), pixels()
    noise = np.random.default_rng(2).uniform(size=(3, 8)).astype(np.float32)
    found = look.reconstruct(model, params, images, noise)
    shown = ((images / 255 - MEAN) / STD).astype(np.float32)
    told = np.asarray(model.apply(params, shown, noise=noise)[0], np.float64)
    for i in range(3):
        visible = np.argsort(noise[i])[:2]  # a quarter of eight
        for n in range(8):
            top, left = 4 * (n // 4), 4 * (n % 4)
            part = np.s_[i, top : top + 4, left : left + 4]
            values = told[i, n].reshape(4, 4, 3)
            if normalised:
                own = shown[part].astype(np.float64)
                values = values * np.sqrt(own.var(ddof=1) + 1e-6) + own.mean()
            expected = 255 * (values * STD + MEAN)
            np.testing.assert_allclose(found.prediction[part], expected, atol=0.02)
            assert found.masked[i, n // 4, n % 4] == (n not in visible)
            wanted = images[part] if n in visible else expected
            np.testing.assert_allclose(found.reconstruction[part], wanted, atol=0.02)


def test_masks_follow_from_the_image_and_a_seed():
    model, images = mae(), pixels(8)
    params = randomised(model)
    found = look.reconstruct(model, params, images)
    alone = look.reconstruct(model, params, images[3:4])
    np.testing.assert_array_equal(found.masked[3:4], alone.masked)
    np.testing.assert_allclose(found.reconstruction[3:4], alone.reconstruction, atol=1e-3)
    assert (look.reconstruct(model, params, images, seed=1).masked != found.masked).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of an autoencoder, and two images."""
    folder = tmp_path_factory.mktemp("mae")
    model = mae()
    save_pretrained(model, randomised(model), folder / "mae", to="orbax")
    for number, image in enumerate(pixels(2)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_the_page_and_its_arrays_have_the_reconstruction(folder, tmp_path, vit):
    command = ["look", folder / "mae", folder / "0.png", folder / "1.png",
               f"--output={tmp_path}/page.html", f"--arrays={tmp_path}/a.npz"]  # fmt: skip
    code, _, err = vit(*command, "--mask-ratio=0.5")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "50% of the patches are masked. Masked patches have the mean" in page
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    each = ["visible patches", "reconstruction"]
    assert captions[:6] == ["0.png", *each, "1.png", *each]
    assert "attention rollout" in captions  # of the encoder, on all patches
    numbers = np.load(tmp_path / "a.npz")
    assert numbers["masked"].sum(axis=(1, 2)).tolist() == [4, 4]
    assert numbers["attention"].shape == (2, 2, 2, 9, 9)
    assert numbers["reconstruction"].shape == (2, 8, 16, 3)
    jpegs = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
    seen, whole = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float) for data in jpegs[1:3]
    )
    scale = len(seen) // 8
    hidden = numbers["masked"][0].repeat(4 * scale, axis=0).repeat(4 * scale, axis=1)
    assert np.abs(seen[hidden] - 128).mean() < 3  # grey, as far as JPEG keeps it
    expected = np.clip(numbers["reconstruction"][0], 0, 255)
    expected = expected.repeat(scale, axis=0).repeat(scale, axis=1)
    assert np.abs(whole - expected).mean() < 8


def test_without_the_option_the_share_is_that_of_training(folder, tmp_path, vit):
    code, _, err = vit("look", folder / "mae", folder / "0.png", f"--output={tmp_path}/page.html")
    assert code == 0, err
    assert "75% of the patches are masked" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("share", [0.9, -1])
def test_a_share_that_cannot_be_is_refused_and_nothing_written(folder, tmp_path, vit, share):
    code, _, err = vit("look", folder / "mae", folder / "0.png", f"--output={tmp_path}/page.html",
                       f"--mask-ratio={share}")  # fmt: skip
    assert code == 2
    assert "--mask-ratio: mask_ratio" in err
    assert not (tmp_path / "page.html").exists()


def test_other_models_have_no_share_to_mask(folder, tmp_path, vit):
    model = tiny()
    save_pretrained(model, randomised(model), tmp_path / "vit", to="orbax")
    code, _, err = vit("look", tmp_path / "vit", folder / "0.png", f"--output={tmp_path}/page.html",
                       "--mask-ratio=0.5")  # fmt: skip
    assert code == 2
    assert "--mask-ratio is of masked autoencoders, whose decoder is in the weights" in err
