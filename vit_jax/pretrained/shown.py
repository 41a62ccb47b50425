"""What the names and shapes of a file's tensors show of its model.

The rows of a layout say which tensor becomes which parameter. So the fields of a model follow from
its parameters in the same way for the files of every layout.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.configs import stride_of
from vit_jax.pretrained.given import Unstated
from vit_jax.pretrained.rows import Row, Shape, pattern_of
from vit_jax.pretrained.tensors import Tensors

BLOCK = "encoder/block{i:02d}"
_UNIT = "backbone/stage{s}/unit{u:02d}/conv1/kernel"
_OUTPUTS_LAST = {2: (1, 0), 4: (2, 3, 1, 0)}  # the order of PyTorch's dimensions by their number


@dataclasses.dataclass(frozen=True)
class Shown:
    """The tensors of a file by the parameters that they become: templates as `Row.ours` has them.

    `torch`: the dimensions have PyTorch's order, outputs first. The shapes here have them last.
    """

    tensors: Tensors
    rows: list[Row]
    torch: bool = False

    def template(self, path: str) -> str:
        """The template of a tensor's name; empty if the rows have no such parameter."""
        return next((row.theirs[0] for row in self.rows if row.ours[0] == path), "")

    def get(self, path: str) -> Shape:
        """The shape in the first layer; empty if the file has no such tensor."""
        shape = self.tensors.shapes.get(self.template(path).format(i=0, c=0), ())
        order = _OUTPUTS_LAST.get(len(shape)) if self.torch else None
        return tuple(shape[axis] for axis in order) if order else shape

    def __getitem__(self, path: str) -> Shape:
        """`get`, but raises UserError if the file lacks the tensor."""
        name = self.template(path).format(i=0, c=0)
        if name not in self.tensors.shapes:
            raise UserError(f"{self.tensors.path} lacks the tensor {name!r}")
        return self.get(path)

    def classes(self) -> int:
        """The number of the head's outputs; 0 if there is no head."""
        return (self.get("head/kernel") or (0,))[-1]

    def layers(self, path: str = f"{BLOCK}/norm1/scale") -> int:
        """The number of blocks: one more than the highest number in a name."""
        return max((n["i"] for n in self._numbers(path)), default=-1) + 1

    def units(self, path: str = _UNIT) -> tuple[int, ...]:
        """The number of units in each stage of a ResNet."""
        highest: dict[int, int] = {}
        for n in self._numbers(path):
            highest[n["s"]] = max(highest.get(n["s"], 0), n["u"])
        from_zero = "{u0}" in self.template(path)
        return tuple(highest[stage] + from_zero for stage in sorted(highest))

    def _numbers(self, path: str) -> Iterator[dict[str, int]]:
        """The numbers in all names that begin like the one for `path`, up to its last number."""
        template = self.template(path)
        pattern = pattern_of(template[: template.rindex("}") + 2])
        for match in filter(None, map(pattern.match, self.tensors.shapes)):
            yield {letter: int(number) for letter, number in match.groupdict().items()}


def vit_fields(
    shown: Shown, known: dict[str, Any], with_positions: dict[str, int]
) -> dict[str, Any]:
    """The fields of a ViT or a hybrid. `with_positions`: for each possible `prefix_positions`, the
    number of prefix tokens in the table of positions; empty if the file has no such table."""
    patch, _, channels, width = shown["embed/kernel"]
    layers = None
    if root := shown.get("backbone/root/conv/kernel"):
        layers, channels = shown.units(), root[2]
        patch *= stride_of(layers)
    first, second = (shown.get(f"{BLOCK}/mlp/{part}/kernel") for part in ("w12", "w3"))
    swiglu = first and second and first[-1] == 2 * second[0]  # the first layer has both halves
    fields = {
        "hidden_size": width, "patch_size": patch, "channels": channels, "resnet_layers": layers,
        "num_layers": shown.layers(), "num_classes": shown.classes(),
        "mlp": "swiglu" if swiglu else "dense",
        "mlp_dim": second[0] if swiglu else shown[f"{BLOCK}/mlp/fc1/kernel"][-1],
    }  # fmt: skip
    if with_positions:
        positions = shown["pos_embed/grid"][1]
        fields["image_size"], fields["prefix_positions"] = size_of(
            positions, with_positions, patch, known, shown.tensors
        )
    return fields


def mixer_fields(shown: Shown, known: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Mixer."""
    patch, _, channels, width = shown["embed/kernel"]
    tokens, tokens_mlp_dim = shown[f"{BLOCK}/token_mixing/fc1/kernel"]
    size, _ = size_of(tokens, {"none": 0}, patch, known, shown.tensors)
    return {
        "hidden_size": width, "patch_size": patch, "channels": channels,
        "tokens_mlp_dim": tokens_mlp_dim, "image_size": size, "num_layers": shown.layers(),
        "mlp_dim": shown[f"{BLOCK}/channel_mixing/fc1/kernel"][-1],
        "num_classes": shown.classes(),
    }  # fmt: skip


def resnet_fields(shown: Shown, known: dict[str, Any]) -> dict[str, Any]:
    """The fields of a BiT ResNet."""
    _, _, channels, width = shown["backbone/root/conv/kernel"]
    return {
        "resnet_layers": shown.units(), "width_factor": width // 64, "channels": channels,
        "image_size": known.get("source_image_size") or 224,
        "num_classes": shown.classes(),
    }  # fmt: skip


def size_of(
    positions: int, prefixes: dict[str, int], patch: int, known: dict[str, Any], tensors: Tensors
) -> tuple[tuple[int, int], str]:
    """The (height, width) of the images that a table of positions is for, and the name of the
    prefix tokens in it.

    Args:
      prefixes: the possible numbers of prefix positions by name. The first that fits is returned.
      known: with `source_image_size` if the size is known, from metadata or from the user. Patches
        need not tile it. Otherwise the `image_size` of its `run` counts if it has as many patches.
        Otherwise the image is a square of whole patches, or has the proportions of the run's.

    Raises UserError if nothing fits.
    """
    usual, image_size = next(iter(prefixes.values())), known.get("source_image_size")
    has = f"{tensors.path} has positions for {positions - usual} patches"
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        grid = (height // patch, width // patch)
        for name, prefix in prefixes.items():
            if positions - prefix == math.prod(grid):
                return (height, width), name
        raise UserError(
            f"{has}, not for the {grid[0]} x {grid[1]} of images {height} x {width} "
            "(source_image_size is the size that the weights were trained at)"
        )
    size = known.get("run", {}).get("image_size") or 0
    rows, columns = (side // patch for side in ((size, size) if isinstance(size, int) else size))
    for name, prefix in prefixes.items():
        if positions - prefix == rows * columns:
            return (rows * patch, columns * patch), name
    for name, prefix in prefixes.items():
        side = math.isqrt(positions - prefix)
        if side * side == positions - prefix:
            return (side * patch, side * patch), name
    for name, prefix in prefixes.items():
        down = math.isqrt((positions - prefix) * rows // max(columns, 1))
        if down and down * (down * columns // rows) == positions - prefix:
            return (down * patch, down * columns // rows * patch), name
    raise Unstated(
        f"{has}, which is no square, and not the size of the images that it was trained at",
        "source_image_size",
    )
