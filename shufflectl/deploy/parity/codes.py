"""Comparing tensors in codes of eight bits: how many differ, by how many steps, and whether the grids agree.

Numbers that two runtimes round to one grid are the same or a step apart, however large they are. A share of
codes that are the same says more of integer kernels than any ratio of signal and noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.quantize.scales import Scale
from shufflectl.deploy.parity.case import Diagnosis
from shufflectl.deploy.parity.figures import figure
from shufflectl.deploy.parity.limits import CodeLimits
from shufflectl.deploy.runtimes.base import Integers

__all__ = ["CodeCounter", "CodeReference", "Codes"]

_SAME_SCALE = 1e-5


@dataclass(frozen=True)
class Codes:
    """A comparison in codes. Its truth value is the verdict.

    Attributes:
        elements: Codes compared; one that is NaN or infinite counts as different by any number of steps.
        different: How many are not the same.
        largest: By how many steps at most.
        limits: What the verdict is measured against.
    """

    elements: int
    different: int
    largest: float
    limits: CodeLimits

    def __bool__(self) -> bool:
        return math.isfinite(self.largest) and self.limits.allow(
            self.different, self.elements, int(self.largest)
        )

    @property
    def identical(self) -> float:
        """The share of codes that are the same, 0 to 1."""
        return 1 - self.different / self.elements if self.elements else 1.0

    @property
    def sentence(self) -> str:
        """The figures in words."""
        return f"{self.identical:.2%} of the codes are the same, the largest difference is {self.largest:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "elements": self.elements,
            "identical": figure(self.identical),
            "largest": figure(self.largest),
        }


class CodeCounter:
    """Counts codes that differ, batch by batch.

    Args:
        scale: The grid of the tensor.
    """

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._elements = 0
        self._different = 0
        self._largest = 0.0

    def add(self, expected: NDArray[Any], actual: NDArray[Any]) -> None:
        """Take in one batch of numbers, of one shape, each on the grid or near it."""
        with np.errstate(invalid="ignore", over="ignore"):
            steps = [np.rint(np.asarray(a, np.float64) / self._scale.scale) for a in (expected, actual)]
            off = np.abs(steps[0] - steps[1])
        off[~np.isfinite(off)] = math.inf
        self._elements += off.size
        self._different += int(np.count_nonzero(off))
        self._largest = max(self._largest, float(off.max(initial=0.0)))

    def result(self, limits: CodeLimits) -> Codes:
        """Return the comparison over all batches so far."""
        return Codes(self._elements, self._different, self._largest, limits)


@dataclass(frozen=True)
class CodeReference:
    """What a graph in Q/DQ form says of codes.

    Attributes:
        scales: The grid of every tensor that is rounded, by its name in the graph.
        limits: How far codes of a layer may be off.
    """

    scales: Mapping[str, Scale]
    limits: CodeLimits

    def flaw(self, name: str, held: Sequence[str], integers: Integers) -> Diagnosis | None:
        """Return what a file says of a tensor that contradicts the graph, or itself.

        Args:
            name: The tensor in the graph.
            held: The tensors of the file that hold it.
            integers: What the file says.
        """
        expected = self.scales.get(name)
        for tensor in held:
            if tensor in integers.flaws:
                return Diagnosis("bias", integers.flaws[tensor], exact=True)
            given = integers.grids.get(tensor)
            if expected is None or given is None:
                continue
            if abs(given.scale - expected.scale) > _SAME_SCALE * expected.scale:
                return Diagnosis(
                    "scale",
                    f"its codes have the scale {given.scale:.6g} in the file, and the calibration says "
                    f"{expected.scale:.6g}",
                    exact=True,
                )
            if given.zero_point != expected.zero_point:
                return Diagnosis(
                    "zero point",
                    f"its codes have the zero point {given.zero_point} in the file, and the calibration says "
                    f"{expected.zero_point} (as of int8)",
                    exact=True,
                )
        return None
