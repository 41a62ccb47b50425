"""Statistics of the values of a data set's images, by channel, in one pass and constant memory.

Values are counted in 65,536 bins. Each integer of 8 or 16 bits has its own bin, so its statistics
are exact. The bin of a float or a wider integer is the upper 16 bits of its float32: the sign, the
exponent and 7 bits of the fraction. So the error of a percentile is at most one part in 128, and
minimum, maximum, mean and standard deviation are exact. The mean and the standard deviation of the
pixels, from 0 to 1, are computed from the bins.
"""

import threading
from typing import Any

import numpy as np

from vit_jax.data.levels import Levels, blocks, eight_bits

BINS = 2**16
TAILS = (0.001, 0.999)  # shares of the values below the ends of the proposed range


class Statistics:
    """The statistics of all values of one type."""

    def __init__(self, dtype: np.dtype, channels: int):
        self.dtype = dtype
        self.images, self.not_finite = 0, 0
        self.counts = np.zeros((channels, BINS), np.int64)
        self.least, self.most = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._mean, self._squares = np.zeros(channels), np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """Counts an image [H, W, channels]."""
        self.images += 1
        for rows in blocks(values):
            for channel in range(values.shape[-1]):
                self._add(channel, values[rows, :, channel].ravel())

    def _add(self, channel: int, values: np.ndarray) -> None:
        exact = values.astype(np.float64)
        finite = np.isfinite(exact)
        if not finite.all():
            values, exact = values[finite], exact[finite]
            self.not_finite += len(finite) - len(values)
        if not len(values):
            return
        before = self.counts[channel].sum()
        self.counts[channel] += np.bincount(_bins(values), minlength=BINS)
        self.least[channel] = min(self.least[channel], exact.min())
        self.most[channel] = max(self.most[channel], exact.max())
        # The mean and the sum of squares about it, merged (Chan, Golub and LeVeque, 1979).
        mean, share = exact.mean(), len(values) / (before + len(values))
        apart = mean - self._mean[channel]
        self._squares[channel] += np.square(exact - mean).sum() + apart**2 * before * share
        self._mean[channel] += apart * share

    def percentile(self, share: float) -> np.ndarray:
        """For each channel, the lowest value that at least `share` of the values do not exceed."""
        up_to = self.counts.cumsum(axis=1)
        wanted = np.maximum(1, np.ceil(share * up_to[:, -1:]))
        values = _values(self.dtype)[(up_to < wanted).sum(axis=1).clip(0, BINS - 1)]
        return np.clip(values, self.least, self.most)

    def channels(self) -> list[dict[str, float]]:
        """The statistics of each channel, or of the first one only if all are alike."""
        low, high = (self.percentile(share) for share in TAILS)
        std = np.sqrt(self._squares / np.maximum(1, self.counts.sum(axis=1)))
        table = np.stack([self.least, self.most, low, high, self._mean, std], axis=1)
        names = ("min", "max", "percentile_0.1", "percentile_99.9", "mean", "std")
        rows = table[:1] if self.alike else table
        return [{n: float(f"{v:.9g}") for n, v in zip(names, r, strict=True)} for r in rows]

    @property
    def alike(self) -> bool:
        """Whether all channels hold the same values, as in a grey file."""
        return bool((self.counts == self.counts[0]).all())

    def range(self) -> Levels | None:
        """The arguments for `decode(low, high)`: the range of the values without a thousandth at
        each end. All channels have one range, except if the range of a channel is less than half as
        wide as that: then each has its own. None if a channel has a single value."""
        low, high = (self.percentile(share).astype(float) for share in TAILS)
        if self.dtype.kind == "f":
            low, high = (np.array([float(f"{v:.6g}") for v in ends]) for ends in (low, high))
        if not self.counts.any() or (low >= high).any():
            return None
        least, most = float(low.min()), float(high.max())
        if ((high - low) * 2 >= most - least).all():
            return Levels.between(least, most)
        return Levels.between(low.tolist(), high.tolist())

    def levels(self, range_: Levels | None) -> np.ndarray:
        """How often each of the 256 levels occurs in each decoded channel: [channels, 256]."""
        values = _values(self.dtype)[:, None, None].repeat(len(self.counts), axis=2)
        made = eight_bits(values, range_)[:, 0]
        each = zip(made.T, self.counts, strict=True)
        return np.stack([np.bincount(m, weights=n, minlength=256) for m, n in each])


