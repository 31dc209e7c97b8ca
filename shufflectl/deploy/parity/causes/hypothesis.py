"""A cause, and what a layer's tensor would be if it were the one."""

from collections.abc import Iterator
from dataclasses import dataclass

from shufflectl.deploy.parity.case import Array
from shufflectl.errors import GraphError

__all__ = ["Hypothesis", "tried"]


@dataclass(frozen=True)
class Hypothesis:
    """A cause and what the tensor would be if it were the one.

    Attributes:
        cause: See `Diagnosis`.
        sentence: Likewise.
        prediction: The tensor.
        freedom: 0 where the prediction follows from the cause alone, 1 where one number was fitted to the
            file's tensor, 2 where many were, or where some positions are left out.
        region: The positions that are predicted; all unless given.
    """

    cause: str
    sentence: str
    prediction: Array
    freedom: int = 0
    region: tuple[slice, ...] | None = None


def tried(guesses: Iterator[Hypothesis]) -> Iterator[Hypothesis]:
    """Yield guesses until one cannot be executed; the layer then has no such cause."""
    try:
        yield from guesses
    except GraphError:
        return
