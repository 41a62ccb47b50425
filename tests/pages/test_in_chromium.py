"""Pages in a real browser: they fit a phone's screen, follow its colours, and show their pictures.

make test-pages
"""

import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.digits_run import tiny_config
from vit_jax import cli

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("TEST_PAGES" not in os.environ, reason="make test-pages: needs Chromium"),
]
# Loads a page into a frame of a phone's width, and writes down what it finds there.
MEASURE = """<!doctype html><body><iframe src="{page}" width="390" height="800"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, images = [...page.images];
  document.body.dataset.found = [
    page.documentElement.scrollWidth, images.length,
    images.filter(image => image.complete && !image.naturalWidth).length,
  ].join(" ");
}};
</script></body>"""


def chromium(*arguments):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--allow-file-access-from-files", *map(str, arguments)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of a page of each command."""
    folder = tmp_path_factory.mktemp("pages")
    for number in range(2):
        c = tiny_config(optimizer__lr=3e-3, total_steps=20, eval_every_steps=5, seed=number)
        vit_jax.train(c, folder / f"run{number}", quiet=True)
    Image.new("L", (8, 8), 90).save(folder / "a.png")
    run = str(folder / "run0")
    for name, arguments in {
        "look": ["look", run, str(folder / "a.png"), "--data=digits", "--examples=16"],
        "report": ["report", run],
        "compare": ["compare", run, str(folder / "run1")],
    }.items():
        assert cli.main([*arguments, f"--output={folder / name}.html"]) == 0
    return folder


NAMES = ("look", "report", "compare")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_a_phone_and_shows_its_pictures(name, pages):
    harness = pages / f"{name}_measured.html"
    harness.write_text(MEASURE.format(page=f"{name}.html"))
    found = chromium("--virtual-time-budget=5000", "--dump-dom", harness.as_uri())
    width, images, broken = map(int, found.split('data-found="')[1].split('"')[0].split())
    assert width <= 390
    assert (images > 0) == (name != "compare")
    assert broken == 0
    assert (pages / f"{name}.html").stat().st_size < 5 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_page_follows_the_colours_of_the_browser(name, pages):
    shots = []
    for scheme in (0, 1):  # dark, light
        shot = pages / f"{name}_{scheme}.png"
        chromium(
            "--window-size=700,400", f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={shot}", (pages / f"{name}.html").as_uri(),
        )  # fmt: skip
        shots.append(np.asarray(Image.open(shot).convert("L")))
    dark, light = shots
    assert dark[-1, -1] < 60
    assert light[-1, -1] > 200
    assert dark.max() > 200  # its writing
    assert light.min() < 60
