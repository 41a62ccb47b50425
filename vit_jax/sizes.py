"""What divides what: sizes of the mesh, batches and passes."""

import math

from ml_collections import ConfigDict

from vit_jax.errors import UserError


def divides(c: ConfigDict, key: str, divisor: int, what: str) -> None:
    """Raises UserError, with the nearest that would work, for what `divisor` does not divide."""
    value = c[key]
    if value % divisor:
        below, above = value // divisor * divisor, -(-value // divisor) * divisor
        near = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{key} {value} is not divisible by {what} = {divisor}; {near} would work")


def microbatches(batch_size: int, rows: int) -> list[int]:
    """Sizes of a pass that make up a batch and split over `rows` devices, in rising order."""
    return [m for m in range(rows, batch_size + 1, rows) if batch_size % m == 0]


# Beyond it a chip's parts of a kernel get too thin to travel well, and `data` costs less: H/14 on
# 256 chips has a ceiling of 49,700 images a second in place of 29,600 (docs/scaling.md).
WIDEST_FSDP = 16


def mesh_sizes(mesh: ConfigDict, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with a -1 filled in, so that they multiply to `devices`.

    Where both data and fsdp are -1, fsdp takes as much as divides, up to `WIDEST_FSDP`, and data
    what is left. Raises UserError with sizes that would work.
    """
    given = [mesh.data, mesh.fsdp, mesh.tensor]
    text = f"mesh data={given[0]}, fsdp={given[1]}, tensor={given[2]}"
    both = given[0] == given[1] == -1
    if any(size < 1 and size != -1 for size in given) or given.count(-1) > 1 + both:
        raise UserError(
            f"{text}: sizes are positive, and one of them, or data and fsdp, may be -1 (what is "
            "left)"
        )
    if both:
        left = devices // given[2]
        given[1] = max(n for n in range(1, WIDEST_FSDP + 1) if left % n == 0)
    known = math.prod(size for size in given if size != -1)
    filled = [devices // known if size == -1 else size for size in given]
    if math.prod(filled) != devices:
        factors = [n for n in range(1, devices + 1) if devices % n == 0]
        raise UserError(
            f"{text} does not multiply to the {devices} devices there are; each size must be one "
            f"of {', '.join(map(str, factors))}, for example mesh.data=-1, mesh.fsdp=1, "
            "mesh.tensor=1"
        )
    return filled[0], filled[1], filled[2]
