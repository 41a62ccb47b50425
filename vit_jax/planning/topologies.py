"""Machines to plan for, by name: slices of TPUs, GPUs, and this machine.

v5e:16x16     a slice of 256 chips, by the shape that Cloud TPU has for it; `slices` is their number
v5litepod-256 the same slice by its accelerator type; for v4 and v5p, 256 counts cores, two per chip
gpu:h100x8    eight GPUs in one host; gpu:h100x8x4 four such hosts, gpu:h100x32 the same
local         the devices of this machine
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from vit_jax.errors import UserError
from vit_jax.models.kernels import Gpu, gpu_of
from vit_jax.parallel.chips import CHIPS, Chip, chip_of
from vit_jax.planning import gpus

GPUS_PER_HOST = 8
# Slices that Cloud TPU offers. v4 and v5p also have all shapes of multiples of 4 up to LARGEST.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
LARGEST = {"v4": (12, 16, 16), "v5p": (16, 16, 24)}
TPUS = {"v4": SMALL, "v5e": FLAT, "v5p": SMALL, "v6e": FLAT}
CORES = {"v4": 2, "v5p": 2}  # cores of a chip in accelerator types; 1 for all others


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for. If no compiler for them is here, `devices` is only their number."""

    name: str
    devices: Sequence[Any] | int
    chip: Chip | None
    shape: tuple[int, ...] = ()  # of a slice, in chips
    slices: int = 1
    a_host: int = 0  # GPUs of a host, which NVLink joins
    missing: str = ""  # why there is no compiler, and how to get it

    @property
    def count(self) -> int:
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def gpu(self) -> Gpu | None:
        """The kind of its GPUs; None for other devices."""
        if not isinstance(self.devices, int):
            return gpu_of(self.devices[0])
        assert self.chip
        row = gpus.kinds()[self.chip.name]
        return Gpu(row["device"], float(row["capability"]), here=False)

    @property
    def together(self) -> int:
        """Number of devices that fast links join."""
        if self.shape:
            return math.prod(self.shape)
        return self.a_host or min(self.count, GPUS_PER_HOST)

    @property
    def link(self) -> float:
        """Bytes per second of a ring inside a slice; half if the torus has open edges."""
        assert self.chip
        joined = 16 if len(self.shape) == 2 else 4
        open_ended = bool(self.shape) and max(self.shape) < joined
        return self.chip.link / 2 if open_ended else self.chip.link


def shapes(generation: str) -> list[str]:
    """Every slice of a TPU generation, the smallest first."""
    names = list(TPUS[generation])
    if generation in LARGEST:
        sides = [range(4, largest + 1, 4) for largest in LARGEST[generation]]
        cubes = {tuple(sorted(cube)) for cube in itertools.product(*sides)}
        ordered = sorted(cubes, key=lambda cube: (math.prod(cube), cube))
        names += ["x".join(map(str, cube)) for cube in ordered]
    return names


def _with(generation: str, chips: int) -> str | None:
    """The slice of `chips` chips; if there are several, the one with the shortest longest side."""
    fitting = [shape for shape in shapes(generation) if math.prod(_sides(shape)) == chips]
    return min(fitting, key=lambda shape: max(_sides(shape)), default=None)


def _sides(shape: str) -> tuple[int, ...]:
    return tuple(int(n) for n in shape.split("x"))


def by_shape(topology: str) -> str:
    """Writes an accelerator type as `v5e:16x16`; returns any other name unchanged."""
    match = re.fullmatch(r"(v4|v5e|v5litepod|v5p|v6e)-(\d+)", topology)
    if not match:
        return topology
    kind = "v5e" if match[1] == "v5litepod" else match[1]
    chips, rest = divmod(int(match[2]), CORES.get(kind, 1))
    return f"{kind}:{'' if rest else _with(kind, chips) or match[2]}"


