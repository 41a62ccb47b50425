"""Published weights by name: where they are, which model they fit, what they should reach.

Names are those of the publisher where it has names: timm's `ARCHITECTURE.TAG`, the Hub's
`OWNER/REPO`, PyTorch Hub's `dinov2_…`. Google's files are `paper/…`, `augreg/…`, `sam/…`,
`siglip/…`, `mixer/…`, `bit/…` and `big_vision/…`. Where no sha256 is known, `download` pins that of
the first download.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import UserError, nearest

GOOGLE = "https://storage.googleapis.com"

VIT = "arXiv 2010.11929"
AUGREG = "arXiv 2106.10270"
README = "google-research/vision_transformer, README"
TIMM = "timm, results/results-imagenet.csv"
SAM = "arXiv 2106.01548"
PLAIN = "arXiv 2205.01580"
SIGLIP, SIGLIP2 = "arXiv 2303.15343", "arXiv 2502.14786"
MIXER = "arXiv 2105.01601"
BIT = "arXiv 1912.11370"
DEIT = "arXiv 2012.12877"
DINOV2 = "arXiv 2304.07193"
DINOV2_README = "facebookresearch/dinov2, README"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One set of published weights.

    Attributes:
      name: as `find` takes it.
      address: as `download.fetch` takes it.
      sha256: of the file, where its publisher tells it.
      model: the architecture, in timm's naming.
      num_classes: outputs of its head; 0 without one.
      image_size: pixels a side of the images that it was trained on last.
      expected: what it should reach, and who measured that; empty where that is not known.
      source: the paper or README that it comes from.
    """

    name: str
    address: str
    sha256: str | None
    model: str
    num_classes: int
    image_size: int
    expected: str
    source: str


def list_pretrained(pattern: str = "*") -> list[str]:
    """Names that match the shell pattern, sorted."""
    return sorted(fnmatch.filter(CATALOG, pattern))


def find(name: str) -> Entry:
    """The entry of that name.

    Raises UserError: there is none; the nearest names are shown.
    """
    if name not in CATALOG:
        raise UserError(f"unknown weights {name!r}: {nearest(name, CATALOG)}")
    return CATALOG[name]


def _top1(percent: float | None, source: str) -> str:
    return f"ImageNet-1k top-1 {round(percent, 2)}% ({source})" if percent else ""


def _timm(model: str, tag: str, classes: int, size: int, top1: float | None, source: str,
          expected: str = "") -> Entry:  # fmt: skip
    """Weights as timm publishes them on the Hub; top-1 is timm's own measurement."""
    name = f"{model}.{tag}"
    expected = expected or _top1(top1, TIMM)
    return Entry(name, f"hf://timm/{name}", None, model, classes, size, expected, source)


# -- Google's Vision Transformers ------------------------------------------------------------------

# The papers' names and timm's, less the resolution.
ARCHITECTURES = {
    "Ti_16": "vit_tiny_patch16", "S_32": "vit_small_patch32", "S_16": "vit_small_patch16",
    "B_32": "vit_base_patch32", "B_16": "vit_base_patch16", "B_8": "vit_base_patch8",
    "L_32": "vit_large_patch32", "L_16": "vit_large_patch16", "H_14": "vit_huge_patch14",
    "R_Ti_16": "vit_tiny_r_s16_p8", "R26_S_32": "vit_small_r26_s32",
    "R50+B_16": "vit_base_r50_s16", "R50_L_32": "vit_large_r50_s32",
}  # fmt: skip

# Pre-trained on ImageNet-21k at 224: size, file, what fine-tuning at 384 px reaches on CIFAR-10,
# CIFAR-100 and ImageNet-1k.
PAPER = [
    ("B_32", "ViT-B_32", "98.9 / 92.3 / 81.7"), ("B_16", "ViT-B_16", "99.0 / 92.1 / 84.5"),
    ("L_32", "ViT-L_32", "99.1 / 93.3 / 81.9"), ("L_16", "ViT-L_16", "99.1 / 92.9 / 84.5"),
    ("H_14", "ViT-H_14", ""), ("R50+B_16", "R50+ViT-B_16", "98.7 / 90.9 / 83.7"),
]  # fmt: skip

