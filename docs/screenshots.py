"""Makes the pictures of pages that these documents show: python docs/screenshots.py

Trains two small models of the handwritten digits and searches a rate, which takes some minutes,
writes the page of every command, and takes its picture with a headless Chromium. The pictures are
`results/look.png`, `report.png`, `compare.png` and `sweep.png`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from vit_jax.data.memory import digits

HERE = Path(__file__).parent / "results"
# A token for each pixel pair, so that maps of attention can be seen.
MODEL = ["--config=digits.py", "--config.model.patch_size=2"]
HEIGHTS = {"look": 1500, "report": 2400, "compare": 1000, "sweep": 1000}  # pixels of the pictures


def vit(*arguments: object) -> None:
    """Runs a command of the package."""
    subprocess.run([sys.executable, "-m", "vit_jax.cli", *map(str, arguments)], check=True)


def main() -> None:
    """Trains, writes the pages, takes the pictures."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("docs/screenshots.py needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for number in range(2):
            vit("train", *MODEL, f"--config.seed={number}", f"--workdir={at}/seed{number}")
        source = digits("", "val", None)
        for number in (3, 40):
            pixels = Image.fromarray(source[number]["image"][..., 0])
            pixels.save(at / f"digit{number}.png")
        images = sorted(at.glob("digit*.png"))
        vit("look", at / "seed0", *images, "--data=digits", f"--output={at}/look.html")
        vit("report", at / "seed0", f"--output={at}/report.html")
        vit("compare", at / "seed0", at / "seed1", f"--output={at}/compare.html")
        vit("sweep", "--config=digits.py", "--sweep=optimizer.lr=3e-4,1e-3,4e-3", "--study=rates",
            f"--workdir={at}")  # fmt: skip
        shutil.copy(at / "rates/report.html", at / "sweep.html")
        for name, height in HEIGHTS.items():
            subprocess.run(
                [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                 f"--window-size=900,{height}", f"--screenshot={HERE / name}.png",
                 (at / f"{name}.html").as_uri()],
                check=True, capture_output=True,
            )  # fmt: skip
            smaller = Image.open(HERE / f"{name}.png").quantize(64)
            smaller.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
