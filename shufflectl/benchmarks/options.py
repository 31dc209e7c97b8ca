"""What users write for a tolerance, numbers of threads, cores and a mode."""

import itertools
from typing import Final, Literal

from shufflectl.errors import UsageError, nearest

__all__ = ["in_order", "parse_cores", "parse_mode", "parse_share", "parse_threads"]

_WORDS: Final = ("", "big", "none")
"""What ``--affinity`` may be besides a list of cores."""


def parse_share(text: str | None) -> float | None:
    """Read ``3%`` or ``0.03``.

    Raises:
        UsageError: It is neither.
    """
    if text is None:
        return None
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if rest or not 0 <= share < 10:
        raise UsageError(f"{text!r} is no tolerance", hint="write it as 3% or 0.03")
    return share


def parse_threads(text: str) -> tuple[int, ...]:
    """Read ``1`` or ``1,2,4``.

    Raises:
        UsageError: It is not a list of different positive numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise UsageError(f"{text!r} is no number of threads", hint="write it as 1 or 1,2,4")
    numbers = tuple(int(part) for part in parts)
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{text!r} names a number of threads twice", hint="write it as 1 or 1,2,4")
    return numbers


def parse_cores(text: str) -> tuple[int, ...]:
    """Read ``1,0`` as cores in rising order; none for an empty text.

    Raises:
        UsageError: It is not a list of different numbers.
    """
    if not text:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise UsageError(
            f"{text!r} is no list of cores", hint="write them as in 0,1; a phone also takes big and none"
        )
    cores = sorted(int(part) for part in parts)
    twice = next((core for core, other in itertools.pairwise(cores) if core == other), None)
    if twice is not None:
        raise UsageError(f"{text!r} names core {twice} twice", hint="write it once")
    return tuple(cores)


def in_order(affinity: str) -> str:
    """Return a list of cores as results hold it, so that equal sets are equal texts; a word as it is.

    Raises:
        UsageError: As `parse_cores`.
    """
    return affinity if affinity in _WORDS else ",".join(map(str, parse_cores(affinity)))


def parse_mode(text: str | None) -> Literal["absolute", "paired"] | None:
    """Read a mode.

    Raises:
        UsageError: There is no such mode.
    """
    match text:
        case None | "absolute" | "paired":
            return text
    raise UsageError(f"there is no mode {text!r}", hint=nearest(text, ("absolute", "paired")))
