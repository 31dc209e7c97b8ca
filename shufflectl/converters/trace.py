"""Where the tensors of the captured graph are in an exported file.

Emitters rename, transpose, fuse and drop tensors. Each file therefore carries a *trace*: for every
tensor of the captured graph that still exists in the file, its name there, the order of its axes and
the order of its channels. Parity reads it to compare layer by layer through any of that.
"""

import json
import re
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
_RUN: Final = re.compile(r"(-?[0-9]{1,7})(?:\*([0-9]{1,7})|:([0-9]{1,7})(?::([1-9][0-9]{0,6}))?)?")
_MOST_CHANNELS: Final = 1 << 20
"""More than any network has; a file that claims more is damaged or hostile."""


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
    if view.name != logical and view.name == _identifier(logical):
        row["_"] = 1  # the name with _ for what identifiers lack, as Core ML has it
    elif view.name != logical:
        row["name"] = view.name
    if view.axes is not None:
        row["axes"] = list(view.axes)
    if view.channels is not None:
        row["channels"] = _runs(view.channels)
    if view.area is not None:
        row["area"] = list(view.area)
    if view.rest:
        row["rest"] = [_row(piece, logical) for piece in view.rest]
    return row


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _runs(channels: tuple[int, ...]) -> str:
    """Return channels as text: ``12:18 6:9 0 -1*4 1:9:2`` is 12 to 17, 6 to 8, 0, 4 of padding, 1, 3, 5, 7.

    Orders of channels are made of few runs, and listed one by one they would be a tenth of a small file.
    """
    parts, start = [], 0
    while start < len(channels):
        first, end = channels[start], start + 1
        step = channels[end] - first if end < len(channels) else 1
        while end < len(channels) and step >= 0 and channels[end] - channels[end - 1] == step:
            end += 1
        count = end - start
        if count == 1 or (count == 2 and step > 1):
            parts.append(f"{first}")
            count = 1
        elif step == 0:
            parts.append(f"{first}*{count}")
        else:
            parts.append(f"{first}:{first + step * count}" + (f":{step}" if step > 1 else ""))
        start += count
    return " ".join(parts)


def _places(text: str) -> list[int]:
    """Return the channels that `_runs` wrote.

    Raises:
        ValueError: The text is none that it writes, or names more channels than a tensor has.
    """
    channels: list[int] = []
    for part in text.split():
        match = _RUN.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no run of channels")
        first, times = int(match[1]), int(match[2] or 1)
        run = range(first, int(match[3] or first + 1), int(match[4] or 1))
        if len(channels) + len(run) * times > _MOST_CHANNELS:
            raise ValueError(f"{part!r} is more channels than a tensor has")
        channels += list(run) * times
    return channels


def _view(logical: str, row: Mapping[str, Any], *, nested: bool = False) -> TensorView:
    axes, channels, rest = row.get("axes"), row.get("channels"), row.get("rest", [])
    if isinstance(channels, str):
        channels = _places(channels)
    area = row.get("area")
    if area is not None and (len(area) != 2 or not all(isinstance(size, int) and size > 0 for size in area)):
        raise ValueError(f"the area of {logical!r} is not a height and a width")
    if axes is not None and sorted(axes) != list(range(len(axes))):
        raise ValueError(f"axes of {logical!r} are not a permutation")
    if rest and nested:
        raise ValueError(f"a piece of {logical!r} is in pieces itself")
    pieces = tuple(_view(logical, piece, nested=True) for piece in rest)
    view = TensorView(
        str(row.get("name", _identifier(logical) if row.get("_") else logical)),
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
