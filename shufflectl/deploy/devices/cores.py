"""Which cores a measurement runs on: the fastest clusters that have room for its threads.

A cluster is the set of cores with one hardware maximum. Unpinned threads move between clusters, and figures
with them; pinned to a cluster that is too small for them they would take turns.
"""

from collections.abc import Iterable

from shufflectl.deploy.devices.state import Core

__all__ = ["fastest", "mask", "parse_mask"]


def fastest(cores: Iterable[Core], threads: int) -> tuple[int, ...]:
    """Return the numbers of the fastest cores: whole clusters, as many as hold ``threads`` threads.

    Empty where the device does not tell its clocks, or where these would be all cores anyway.
    """
    known = [(core.max_khz, core.index) for core in cores if core.max_khz]
    chosen: list[int] = []
    for speed in sorted({khz for khz, _ in known}, reverse=True):
        chosen += [index for khz, index in known if khz == speed]
        if len(chosen) >= threads:
            break
    return () if len(chosen) == len(known) else tuple(sorted(chosen))


def mask(cores: Iterable[int]) -> str:
    """Return the mask that toybox's taskset takes: hexadecimal, without ``0x``."""
    return f"{sum(1 << index for index in set(cores)):x}"


def parse_mask(text: str) -> frozenset[int]:
    """Return the cores of a mask as the kernel prints it (``Cpus_allowed``: words separated by commas).

    Raises:
        ValueError: It is no mask.
    """
    bits = int(text.strip().replace(",", ""), 16)
    return frozenset(index for index in range(bits.bit_length()) if bits >> index & 1)
