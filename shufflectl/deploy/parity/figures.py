"""Figures rounded to 4 significant digits, so that reports and manifests have stable bytes."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

__all__ = ["figure", "round_down", "round_up"]

_DIGITS = 4


def figure(value: float) -> float | str:
    """Return a figure as JSON has it: to 4 digits; infinities and NaN as ``"inf"``, ``"-inf"`` and ``"nan"``.

    JSON has no infinity, and an SQNR is infinite when two outputs are equal.
    """
    return _rounded(value, ROUND_HALF_EVEN) if math.isfinite(value) else str(float(value))


def round_up(value: float) -> float:
    """Return the smallest figure of 4 digits that is no smaller than the value."""
    return _rounded(value, ROUND_CEILING)


def round_down(value: float) -> float:
    """Return the largest figure of 4 digits that is no larger than the value."""
    return _rounded(value, ROUND_FLOOR)


def _rounded(value: float, rounding: str) -> float:
    if value == 0 or not math.isfinite(value):
        return float(value)
    exact = Decimal(value)
    unit = Decimal(1).scaleb(exact.adjusted() - _DIGITS + 1)
    nearest = float((exact / unit).to_integral_value(rounding=rounding) * unit)
    # The decimal figure has no exact binary form; the nearest double may lie on the wrong side by one step.
    if rounding == ROUND_CEILING and nearest < value:
        return math.nextafter(nearest, math.inf)
    if rounding == ROUND_FLOOR and nearest > value:
        return math.nextafter(nearest, -math.inf)
    return nearest