def _bins(values: np.ndarray) -> np.ndarray:
    """The bin of each value, 0 … 65,535. Higher values have higher bins."""
    if values.dtype.kind in "biu" and values.dtype.itemsize <= 2:
        least = np.iinfo(values.dtype).min if values.dtype.kind != "b" else 0
        return values.astype(np.int32) - least
    most = np.finfo(np.float32).max
    bits = np.clip(values, -most, most).astype(np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31)) >> 16


def _values(dtype: np.dtype) -> np.ndarray:
    """The value of each bin, or the middle one if the bin holds several."""
    numbers = np.arange(BINS)
    if dtype.kind in "biu" and dtype.itemsize <= 2:
        info = np.iinfo(dtype if dtype.kind != "b" else np.uint8)
        return np.clip(numbers + info.min, info.min, info.max).astype(dtype)
    ordered = (numbers.astype(np.uint32) << 16) | np.uint32(2**15)
    bits = np.where(ordered >> 31, ordered & np.uint32(2**31 - 1), ~ordered)
    values = bits.astype(np.uint32).view(np.float32)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


class Tally:
    """The statistics of a split, for each type of values in it."""

    def __init__(self) -> None:
        self.types: dict[str, Statistics] = {}
        self._lock = threading.Lock()

    def add(self, values: np.ndarray) -> None:
        """Counts an image [H, W, channels]. Threads may call it at the same time."""
        with self._lock:
            kind = str(values.dtype)
            if kind not in self.types:
                self.types[kind] = Statistics(values.dtype, values.shape[-1])
            self.types[kind].add(values)

    def report(self) -> dict[str, Any]:
        """`values`: `images`, `not_finite` and `channels` of each type. `decode`: the proposed
        range, if values have more than 8 bits. `mean` and `std`: of pixels from 0 to 1."""
        deep = [each for each in self.types.values() if each.dtype != np.uint8]
        range_ = deep[0].range() if len(deep) == 1 else None
        values = {
            kind: {
                "images": each.images,
                "not_finite": each.not_finite,
                "channels": each.channels(),
            }
            for kind, each in self.types.items()
        }
        ends = range_ and [_short(range_.low), _short(range_.high)]
        report: dict[str, Any] = {"values": values, "decode": ends, "mean": None, "std": None}
        if not self.types or (deep and range_ is None):
            return report
        levels = np.sum([each.levels(range_) for each in self.types.values()], axis=0)
        share, level = levels / levels.sum(axis=1, keepdims=True), np.arange(256) / 255
        mean = share @ level
        std = np.sqrt((share * np.square(level - mean[:, None])).sum(axis=1))
        rounded = [[float(f"{v:.4f}") for v in each] for each in (mean, std)]
        alike = all(each.alike for each in self.types.values()) and not (range_ and range_.low[1:])
        if min(rounded[1]) > 0:
            report["mean"], report["std"] = (v[:1] if alike else v for v in rounded)
        return report


def _short(ends: tuple[float, ...]) -> list[float]:
    return [int(v) if v == int(v) else v for v in ends]


def lines(split: str, report: dict[str, Any], *, propose: bool = True) -> list[str]:
    """The report of a split as text. With `propose`, it has the options for a training run."""
    text = []
    for kind, facts in report["values"].items():
        for number, channel in enumerate(facts["channels"], 1):
            which = f"channel {number}" if facts["channels"][1:] else "all channels"
            numbers = ", ".join(
                f"{name.replace('percentile_', '')}{'%' * ('_' in name)} {value:,.6g}"
                for name, value in channel.items()
            )
            text.append(f"{facts['images']:,} images of {kind}, {which}: {numbers}")
        if facts["not_finite"]:
            text.append(f"{facts['not_finite']:,} values of {kind} are NaN or infinite")
    if propose and (range_ := report["decode"]):
        low, high = (ends[0] if len(ends) == 1 else tuple(ends) for ends in range_)
        text += [f"to write: --config.data.{part}.pipeline='decode({low}, {high})|…'"
                 for part in ("train", "eval")]  # fmt: skip
    elif propose and any(kind != "uint8" for kind in report["values"]):
        several = len(report["values"]) > 1
        why = "its images have several types" if several else "a channel has one value alone"
        text.append(f"no range can be proposed, because {why}")
    if propose and report["mean"]:
        mean, std = (v[0] if len(v) == 1 else f"'{tuple(v)}'" for v in
                     (report["mean"], report["std"]))  # fmt: skip
        text.append(f"to write: --config.data.mean={mean} --config.data.std={std}")
    return [f"{split}: {line}" for line in text]
