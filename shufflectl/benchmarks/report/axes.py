"""Axes: where a value lies between two ends, in per cent, and round values to write beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["Axis", "duration", "unit_of"]

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_TICKS: Final = 7
_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_TINY: Final = 1e-6


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``.

    Attributes:
        low: The value at its left end.
        high: The value at its right end; above ``low``.
        ticks: Round values between the ends.
        logarithmic: Whether equal factors, rather than equal differences, are equally long.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def linear(cls, low: float, high: float) -> Self:
        """Return an axis that holds both values, a little wider than they are apart."""
        room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
        low, high = max(0.0, low - room) if low >= 0 else low - room, high + room
        step = _step(high - low)
        first, last = math.ceil(low / step), math.floor(high / step)
        # A multiple of the step may be rounded to beyond the end that it lies on.
        return cls(low, high, tuple(min(max(step * i, low), high) for i in range(first, last + 1)))

    @classmethod
    def ratios(cls, values: Iterable[float]) -> Self:
        """Return a logarithmic axis that holds 1 and all values, which are not below 0."""
        found = [max(value, _TINY) for value in values]
        low, high = min([1.0, *found]), max([1.0, *found])
        room = max((high / low) ** 0.06, 1.01)
        low, high = low / room, high * room
        if high / low < 10:
            step = _step(high - low)
            first, last = math.ceil(low / step), math.floor(high / step)
            ticks = tuple(step * i for i in range(first, last + 1))
        else:
            first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
            stride = max(1, -(-(last - first + 1) // _TICKS))
            ticks = tuple(10.0**i for i in range(first, last + 1) if i % stride == 0)
        return cls(low, high, ticks, logarithmic=True)

    def at(self, value: float) -> float:
        """Return where a value lies, 0 to 100; what lies beyond an end is at that end."""
        if self.logarithmic:
            span = math.log(self.high / self.low)
            place = math.log(max(value, _TINY) / self.low) / span
        else:
            place = (value - self.low) / (self.high - self.low)
        return round(min(max(place, 0.0), 1.0) * 100, 3)


def _step(span: float) -> float:
    """Return the round distance of at most `_TICKS` ticks."""
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))


def unit_of(nanoseconds: float) -> tuple[float, str]:
    """Return the unit in which a time has one to three digits before the point: its nanoseconds and name."""
    return next((unit for unit in _UNITS if abs(nanoseconds) >= unit[0]), _UNITS[-1])


def duration(nanoseconds: float | None) -> str:
    """Return a time as people write it, with four digits: ``3.214 ms``; empty where there is none."""
    if nanoseconds is None:
        return ""
    size, name = unit_of(nanoseconds)
    value = nanoseconds / size
    digits = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}\N{NO-BREAK SPACE}{name}"
