"""ImageNet in miniature, in the layout that image-net.org hands out."""

import io
import tarfile
from pathlib import Path

import numpy as np
from made_images import encoded
from scipy.io import savemat

DEVKIT = "ILSVRC2012_devkit_t12"
SYNSETS = ("n01440764", "n01443537", "n04399382")  # labels 0, 1 and 850 of a thousand
# ILSVRC2012_IDs are in no order of the synsets; n00001740 is an inner node, which no image shows.
IDS = {"n01443537": 1, "n04399382": 2, "n01440764": 3, "n00001740": 1001}


def picture(name: str) -> bytes:
    """A JPEG that tells its name."""
    rng = np.random.default_rng(list(name.encode()))
    return encoded(rng.integers(0, 256, (12, 16, 3), np.uint8))


def train_files(count: int = 5) -> dict[str, dict[str, bytes]]:
    """Image files by name, by synset."""
    return {
        synset: {f"{synset}_{n}.JPEG": picture(f"{synset}{n}") for n in range(count)}
        for synset in SYNSETS
    }


def validation_truth(count: int = 6) -> dict[str, str]:
    """The synset of each validation image, by the file's name."""
    return {f"ILSVRC2012_val_{n + 1:08d}.JPEG": SYNSETS[n * n % 3] for n in range(count)}


def tar(files: dict[str, bytes]) -> bytes:
    """A tar of the files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def devkit(truth: dict[str, str], ids: dict[str, int] = IDS) -> bytes:
    """The development kit's .tar.gz: the truth as IDs, and what they are as MATLAB's structs."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    kind += [("num_children", "O"), ("children", "O"), ("wordnet_height", "O")]
    kind += [("num_train_images", "O")]
    synsets = np.zeros((len(ids), 1), kind)
    for row, (synset, number) in enumerate(ids.items()):
        inner = number > 1000
        synsets[row, 0] = (
            number, synset, "some, words", "what it is", 2 if inner else 0,
            np.asarray([1, 2]) if inner else np.zeros(0), int(inner), 0 if inner else 5,
        )  # fmt: skip
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    lines = "".join(f"{ids[synset]}\n" for synset in truth.values())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in {
            f"{DEVKIT}/readme.txt": b"Read me",
            f"{DEVKIT}/data/meta.mat": meta.getvalue(),
            f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def downloads(root: Path) -> Path:
    """What there is to download of ILSVRC2012."""
    root.mkdir(parents=True, exist_ok=True)
    tars = {f"{synset}.tar": tar(files) for synset, files in train_files().items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(tars))
    truth = validation_truth()
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar({name: picture(name) for name in truth}))
    (root / f"{DEVKIT}.tar.gz").write_bytes(devkit(truth))
    return root


def extracted(root: Path) -> Path:
    """The same, as train/n########/ and val/n########/."""
    for synset, files in train_files().items():
        (root / "train" / synset).mkdir(parents=True)
        (root / "val" / synset).mkdir(parents=True)
        for name, data in files.items():
            (root / "train" / synset / name).write_bytes(data)
    for name, synset in validation_truth().items():
        (root / "val" / synset / name).write_bytes(picture(name))
    return root