# The same fine-tuned on ImageNet-1k: size, file, resolution, top-1 and who measured it, whether
# timm has it too.
PAPER_FINE_TUNED = [
    ("B_32", "ViT-B_32", 384, None, "", False), ("B_16", "ViT-B_16-224", 224, 81.2, README, False),
    ("B_16", "ViT-B_16", 384, 84.200, TIMM, True), ("L_32", "ViT-L_32", 384, 81.510, TIMM, True),
    ("L_16", "ViT-L_16-224", 224, 82.7, README, False), ("L_16", "ViT-L_16", 384, None, "", False),
    ("R50+B_16", "R50+ViT-B_16", 384, 84.976, TIMM, True),
]  # fmt: skip


def _paper() -> Iterator[Entry]:
    for size, file, reached in PAPER:
        model = f"{ARCHITECTURES[size]}_224"
        expected = reached and f"fine-tuned: CIFAR-10 / 100 / ImageNet-1k {reached}% ({README})"
        url = f"{GOOGLE}/vit_models/imagenet21k/{file}.npz"
        yield Entry(f"paper/{file}_in21k", url, None, model, 21843, 224, expected, VIT)
        yield _timm(model, "orig_in21k", 0, 224, None, VIT, expected)
    for size, file, side, top1, measured, in_timm in PAPER_FINE_TUNED:
        model, name = f"{ARCHITECTURES[size]}_{side}", f"paper/{file}_in21k_ft_in1k"
        url = f"{GOOGLE}/vit_models/imagenet21k+imagenet2012/{file}.npz"
        yield Entry(name, url, None, model, 1000, side, _top1(top1, measured), VIT)
        if in_timm:
            yield _timm(model, "orig_in21k_ft_in1k", 1000, side, top1, VIT)
    yield _timm("vit_base_patch16_224", "orig_in21k_ft_in1k", 1000, 224, 81.786, VIT)


# AugReg's files that timm chose, one each of tens of thousands: size, data, augmentation, weight
# decay, dropout (and stochastic depth) of the pre-training; rate and resolution of the fine-tuning
# on ImageNet-1k, and its top-1.
AUGREG_FILES: list[tuple[Any, ...]] = [
    ("Ti_16", "i21k", "none", "0.03", "0.0", None, 224, None),
    ("Ti_16", "i21k", "none", "0.03", "0.0", "0.03", 224, 75.454),
    ("Ti_16", "i21k", "none", "0.03", "0.0", "0.03", 384, 78.424),
    ("S_32", "i21k", "light1", "0.03", "0.0", None, 224, None),
    ("S_32", "i21k", "light1", "0.03", "0.0", "0.03", 224, 75.994),
    ("S_32", "i21k", "light1", "0.03", "0.0", "0.03", 384, 80.486),
    ("S_16", "i21k", "light1", "0.03", "0.0", None, 224, None),
    ("S_16", "i21k", "light1", "0.03", "0.0", "0.03", 224, 81.384),
    ("S_16", "i21k", "light1", "0.03", "0.0", "0.03", 384, 83.802),
    ("B_32", "i21k", "medium1", "0.03", "0.0", None, 224, None),
    ("B_32", "i21k", "medium1", "0.03", "0.0", "0.03", 224, 80.716),
    ("B_32", "i21k", "light1", "0.1", "0.0", "0.03", 384, 83.350),
    ("B_16", "i21k", "medium1", "0.1", "0.0", None, 224, None),
    ("B_16", "i21k", "medium1", "0.1", "0.0", "0.01", 224, 84.532),
    ("B_16", "i21k", "medium1", "0.1", "0.0", "0.01", 384, 85.996),
    ("B_8", "i21k", "medium1", "0.1", "0.0", None, 224, None),
    ("B_8", "i21k", "medium1", "0.1", "0.0", "0.01", 224, 85.798),
    ("L_16", "i21k", "medium1", "0.1", "0.1", None, 224, None),
    ("L_16", "i21k", "medium1", "0.1", "0.1", "0.01", 224, 85.834),
    ("L_16", "i21k", "medium1", "0.1", "0.1", "0.01", 384, 87.084),
    ("R_Ti_16", "i21k", "none", "0.03", "0.0", None, 224, None),
    ("R_Ti_16", "i21k", "none", "0.03", "0.0", "0.03", 224, 71.798),
    ("R_Ti_16", "i21k", "none", "0.03", "0.0", "0.03", 384, 75.962),
    ("R26_S_32", "i21k", "medium2", "0.03", "0.0", None, 224, None),
    ("R26_S_32", "i21k", "light0", "0.03", "0.1", "0.03", 224, 81.864),
    ("R26_S_32", "i21k", "medium2", "0.03", "0.0", "0.03", 384, 84.048),
    ("R50_L_32", "i21k", "medium2", "0.1", "0.0", None, 224, None),
    ("R50_L_32", "i21k", "medium1", "0.1", "0.1", "0.01", 224, 84.422),
    ("R50_L_32", "i21k", "medium2", "0.1", "0.0", "0.01", 384, 86.182),
    ("S_16", "i1k", "medium2", "0.1", "0.0", "0.01", 224, 78.846),
    ("S_16", "i1k", "medium2", "0.1", "0.0", "0.01", 384, 81.116),
    ("B_32", "i1k", "medium2", "0.1", "0.1", "0.01", 224, 74.894),
    ("B_32", "i1k", "medium2", "0.1", "0.1", "0.01", 384, 78.752),
    ("B_16", "i1k", "strong2", "0.1", "0.1", "0.01", 224, 79.154),
    ("B_16", "i1k", "strong2", "0.1", "0.1", "0.01", 384, 81.102),
]

