"""The runs of rounds, out of memory: in a temporary file for as long as anybody may ask for them.

A round of default length leaves a thousand runs and more, and as Python's integers they would take 36 bytes
each: a call of ten thousand rounds would end for want of memory, hours after it began. So a round's runs are
written to a file at once, eight bytes a run, and read again when figures are computed or the result is
written. The file has no name, and is gone when nothing refers to it, however the program ends.
"""

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Final, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Spool", "as_array"]

_BYTES: Final = 8


class Spool:
    """A temporary file of runs; it is made when the first are kept."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0

    def keep(self, runs: Sequence[int]) -> Sequence[int]:
        """Return the same runs, which are now in the file; in memory still where the disk is full.

        Args:
            runs: In ns, each below 2**63.
        """
        from array import array

        if not runs:
            return ()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="shufflectl-", buffering=0)  # noqa: SIM115 - until unused
                weakref.finalize(self, self._file.close)
            self._file.seek(self._end)
            data = array("q", runs).tobytes()
            if self._file.write(data) != len(data):
                return tuple(runs)
        except OSError:  # better to hold them than to lose what was measured
            return tuple(runs)
        kept = _Spooled(self, self._end, len(runs))
        self._end += len(data)
        return kept

    def read(self, place: int, count: int) -> bytes:
        """Return so many runs as they are in the file, from a place in bytes."""
        if self._file is None:
            raise ValueError("nothing was kept")
        self._file.seek(place)
        return self._file.read(count * _BYTES)


class _Spooled(Sequence[int]):
    """Runs in a spool; equal to any sequence of the same numbers."""

    __slots__ = ("_count", "_place", "_spool")

    def __init__(self, spool: Spool, place: int, count: int) -> None:
        self._spool, self._place, self._count = spool, place, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return iter(self.array().tolist())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        found = self.array()[index].tolist()
        return tuple(found) if isinstance(index, slice) else found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[type[tuple[int, ...]], tuple[tuple[int, ...]]]:
        return tuple, (tuple(self),)  # a copy lies in memory

    def array(self) -> "npt.NDArray[np.int64]":
        import numpy as np

        return np.frombuffer(self._spool.read(self._place, self._count), np.int64)


def as_array(runs: Sequence[int]) -> "npt.NDArray[np.int64]":
    """Return runs as an array."""
    import numpy as np

    return runs.array() if isinstance(runs, _Spooled) else np.array(runs, np.int64)
