"""Values of given ranks among more values than memory should hold: exact, by narrowing where they are.

A pass over all values counts how many lie below each of some thousand edges. The rank says between which two
edges its value is; the next pass looks between these alone, until so few are left that they can be sorted.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Chunks = Callable[[], Iterator[npt.NDArray[np.float64]]]

__all__ = ["HELD", "percentile_of_many", "ranked"]

HELD: Final = 1 << 16
"""How many values are sorted at once."""
_EDGES: Final = 1 << 12


def percentile_of_many(chunks: "Chunks", count: int, share: float) -> float:
    """Return what `statistics.percentile` does, of ``count`` values in chunks."""
    place = share * (count - 1)
    low = math.floor(place)
    first = ranked(chunks, low)
    second = ranked(chunks, min(low + 1, count - 1))
    return first + (second - first) * (place - low)


def ranked(chunks: "Chunks", rank: int, held: int = HELD) -> float:
    """Return the value of a rank, the smallest having rank 0.

    Args:
        chunks: Gives all values anew, a part at a time.
        rank: Below the number of values.
        held: How many values may be sorted at once.
    """
    import numpy as np

    ends = [(float(part.min()), float(part.max())) for part in chunks() if len(part)]
    low, high = min(first for first, _ in ends), max(last for _, last in ends)
    while True:
        edges = np.linspace(low, high, _EDGES + 1)
        below = np.zeros(len(edges), np.int64)
        for part in chunks():
            below += np.searchsorted(np.sort(part), edges, "left")
        if below[-1] <= rank:
            return high
        place = int(np.searchsorted(below, rank, "right")) - 1  # at this edge or after it, before the next
        low, high = float(edges[place]), float(edges[place + 1])
        if np.nextafter(low, high) >= high:
            return low
        if below[place + 1] - below[place] <= held:
            inside = np.concatenate([part[(part >= low) & (part < high)] for part in chunks()])
            return float(np.sort(inside)[rank - below[place]])