def find(topology: str, slices: int = 1) -> Target:
    """The machine with a name. Raises UserError if there is none."""
    as_written, topology = topology, by_shape(topology)
    kind, _, size = topology.partition(":")
    if slices < 1:
        raise UserError(f"--slices={slices} must be 1 or more")
    if topology == "local" and slices > 1:
        raise UserError("--slices is for TPUs by name, not for the devices of this machine (local)")
    if topology == "local":
        devices = jax.devices()
        return Target(topology, devices, chip_of(devices[0].device_kind))
    if kind in TPUS:
        known = shapes(kind)
        if size not in known:
            short = known if len(known) < 13 else [*known[:12], "…", known[-1]]
            same = _with(kind, int(size)) if size.isdigit() else None
            raise UserError(
                f"there is no TPU slice {as_written}; "
                + (f"{size} chips are {kind}:{same}; " if same else "")
                + f"of {kind} there are {', '.join(short)}"
                + (" (multiples of 4, in ascending order)" if kind in LARGEST else "")
            )
        tpus = _tpu_devices(topology, slices)
        return Target(topology, tpus, _chip(kind), _sides(size), slices)
    if kind == "gpu":
        return _gpus(topology, size, slices)
    raise UserError(
        f"unknown topology {as_written!r}: TPUs v4:2x2x4 … v5e:16x16 … v5p:4x4x4 … v6e:16x16 …, "
        "gpu:NAMExCOUNT such as gpu:h100x8, or local"
    )


def _chip(name: str) -> Chip:
    return next(chip for chip in CHIPS if chip.name == name)


def _gpus(topology: str, size: str, slices: int) -> Target:
    names = [chip.name for chip in CHIPS if not chip.kinds.startswith("TPU")]
    match = re.fullmatch(rf"({'|'.join(names)})x([1-9]\d*)(?:x([1-9]\d*))?", size)
    if not match:
        raise UserError(
            f"unknown GPUs {topology!r}: gpu:NAMExCOUNT, such as gpu:h100x8, or with a number of "
            f"hosts gpu:h100x8x4; names are {', '.join(names)}"
        )
    if slices > 1:
        raise UserError("--slices is for TPUs; for GPUs, give the number of hosts: gpu:h100x8x4")
    name, a_host, hosts = match[1], int(match[2]), int(match[3] or 1)
    if not match[3] and a_host > GPUS_PER_HOST:
        hosts = -(-a_host // GPUS_PER_HOST)
        if a_host % hosts:
            raise UserError(
                f"{topology}: {a_host} GPUs are not the same number in each of {hosts} hosts; "
                f"{a_host // hosts * hosts} would be"
            )
        a_host //= hosts
    chip, count = _chip(name), a_host * hosts
    if jax.default_backend() == "gpu":
        here = [d for d in jax.devices() if chip_of(d.device_kind) is chip]
        if len(here) >= count:
            return Target(topology, here[:count], chip, a_host=a_host)
    if missing := gpus.missing():
        return Target(topology, count, chip, a_host=a_host, missing=missing)
    return Target(topology, gpus.devices(name, a_host, hosts), chip, a_host=a_host)


# With these, libtpu does not ask this machine which TPU it has, because it has none.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip


def _tpu_devices(topology: str, slices: int) -> Sequence[Any]:
    """Devices of a slice, as the TPU compiler describes them, in the order of their ids."""
    from jax.experimental import topologies

    if jax.default_backend() != "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"planning for {topology} needs the TPU compiler, but no TPU: pip install "
                "vit_jax[tpu] (or libtpu)"
            )
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):
        more["chip_config_name"] = "megacore"
    if topology.endswith(":1x1"):  # otherwise a host has 2x2 chips
        more["chips_per_host_bounds"] = (1, 1, 1)
    with _silent():
        described = topologies.get_topology_desc(topology, "tpu", **more)
    return sorted(described.devices, key=lambda device: device.id)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides what libtpu writes to standard error because there is no TPU. Its errors are raised."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
