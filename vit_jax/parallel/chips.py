"""Stated peaks of chips, for model FLOPs utilisation (MFU)."""

import re

# Dense bfloat16 FLOP/s of one device as JAX counts devices, from the vendors' data sheets.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    (r".*H200.*|.*H100.*|.*GH200.*", 989e12),
    (r".*B200.*|.*GB200.*", 2250e12),
    (r".*A100.*", 312e12),
    (r".*L4\b.*", 121e12),
    (r".*V100.*", 125e12),
    (r"TPU v4.*", 275e12),
    (r"TPU v5 lite.*|TPU v5e.*", 197e12),
    (r"TPU v5.*", 459e12),
    (r"TPU v6.*", 918e12),
)


def peak_flops(device_kind: str) -> float | None:
    """The stated bfloat16 peak of a device kind; None where none is stated (CPUs)."""
    for pattern, peak in PEAK_FLOPS:
        if re.fullmatch(pattern, device_kind):
            return peak
    return None