# Those that Google recommends, the best by the metrics of the pre-training: size, augmentation,
# weight decay, dropout; rate of the fine-tuning at 384, its top-1.
AUGREG_RECOMMENDED: list[tuple[Any, ...]] = [
    ("Ti_16", "none", "0.03", "0.0", "0.03", 78.22), ("S_32", "none", "0.1", "0.0", "0.01", 79.58),
    ("S_16", "light1", "0.03", "0.0", "0.03", 83.73),
    ("B_32", "light1", "0.1", "0.0", "0.01", 83.59),
    ("B_16", "medium1", "0.1", "0.0", "0.03", 85.49),
    ("L_16", "strong1", "0.1", "0.0", "0.01", 85.59),
    ("R_Ti_16", "none", "0.03", "0.0", "0.03", 75.40),
    ("R26_S_32", "light1", "0.1", "0.0", "0.01", 83.85),
    ("R50_L_32", "medium1", "0.1", "0.1", "0.01", 85.99),
]  # fmt: skip


def _augreg_file(name: str, size: str, data: str, recipe: list[str], rate: str | None, side: int,
                 expected: str) -> Entry:  # fmt: skip
    augmentation, decay, dropout = recipe
    file = f"{size}-{data}-300ep-lr_0.001-aug_{augmentation}-wd_{decay}-do_{dropout}-sd_{dropout}"
    fine_tuned = f"--imagenet2012-steps_20k-lr_{rate}-res_{side}" if rate else ""
    url = f"{GOOGLE}/vit_models/augreg/{file}{fine_tuned}.npz"
    classes, model = 1000 if rate else 21843, f"{ARCHITECTURES[size]}_{side}"
    return Entry(name, url, None, model, classes, side, expected, AUGREG)


def _augreg() -> Iterator[Entry]:
    for size, data, *recipe, rate, side, top1 in AUGREG_FILES:
        tag = "in1k" if data == "i1k" else "in21k_ft_in1k" if rate else "in21k"
        name = f"augreg/{size}_{tag}" + (f"_{side}" if rate else "")
        file = _augreg_file(name, size, data, recipe, rate, side, _top1(top1, TIMM))
        yield file
        yield _timm(file.model, f"augreg_{tag}", file.num_classes, side, top1, AUGREG)
    for size, *recipe, rate, top1 in AUGREG_RECOMMENDED:
        name, expected = f"augreg/recommended/{size}_in21k", _top1(top1, README)
        yield _augreg_file(name, size, "i21k", recipe, None, 224, "")
        yield _augreg_file(f"{name}_ft_in1k_384", size, "i21k", recipe, rate, 384, expected)
    yield _timm("vit_base_patch16_224", "augreg2_in21k_ft_in1k", 1000, 224, 85.096, AUGREG)
    yield _timm("vit_base_patch8_224", "augreg2_in21k_ft_in1k", 1000, 224, 86.218, AUGREG)


def _sam() -> Iterator[Entry]:
    for size, top1 in (("B_32", 73.694), ("B_16", 80.244)):
        model, url = f"{ARCHITECTURES[size]}_224", f"{GOOGLE}/vit_models/sam/ViT-{size}.npz"
        name, expected = f"sam/ViT-{size}_in1k", _top1(top1, TIMM)
        yield Entry(name, url, None, model, 1000, 224, expected, SAM)
        yield _timm(model, "sam_in1k", 1000, 224, top1, SAM)


