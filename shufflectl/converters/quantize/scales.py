"""Codes of eight bits: how ranges become scales, and weights and biases become codes.

Activations are asymmetric, one scale a tensor: ``real = scale * (code - zero_point)``. The zero point is held
as that of an int8 code; the uint8 code of the same value is 128 more, with the zero point, so both are the
same grid. Weights are symmetric, one scale an output channel, codes -127 to 127. Biases are int32 at the
scale of the input times that of the weights' row, zero point 0, as the TFLite quantisation specification has
it (ai.google.dev/edge/litert/models/quantization_spec); ONNX's QLinearConv and QGemm ask for the same.

Scales are numbers that fp16 holds, as far as its normal numbers reach: Core ML computes in fp16 around codes,
so its grid is that of the other formats to the last bit. A range is at most a thousandth wider for it.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.errors import GraphError

__all__ = ["Scale", "WeightCodes", "bias_codes", "from_range", "over", "representable", "weight_codes"]

_LEVELS: Final = 255
_LOWEST: Final = -128
_HALF: Final = np.finfo(np.float16)
_LARGEST_BIAS: Final = 2**30
"""Half of what int32 holds, so that a sum that starts there has room."""


@dataclass(frozen=True)
class Scale:
    """The grid of one activation.

    Attributes:
        scale: The distance of two codes; exactly a float32.
        zero_point: The int8 code of 0; the uint8 code is 128 more.
    """

    scale: float
    zero_point: int

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that has a code."""
        low = self.scale * (_LOWEST - self.zero_point)
        return low, low + self.scale * _LEVELS

    def codes(self, values: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return the int8 codes of numbers: rounded half to even, cut off at the ends."""
        steps = np.rint(np.asarray(values, np.float32) / np.float32(self.scale))
        codes: NDArray[np.int8] = np.clip(steps + self.zero_point, _LOWEST, 127).astype(np.int8)
        return codes

    def values(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Return the numbers of int8 codes."""
        return ((codes.astype(np.int32) - self.zero_point) * np.float32(self.scale)).astype(np.float32)


def from_range(low: float, high: float, name: str = "a tensor") -> Scale:
    """Return the grid of 256 codes from ``low`` to ``high``, which holds 0 exactly.

    A range on one side of 0 is widened to it. A tensor that is always 0 has any scale.

    Raises:
        GraphError: An end is not finite, or the range is beyond float32.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise GraphError(
            f"tensor {name!r} has no finite range: it was seen between {low:g} and {high:g}",
            hint="look for images or weights that make infinite or undefined activations",
        )
    low, high = min(low, 0.0), max(high, 0.0)
    width = high - low
    if width == 0:
        width = 1.0
    with np.errstate(over="ignore", under="ignore"):
        scale = float(np.float32(width / _LEVELS))
    scale = representable(scale)
    if not (math.isfinite(scale) and scale >= float(np.finfo(np.float32).tiny)):
        raise GraphError(
            f"tensor {name!r} has no usable range: it was seen between {low:g} and {high:g}",
            hint="look for layers whose weights make activations vanish or overflow",
        )
    return over(low, scale)


def over(low: float, scale: float) -> Scale:
    """Return the grid that has a scale, and begins where a range does."""
    return Scale(scale, int(np.clip(round(_LOWEST - min(low, 0.0) / scale), _LOWEST, 127)))


def representable(scale: float) -> float:
    """Return the next scale from this one on that fp16 holds, as far as its normal numbers reach."""
    return float(_up(scale))


def _up(scales: Any) -> NDArray[np.float32]:
    """Return the next scales that fp16 holds, as far as its normal numbers reach; others to fp32."""
    wide = np.asarray(scales, np.float64)
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
        half = np.where(half.astype(np.float64) < wide, np.nextafter(half, np.float16(np.inf)), half)
    held = (wide >= float(_HALF.tiny)) & np.isfinite(half)
    return np.where(held, half.astype(np.float32), wide.astype(np.float32)).astype(np.float32)


@dataclass(frozen=True)
class WeightCodes:
    """Weights as codes.

    Attributes:
        codes: int8, the shape of the weights.
        scales: float32, one an output channel (or one for all).
        axis: The axis of output channels.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int


def weight_codes(
    weights: NDArray[np.float32],
    axis: int,
    source: Scale | None = None,
    bias: NDArray[np.float32] | None = None,
) -> WeightCodes:
    """Return weights as codes, one scale for each output channel.

    A channel whose weights are all 0 takes the typical scale of the others: its bias is then as exact as
    theirs. Where a bias would not fit int32, the channel's scale is as much larger as it takes.

    Args:
        weights: Any shape.
        axis: The axis of output channels.
        source: The grid of the input, on which the scale of the bias depends; None where biases stay floats.
        bias: One number an output channel.

    Raises:
        GraphError: A weight is not finite.
    """
    others = tuple(a for a in range(weights.ndim) if a != axis)
    largest = np.abs(weights).max(axis=others).astype(np.float64) if weights.size else np.zeros(0)
    if not np.isfinite(largest).all():
        raise GraphError("weights hold NaN or infinity", hint="check the checkpoint")
    used = largest[largest > 0]
    typical = float(np.exp(np.log(used).mean())) if used.size else 1.0
    scales = np.where(largest > 0, largest, typical) / 127
    if source is not None and bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (source.scale * _LARGEST_BIAS))
    small = _up(np.maximum(scales, np.finfo(np.float32).tiny))
    shape = [-1 if a == axis else 1 for a in range(weights.ndim)]
    codes = np.clip(np.rint(weights / small.reshape(shape)), -127, 127).astype(np.int8)
    return WeightCodes(codes, small, axis)


def bias_codes(bias: NDArray[np.float32], source: Scale, weights: WeightCodes) -> NDArray[np.int32]:
    """Return a bias as int32 at the scale of the input times that of each row of the weights."""
    steps = bias.astype(np.float64) / (np.float64(source.scale) * weights.scales.astype(np.float64))
    limit = 2**31 - 1
    return np.clip(np.rint(steps), -limit, limit).astype(np.int32)
