"""Channels and numbers in sentences."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMED", "figures", "listed"]

NAMED: Final = 4
"""Channels that a sentence names one by one."""


def listed(noun: str, indices: Sequence[int] | NDArray[np.intp]) -> str:
    """Return things by number: ``channels 1, 2``, the first of them where they are many."""
    shown = ", ".join(str(index) for index in indices[:NAMED])
    if len(indices) == 1:
        return f"{noun} {shown}"
    if len(indices) > NAMED:
        return f"{len(indices)} {noun}s ({shown}, ...)"
    return f"{noun}s {shown}"


def figures(values: Sequence[float]) -> str:
    """Return numbers, the first of them where they are many."""
    return ", ".join(f"{value:.4g}" for value in values[:NAMED]) + (", ..." if len(values) > NAMED else "")