# ViT-S/16 with sin-cos positions and mean pooling: epochs, top-1.
PLAIN_S16 = [(90, 76.5), (150, None), (300, 80.0)]

# big_vision's SigLIP; a file holds both towers, the images' under `img/`: name, model, file,
# resolution. Patches of 14 leave out the last 6 of 384 pixels.
SIGLIP_FILES = [
    ("B_16_224", "vit_base_patch16", "webli_en_b16_224_63724782", 224),
    ("B_16_256", "vit_base_patch16", "webli_en_b16_256_60500360", 256),
    ("B_16_384", "vit_base_patch16", "webli_en_b16_384_68578854", 384),
    ("B_16_512", "vit_base_patch16", "webli_en_b16_512_68580893", 512),
    ("B_16_i18n_256", "vit_base_patch16", "webli_i18n_b16_256_66117334", 256),
    ("L_16_256", "vit_large_patch16", "webli_en_l16_256_60552751", 256),
    ("L_16_384", "vit_large_patch16", "webli_en_l16_384_63634585", 384),
    ("So400m_14_224", "vit_so400m_patch14", "webli_en_so400m_224_57633886", 224),
    ("So400m_14_384", "vit_so400m_patch14", "webli_en_so400m_384_58765454", 378),
]

# timm's image towers of SigLIP 1 (`webli`) and 2 (`v2_webli`): model, resolutions of each.
SIGLIP_TIMM = [
    ("vit_base_patch16", "webli", (224, 256, 384, 512), SIGLIP),
    ("vit_base_patch16", "webli_i18n", (256,), SIGLIP),
    ("vit_large_patch16", "webli", (256, 384), SIGLIP),
    ("vit_so400m_patch14", "webli", (224, 378), SIGLIP),
    ("vit_base_patch16", "v2_webli", (224, 256, 384, 512), SIGLIP2),
    ("vit_large_patch16", "v2_webli", (256, 384, 512), SIGLIP2),
    ("vit_so400m_patch14", "v2_webli", (224, 378), SIGLIP2),
]


def _big_vision() -> Iterator[Entry]:
    for epochs, top1 in PLAIN_S16:
        name, url = f"S_16_in1k_{epochs}ep", f"{GOOGLE}/big_vision/vit_s16_i1k_{epochs}ep.npz"
        model, expected = "vit_small_patch16_224", _top1(top1, PLAIN)
        yield Entry(f"big_vision/{name}", url, None, model, 1000, 224, expected, PLAIN)
    for name, model, file, side in SIGLIP_FILES:
        url, model = f"{GOOGLE}/big_vision/siglip/{file}.npz", f"{model}_siglip_{side}"
        yield Entry(f"siglip/{name}", url, None, model, 0, side, "", SIGLIP)
    for model, tag, sides, source in SIGLIP_TIMM:
        for side in sides:
            yield _timm(f"{model}_siglip_{side}", tag, 0, side, None, source)


# -- Mixer and BiT ---------------------------------------------------------------------------------

# Size, what fine-tuning on CIFAR-10 reaches from ImageNet-1k and from ImageNet-21k, timm's top-1.
MIXERS = [("B", 96.72, 96.82, 76.602), ("L", 96.59, 98.34, 72.054)]

# Name, resolution of the fine-tuning on ImageNet-1k, its top-1.
BITS = [
    ("50x1", 448, 80.340), ("50x3", 448, 84.020), ("101x1", 448, 82.342), ("101x3", 448, 84.438),
    ("152x2", 448, 84.510), ("152x4", 480, 84.916),
]  # fmt: skip

# timm's distilled student and its teachers (arXiv 2106.05237).
BITS_DISTILLED = [
    ("50x1", "goog_distilled_in1k", 224, 82.820),
    ("152x2", "goog_teacher_in21k_ft_in1k", 224, 82.876),
    ("152x2", "goog_teacher_in21k_ft_in1k_384", 384, 83.834),
]  # fmt: skip


