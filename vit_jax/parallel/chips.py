"""Data sheets of chips: peaks, memory, links. They give the share of the peak that a run reaches
(MFU), and plans."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as JAX counts devices. (On TPU v4 and v5p, a device is a chip with two cores.)

    A device has three bandwidths in bytes per second. `bandwidth` is that of its memory. `link` is
    that of a ring over the links inside a slice or a host, both directions together. `network` is
    its share of the network between slices or hosts.
    """

    name: str
    kinds: str  # pattern of JAX's `device_kind`
    peak_flops: float  # dense bfloat16 (V100: float16), FLOP/s
    peak_float32: float  # as JAX multiplies float32 by default: TF32, or a TPU's bfloat16 pass
    memory: float  # GiB that a program may use
    bandwidth: float
    link: float
    network: float

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in `dtype`: bfloat16 or float32."""
        return self.peak_float32 if dtype == "float32" else self.peak_flops


# Sources. Peaks: the vendors' data sheets. Memory: of a TPU, what its compiler allows; of a GPU, of
# what the device reports (planning/gpus.csv), the share that `vit` asks JAX for (process.py).
# Links and networks of TPUs: "How to Scale Your Model" (Google DeepMind, 2025), chapter 2. Those of
# GPUs: NVLink in one direction, and one adapter per GPU with 400 Gb/s (200 Gb/s for an A100).
CHIPS: tuple[Chip, ...] = (
    Chip("h200", r".*H200.*", 989e12, 495e12, 129.7, 4.8e12, 450e9, 50e9),
    Chip("h100", r".*H100.*|.*GH200.*", 989e12, 495e12, 72.8, 3.35e12, 450e9, 50e9),
    Chip("b200", r".*B200.*", 2250e12, 1125e12, 164.1, 8.0e12, 900e9, 50e9),
    Chip("a100-40gb", r".*A100.*40GB.*", 312e12, 156e12, 36.3, 1.555e12, 300e9, 25e9),
    Chip("a100", r".*A100.*", 312e12, 156e12, 72.9, 2.0e12, 300e9, 25e9),
    Chip("l40s", r".*L40S.*", 362e12, 181e12, 40.9, 0.864e12, 32e9, 25e9),
    Chip("rtx4090", r".*RTX 4090", 165e12, 82.6e12, 21.7, 1.008e12, 32e9, 12.5e9),
    Chip("l4", r".*L4\b.*", 121e12, 60e12, 20.3, 0.3e12, 32e9, 12.5e9),
    Chip("v100-16gb", r".*V100.*16GB.*", 125e12, 15.7e12, 14.5, 0.9e12, 150e9, 12.5e9),
    Chip("v100", r".*V100.*", 125e12, 15.7e12, 29.2, 0.9e12, 150e9, 12.5e9),
    Chip("v4", r"TPU v4.*", 275e12, 275e12, 30.75, 1.2e12, 90e9, 6.25e9),
    Chip("v5e", r"TPU v5 lite.*|TPU v5e.*", 197e12, 197e12, 15.75, 0.81e12, 90e9, 3.125e9),
    Chip("v5p", r"TPU v5.*", 459e12, 459e12, 95.73, 2.8e12, 180e9, 6.25e9),
    Chip("v6e", r"TPU v6.*", 918e12, 918e12, 31.24, 1.6e12, 180e9, 12.5e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device kind; None if it has no data sheet here (CPUs)."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.kinds, device_kind)), None)


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """The peak of a device kind in FLOP/s; None if it has no data sheet here (CPUs)."""
    chip = chip_of(device_kind)
    return chip.peak(dtype) if chip else None
