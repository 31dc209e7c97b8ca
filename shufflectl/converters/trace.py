"""Where the tensors of the captured graph are in an exported file.

Emitters rename, transpose, fuse and drop tensors. Each file therefore carries a *trace*: for every
tensor of the captured graph that still exists in the file, its name there, the order of its axes and
the order of its channels. Parity reads it to compare layer by layer through any of that.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["NCHW", "NHWC", "TensorView", "Trace"]

NHWC: Final = (0, 2, 3, 1)
"""The axes of an NHWC tensor as axes of the NCHW tensor: what transposes NCHW to NHWC."""

NCHW: Final = (0, 3, 1, 2)
"""The axes of an NCHW tensor as axes of the NHWC tensor: what transposes NHWC to NCHW."""

_CHANNEL_AXIS = 1


@dataclass(frozen=True)
class TensorView:
    """How a file holds one tensor of the captured graph (the *logical* tensor, NCHW).

    Attributes:
        name: The tensor's name in the file.
        axes: The file's axes as axes of the logical tensor: ``file = logical.transpose(axes)``, so NHWC is
            `NHWC`. None where the order is the same.
        channels: For each channel of the file's tensor the logical channel that it holds, -1 for padding.
            None where the order is the same.
    """

    name: str
    axes: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None

    def to_file(self, logical: NDArray[Any]) -> NDArray[Any]:
        """Return a logical tensor as the file holds it."""
        array = logical
        if self.channels is not None:
            index = np.asarray(self.channels)
            array = np.take(array, np.maximum(index, 0), axis=_CHANNEL_AXIS)
            if (index < 0).any():
                where = [np.newaxis] * array.ndim
                where[_CHANNEL_AXIS] = slice(None)  # type: ignore[call-overload]
                array = np.where((index >= 0)[tuple(where)], array, array.dtype.type(0))
        if self.axes is not None:
            array = array.transpose(self.axes)
        return np.asarray(array, order="C")  # np.ascontiguousarray would give a scalar an axis

    def to_logical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the file's tensor as the captured graph has it."""
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        if self.channels is not None:
            index = np.asarray(self.channels)
            held = np.flatnonzero(index >= 0)
            array = np.take(array, held[np.argsort(index[held])], axis=_CHANNEL_AXIS)
        return np.asarray(array, order="C")  # np.ascontiguousarray would give a scalar an axis


class Trace(Mapping[str, TensorView]):
    """The views of a file's tensors, by the name of the tensor in the captured graph, in graph order."""

    def __init__(self, views: Mapping[str, TensorView] | None = None) -> None:
        self._views = dict(views or {})

    def __getitem__(self, name: str) -> TensorView:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Trace({len(self)} tensors)"

    def to_json(self) -> str:
        """Return the trace as compact JSON, the same text for the same trace."""
        rows: dict[str, Any] = {}
        for logical, view in self._views.items():
            row: dict[str, Any] = {}
            if view.name != logical:
                row["name"] = view.name
            if view.axes is not None:
                row["axes"] = list(view.axes)
            if view.channels is not None:
                row["channels"] = list(view.channels)
            rows[logical] = row
        return json.dumps(rows, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: The text is not a trace.
        """
        rows = json.loads(text)
        if not isinstance(rows, dict):
            raise ValueError("a trace is a JSON object")  # noqa: TRY004 - a malformed file, not a caller's type error
        views = {}
        for logical, row in rows.items():
            axes, channels = row.get("axes"), row.get("channels")
            if axes is not None and sorted(axes) != list(range(len(axes))):
                raise ValueError(f"axes of {logical!r} are not a permutation")
            views[str(logical)] = TensorView(
                str(row.get("name", logical)),
                None if axes is None else tuple(int(a) for a in axes),
                None if channels is None else tuple(int(c) for c in channels),
            )
        return cls(views)