def _mixers_and_bits() -> Iterator[Entry]:
    for size, from_1k, from_21k, top1 in MIXERS:
        model = f"mixer_{size.lower()}16_224"
        for data, tag, classes, cifar in (
            ("imagenet1k", "in1k", 1000, from_1k),
            ("imagenet21k", "in21k", 21843, from_21k),
        ):
            url = f"{GOOGLE}/mixer_models/{data}/Mixer-{size}_16.npz"
            expected = f"fine-tuned: CIFAR-10 {cifar}% ({README})"
            yield Entry(f"mixer/{size}_16_{tag}", url, None, model, classes, 224, expected, MIXER)
        yield _timm(model, "goog_in21k", 21843, 224, None, MIXER)
        yield _timm(model, "goog_in21k_ft_in1k", 1000, 224, top1, MIXER)
    for size, side, top1 in BITS:
        model, url = f"resnetv2_{size}_bit", f"{GOOGLE}/bit_models/BiT-M-R{size}"
        name, expected = f"bit/R{size}_in21k", _top1(top1, TIMM)
        yield Entry(name, f"{url}.npz", None, model, 21843, 224, "", BIT)
        fine_tuned = f"{url}-ILSVRC2012.npz"
        yield Entry(f"{name}_ft_in1k", fine_tuned, None, model, 1000, side, expected, BIT)
        yield _timm(model, "goog_in21k", 21843, 224, None, BIT)
        yield _timm(model, "goog_in21k_ft_in1k", 1000, side, top1, BIT)
    for size, tag, side, top1 in BITS_DISTILLED:
        yield _timm(f"resnetv2_{size}_bit", tag, 1000, side, top1, "arXiv 2106.05237")


# -- DeiT, DINOv2 and the Hub's ViTs ---------------------------------------------------------------

# Model, resolution, timm's top-1.
DEITS = [
    ("deit_tiny_patch16", 224, 72.172), ("deit_small_patch16", 224, 79.844),
    ("deit_base_patch16", 224, 81.992), ("deit_base_patch16", 384, 83.106),
    ("deit_tiny_distilled_patch16", 224, 74.500), ("deit_small_distilled_patch16", 224, 81.218),
    ("deit_base_distilled_patch16", 224, 83.386), ("deit_base_distilled_patch16", 384, 85.426),
]  # fmt: skip

# Size, letter, ImageNet-1k by k-NN and by a linear head: without registers, with four.
DINOV2S = [
    ("small", "s", (79.0, 81.1), (79.1, 80.9)), ("base", "b", (82.1, 84.5), (82.0, 84.6)),
    ("large", "l", (83.5, 86.3), (83.8, 86.7)), ("giant", "g", (83.5, 86.5), (83.7, 87.1)),
]  # fmt: skip

# Repository of the Hub, model, classes.
HUB_VITS = [
    ("google/vit-base-patch16-224", "vit_base_patch16_224", 1000),
    ("google/vit-large-patch16-224", "vit_large_patch16_224", 1000),
    ("google/vit-base-patch16-224-in21k", "vit_base_patch16_224", 0),
    ("google/vit-huge-patch14-224-in21k", "vit_huge_patch14_224", 0),
]


def _deit_and_hub() -> Iterator[Entry]:
    for model, side, top1 in DEITS:
        model = f"{model}_{side}"
        yield _timm(model, "fb_in1k", 1000, side, top1, DEIT)
        name = f"facebook/{model.replace('_', '-')}"
        yield Entry(name, f"hf://{name}", None, model, 1000, side, "", DEIT)
    for name, model, classes in HUB_VITS:
        yield Entry(name, f"hf://{name}", None, model, classes, 224, "", VIT)


def _dinov2() -> Iterator[Entry]:
    for size, letter, *scores in DINOV2S:
        for (knn, linear), reg, suffix, with_registers, source in (
            (scores[0], "", "", "", DINOV2),
            (scores[1], "reg4_", "_reg", "-with-registers", "arXiv 2309.16588"),
        ):
            model, hub = f"vit_{size}_patch14_{reg}dinov2", f"dinov2_vit{letter}14"
            expected = f"ImageNet-1k k-NN {knn}%, linear {linear}% ({DINOV2_README})"
            repo = f"facebook/dinov2{with_registers}-{size}"
            url = f"https://dl.fbaipublicfiles.com/dinov2/{hub}/{hub}_{reg}pretrain.pth"
            yield Entry(f"{hub}{suffix}", url, None, model, 0, 518, expected, source)
            yield Entry(repo, f"hf://{repo}", None, model, 0, 518, expected, source)
            yield _timm(model, "lvd142m", 0, 518, None, source, expected)


_SOURCES = (_paper, _augreg, _sam, _big_vision, _mixers_and_bits, _deit_and_hub, _dinov2)
ENTRIES = tuple(entry for entries in _SOURCES for entry in entries())
CATALOG: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
