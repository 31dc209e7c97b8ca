"""How far two runs of one model may differ, by the precision of the file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Self

from shufflectl.deploy.parity.figures import figure
from shufflectl.errors import UsageError, nearest

__all__ = ["ANY", "CODE_LIMITS", "LIMITS", "CodeLimits", "Limits", "default_limits"]


@dataclass(frozen=True)
class Limits:
    """What a comparison must satisfy, all of it at once (an error within one limit excuses no other).

    Attributes:
        max_rel: The largest max |Δ|, as a fraction of the reference's largest magnitude.
        sqnr: The smallest signal to quantisation noise ratio, in dB.
        top1: The smallest share of images, 0 to 1, on which both name the same class. A flip between two
            logits that lie closer together in the reference than ``max_rel`` of its largest magnitude is a
            tie: it is counted apart and is no disagreement.
    """

    max_rel: float
    sqnr: float
    top1: float

    def __post_init__(self) -> None:
        if not self.max_rel >= 0:
            raise UsageError(
                f"a relative error limit of {self.max_rel} is no limit", hint="give a number from 0 upwards"
            )
        if math.isnan(self.sqnr):
            raise UsageError("an SQNR limit of NaN is no limit", hint="give a number of decibels")
        if not 0 <= self.top1 <= 1:
            raise UsageError(
                f"a top-1 agreement of {self.top1} is not a share", hint="give a number from 0 to 1, as 0.99"
            )

    def override(
        self, *, max_rel: float | None = None, sqnr: float | None = None, top1: float | None = None
    ) -> Self:
        """Return the limits with what the user gave in place of the defaults.

        Raises:
            UsageError: A figure is out of its range.
        """
        given = {"max_rel": max_rel, "sqnr": sqnr, "top1": top1}
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def between(self, other: "Limits") -> "Limits":
        """Return the limits for two candidates that are each held to limits of their own.

        Their errors against the reference come from different roundings, so they add in power: two files
        at 40 dB each may lie 37 dB apart. Disagreements about the class add up.
        """
        noise = 10 ** (-self.sqnr / 10) + 10 ** (-other.sqnr / 10)
        return Limits(
            max_rel=math.hypot(self.max_rel, other.max_rel),
            sqnr=-10 * math.log10(noise) if noise > 0 else math.inf,
            top1=max(0.0, self.top1 + other.top1 - 1),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON values."""
        return {"max_rel": figure(self.max_rel), "sqnr_db": figure(self.sqnr), "top1": figure(self.top1)}


ANY: Final = Limits(max_rel=math.inf, sqnr=-math.inf, top1=0.0)
"""Limits that everything finite is within."""

LIMITS: Final[Mapping[str, Limits]] = MappingProxyType(
    {
        "fp32": Limits(max_rel=1e-4, sqnr=80.0, top1=1.0),
        "fp16": Limits(max_rel=2e-2, sqnr=40.0, top1=0.99),
        "int8": Limits(max_rel=0.35, sqnr=15.0, top1=0.9),
        "int8-weights": Limits(max_rel=0.2, sqnr=22.0, top1=0.95),
        "int8-dynamic": Limits(max_rel=0.25, sqnr=18.0, top1=0.95),
        "palette8": Limits(max_rel=0.2, sqnr=24.0, top1=0.95),
        "palette6": Limits(max_rel=0.25, sqnr=16.0, top1=0.9),
        "palette4": Limits(max_rel=0.7, sqnr=4.0, top1=0.6),
    }
)
"""Default limits by precision.

``fp32``: the formats differ only in the order of additions and in how batch norm was folded. Each rounds by
2^-24 (6e-8 of the value); over a hundred layers and a thousand products each, that stays near 1e-6, which is
120 dB. A limit of 1e-4 and 80 dB leaves two orders of magnitude for depth and cancellation, and is still far
below any defect: one missing weight column of a thousand leaves about 30 dB. No class may change but in a
tie.

``fp16``: half precision rounds by 2^-11 (4.9e-4). Weights and every activation are rounded, errors add in
power over the layers: fifty layers give 4.9e-4 / sqrt(3) * sqrt(2 * 50), about 3e-3 or 50 dB; V2 x1.0 in Core
ML's fp16 was measured at 67 dB. 40 dB (one percent) leaves a factor of three for deeper networks; the largest
single error of a thousand logits is about three times the typical one and is measured against the largest
magnitude, hence 2e-2. One image in a hundred may change its class beyond a tie.

Integers: how near codes come depends on the network. These limits only tell a network that still works from
one that does not, as the bundled ones do by 3 dB and more; what finds a defect in an int8 file is the
comparison in codes, `CODE_LIMITS`.
"""


def default_limits(precision: str) -> Limits:
    """Return the limits that a file of that precision is held to.

    Raises:
        UsageError: No limits are known for the precision.
    """
    limits = LIMITS.get(precision)
    if limits is None:
        raise UsageError(
            f"no parity limits are known for precision {precision!r}", hint=nearest(precision, LIMITS)
        )
    return limits


_STEP: Final = 4
"""How many steps of a tensor one step of a tensor before it may make."""


@dataclass(frozen=True)
class CodeLimits:
    """How far the codes of one layer may be from those that the graph makes of what the layer read.

    Attributes:
        different: The largest share of codes that differ, 0 to 1. One or two of a small tensor always may.
        largest: By how many steps.
        numbers: What the numbers of layers without codes are held to, and of the outputs.
        means: The same share for means over a whole image.
    """

    different: float
    largest: int
    numbers: Limits
    means: float = 0.0

    @property
    def for_means(self) -> Self:
        """The limits that means over a whole image are held to."""
        return replace(self, different=max(self.different, self.means))

    def for_roundings(self, count: int) -> Self:
        """Return the limits where several tensors are rounded between those that are compared.

        A step of one of those before may be several of the last one: its scale is smaller, or weights enlarge
        it.
        """
        more = max(count - 1, 0)
        return replace(
            self, different=min(1.0, self.different * (1 + more)), largest=self.largest + _STEP * more
        )

    def allow(self, different: int, elements: int, largest: int) -> bool:
        """Whether codes are within the limits."""
        return largest <= self.largest and different <= max(self.different * elements, 2)


CODE_LIMITS: Final[Mapping[str, CodeLimits]] = MappingProxyType(
    {
        "onnx": CodeLimits(0.005, 1, Limits(max_rel=0.05, sqnr=30.0, top1=0.0)),
        "tflite": CodeLimits(0.25, 1, Limits(max_rel=0.05, sqnr=30.0, top1=0.0), means=1.0),
        "coreml": CodeLimits(0.2, 1, Limits(max_rel=0.1, sqnr=25.0, top1=0.0)),
    }
)
"""By target. Integer kernels round the same sum once, and ONNX Runtime's differ where it lies between two
codes as exactly as fp32 can tell. TFLite's own kernels, from which inner tensors come, round twice: a
product with 31 bits of a fraction, and the shift behind it. Where that is a shift by n bits, as for a small
depthwise sum or a mean, the first rounding makes a tie of one number in 2^n, and half of those fall on the
other side: up to one code in seven was seen (a fully connected layer behind a mean). Its kernel of a mean
also rounds what the two zero points add, once for all codes, so that half of them may be a step off, and of a
few channels all of them.
XNNPACK rounds once. Core ML computes between codes in fp16, which is off by up to 2^-11 of a number: a
sixteenth of a step at the largest codes, and twice that behind a function such as a sigmoid, where up to
one code in nine was seen to fall on the other side."""
