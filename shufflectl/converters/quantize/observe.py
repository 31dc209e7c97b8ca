"""Ranges of activations, from batches that are looked at once or twice and never kept.

Methods:
- ``minmax``: from the smallest to the largest number seen.
- ``percentile``: the ends cut so that at most 0.001 % of the numbers lie outside, half of them at each end.
- ``entropy``: the end that changes the distribution least, by Kullback-Leibler divergence (S. Migacz, 8-bit
  inference with TensorRT, GTC 2017). onnxruntime's calibrator is the same search in plain Python, which takes
  minutes for the 150 tensors of ShuffleNet V2.
- ``mse``: the ends with the smallest expected squared error of rounding and cutting together.

All but the first take a second look, in which each tensor's numbers are counted in bins between the ends that
the first one found.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.quantize.recipe import Method
from shufflectl.errors import DataError

__all__ = ["ChannelObserver", "Observer"]

_BINS: Final = 2048
_OUTSIDE: Final = 1e-5
_LEVELS: Final = 255
_MAGNITUDES: Final = 128
_FRACTIONS: Final = np.linspace(1.0, 0.3, 141)
"""How much of an end is kept, for the ends that ``mse`` tries."""


class Observer:
    """Looks at tensors and says their ranges.

    Args:
        method: How ranges are chosen.

    Usage: `look` at every batch; where `again` says so, `look` at every batch a second time; then `ranges`.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._ends: dict[str, tuple[float, float]] = {}
        self._bins: dict[str, NDArray[np.int64]] = {}
        self._second = False

    @property
    def again(self) -> bool:
        """Whether a second look at every batch is needed; asking for it begins it."""
        if self.method == "minmax" or self._second:
            return False
        self._second = True
        return True

    def look(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take in one batch.

        Raises:
            DataError: A tensor holds NaN or infinity.
        """
        for name, array in tensors.items():
            if self._second:
                self._count(name, array)
            else:
                self._extend(name, array)

    def _extend(self, name: str, array: NDArray[Any]) -> None:
        low, high = float(array.min()), float(array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"on an image of the calibration, tensor {name!r} holds NaN or infinity",
                hint="check the images and the weights; the float model fails on such an image too",
            )
        before = self._ends.get(name, (low, high))
        self._ends[name] = (min(before[0], low), max(before[1], high))

    def _count(self, name: str, array: NDArray[Any]) -> None:
        low, high = self._ends[name]
        if low < high:
            found = np.histogram(array, _BINS, (low, high))[0]
            self._bins[name] = self._bins.get(name, np.zeros(_BINS, np.int64)) + found

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return each tensor's smallest and largest number that should have a code."""
        found = {}
        for name, (low, high) in self._ends.items():
            bins = self._bins.get(name)
            found[name] = (low, high) if bins is None else _chosen(self.method, bins, low, high)
        return found


class ChannelObserver:
    """Gathers the largest magnitude and the mean of every channel (axis 1)."""

    def __init__(self) -> None:
        self._peaks: dict[str, NDArray[np.float32]] = {}
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}

    def look(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take in one batch; tensors of rank 1 have no channels."""
        for name, array in tensors.items():
            if array.ndim < 2:
                continue
            others = tuple(axis for axis in range(array.ndim) if axis != 1)
            peak = np.abs(array).max(axis=others)
            self._peaks[name] = np.maximum(self._peaks.get(name, peak), peak)
            self._sums[name] = self._sums.get(name, 0.0) + array.sum(axis=others, dtype=np.float64)
            self._counts[name] = self._counts.get(name, 0) + array.size // array.shape[1]

    @property
    def magnitudes(self) -> dict[str, NDArray[np.float32]]:
        """The largest magnitude of each channel, by tensor."""
        return dict(self._peaks)

    @property
    def means(self) -> dict[str, NDArray[np.float32]]:
        """The mean of each channel, by tensor."""
        return {name: (total / self._counts[name]).astype(np.float32) for name, total in self._sums.items()}


def _chosen(method: Method, bins: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    edges = np.linspace(low, high, _BINS + 1)
    if method == "percentile":
        return _percentile(bins, edges)
    if method == "entropy":
        return _entropy(bins, edges)
    return _least_error(bins, edges)


def _percentile(bins: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[float, float]:
    share = np.cumsum(bins) / bins.sum()
    first = int(np.searchsorted(share, _OUTSIDE / 2, side="right"))
    last = int(np.searchsorted(share, 1 - _OUTSIDE / 2, side="left"))
    return min(float(edges[first]), 0.0), max(float(edges[min(last, _BINS - 1) + 1]), 0.0)


def _entropy(bins: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends that lie as far from 0 as the one that changes the distribution of magnitudes least."""
    low, high = float(edges[0]), float(edges[-1])
    reach = max(abs(low), abs(high))
    middles = np.abs((edges[:-1] + edges[1:]) / 2)
    counts = np.histogram(middles, _BINS, (0, reach), weights=bins.astype(np.float64))[0]
    counts[0] = counts[1]  # zeros, most of what a ReLU gives, have a code of their own whatever the end
    best, chosen = math.inf, _BINS
    for kept in range(_MAGNITUDES, _BINS + 1, _MAGNITUDES // 16):
        divergence = _divergence(counts, kept)
        if divergence < best:
            best, chosen = divergence, kept
    end = reach * chosen / _BINS
    return max(low, -end), min(high, end)


def _divergence(counts: NDArray[np.float64], kept: int) -> float:
    """Return the Kullback-Leibler divergence between the first bins, and the same at 128 levels.

    What lies beyond is in the last bin of the first distribution only; a bin that is empty there stays empty.
    """
    head = counts[:kept]
    wanted = head.copy()
    wanted[-1] += counts[kept:].sum()
    starts = np.linspace(0, kept, _MAGNITUDES, endpoint=False).astype(np.intp)
    used = head > 0
    filled = np.maximum(np.add.reduceat(used.astype(np.float64), starts), 1)
    level = np.repeat(np.add.reduceat(head, starts) / filled, np.diff([*starts, kept]))
    held = np.where(used, level, 0.0)
    if not held.any():
        return math.inf
    p, q = wanted / wanted.sum(), held / held.sum()
    both = p > 0
    # An empty bin that outliers fill would make the divergence infinite: it is taken for nearly empty.
    return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())


def _least_error(bins: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends with the least error: step² / 12 inside, the square of the rest outside."""
    middles = (edges[:-1] + edges[1:]) / 2
    weight = bins / bins.sum()
    low, high = min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)
    best, chosen = math.inf, (low, high)
    lows = low * _FRACTIONS if low < 0 else np.zeros(1)
    for start in lows[:: 1 if high <= 0 else 5]:
        for end in high * _FRACTIONS if high > 0 else np.zeros(1):
            step = (end - start) / _LEVELS
            cut = np.maximum(start - middles, 0) + np.maximum(middles - end, 0)
            error = float(weight @ np.where(cut > 0, cut**2, step**2 / 12))
            if error < best:
                best, chosen = error, (float(start), float(end))
    return chosen
