"""Where the tensors of the captured graph are in an exported file.

Emitters rename, transpose, fuse and drop tensors. Each file therefore carries a *trace*: for every
tensor of the captured graph that still exists in the file, its name there, the order of its axes and
the order of its channels. Parity reads it to compare layer by layer through any of that.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["NCHW", "NHWC", "TensorView", "Trace", "captured_of", "pixels_of"]

NHWC: Final = (0, 2, 3, 1)
"""The axes of an NHWC tensor as axes of the NCHW tensor: what transposes NCHW to NHWC."""

NCHW: Final = (0, 3, 1, 2)
"""The axes of an NCHW tensor as axes of the NHWC tensor: what transposes NHWC to NCHW."""

_CHANNEL_AXIS = 1
_PIXELS: Final = "::pixels"


def pixels_of(name: str) -> str:
    """Return what the pixels are called that the captured graph's input of that name is made of."""
    return f"{name}{_PIXELS}"


def captured_of(name: str) -> str:
    """Return the captured graph's input that pixels stand for; any other name as it is."""
    return name.removesuffix(_PIXELS)


@dataclass(frozen=True)
class TensorView:
    """How a file holds one tensor of the captured graph (the *logical* tensor, NCHW).

    Attributes:
        name: The tensor's name in the file.
        axes: The file's axes as axes of the logical tensor: ``file = logical.transpose(axes)``, so NHWC is
            `NHWC`. None where the order is the same.
        channels: For each channel of the file's tensor the logical channel that it holds, -1 for padding and
            for what belongs to another logical tensor. None where the order is the same.
        rest: Further tensors of the file, where the logical tensor's channels are divided among several (a
            convolution that was split by its readers).
        area: The logical tensor's height and width, where the file's tensor has further rows and columns at
            the end. None where they are the same.
    """

    name: str
    axes: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    rest: tuple["TensorView", ...] = ()
    area: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of the file that hold it."""
        return (self.name, *(view.name for view in self.rest))

    def collect(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the logical tensor from the file's tensors, by their names."""
        if not self.rest:
            return self.to_logical(arrays[self.name])
        pieces = [replace(self, rest=()), *self.rest]
        whole = np.concatenate([piece.to_logical(arrays[piece.name]) for piece in pieces], axis=_CHANNEL_AXIS)
        held = np.concatenate([np.sort(piece.held) for piece in pieces])
        return np.take(whole, np.argsort(held), axis=_CHANNEL_AXIS)

    @property
    def held(self) -> NDArray[np.intp]:
        """The logical channels that the file's tensor holds, in its order.

        Raises:
            ValueError: The view does not say, because it holds all of them.
        """
        if self.channels is None:
            raise ValueError(f"{self.name!r} holds every channel")
        index = np.asarray(self.channels, np.intp)
        return index[index >= 0]

    def to_file(self, logical: NDArray[Any]) -> NDArray[Any]:
        """Return a logical tensor as the file holds it, but for rows and columns that it has beyond it."""
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
        """Return the file's tensor as the captured graph has it, as far as this one tensor holds it."""
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        if self.area is not None:
            array = array[..., : self.area[0], : self.area[1]]
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
        rows = {logical: _row(view, logical) for logical, view in self._views.items()}
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
        return cls({str(logical): _view(str(logical), row) for logical, row in rows.items()})


def _row(view: TensorView, logical: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if view.name != logical:
        row["name"] = view.name
    if view.axes is not None:
        row["axes"] = list(view.axes)
    if view.channels is not None:
        row["channels"] = list(view.channels)
    if view.area is not None:
        row["area"] = list(view.area)
    if view.rest:
        row["rest"] = [_row(piece, logical) for piece in view.rest]
    return row


def _view(logical: str, row: Mapping[str, Any], *, nested: bool = False) -> TensorView:
    axes, channels, rest = row.get("axes"), row.get("channels"), row.get("rest", [])
    area = row.get("area")
    if area is not None and (len(area) != 2 or not all(isinstance(size, int) and size > 0 for size in area)):
        raise ValueError(f"the area of {logical!r} is not a height and a width")
    if axes is not None and sorted(axes) != list(range(len(axes))):
        raise ValueError(f"axes of {logical!r} are not a permutation")
    if rest and nested:
        raise ValueError(f"a piece of {logical!r} is in pieces itself")
    pieces = tuple(_view(logical, piece, nested=True) for piece in rest)
    view = TensorView(
        str(row.get("name", logical)),
        None if axes is None else tuple(int(a) for a in axes),
        None if channels is None else tuple(int(c) for c in channels),
        pieces,
        None if area is None else (area[0], area[1]),
    )
    if pieces:
        held = sorted(int(c) for piece in (view, *pieces) for c in piece.held)
        if held != list(range(len(held))):
            raise ValueError(f"the pieces of {logical!r} do not make up its channels")
    return view
