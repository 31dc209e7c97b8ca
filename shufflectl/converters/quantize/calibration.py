"""What calibration found: a range for every tensor of one captured graph, and on what it was seen.

A calibration belongs to its graph and carries its digest; it is refused for another one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.agreement import agreeing
from shufflectl.converters.quantize.correct import shifted
from shufflectl.converters.quantize.equalise import equalised
from shufflectl.converters.quantize.prescribed import holds, prescribed
from shufflectl.converters.quantize.recipe import METHODS, Method
from shufflectl.converters.quantize.scales import Scale, from_range
from shufflectl.converters.quantize.ties import Ties, ties
from shufflectl.errors import DataError

__all__ = ["SCHEMA", "Calibration", "graph_digest"]

SCHEMA: Final = "shufflectl.calibration/1"


def graph_digest(graph: Graph) -> str:
    """Return the SHA-256 of a captured graph: its operators, names, shapes and weights."""
    return hashlib.sha256(graph.to_bytes()).hexdigest()


@dataclass(frozen=True)
class Calibration:
    """Ranges of the tensors of one captured graph.

    Attributes:
        graph: The graph's digest; see `graph_digest`.
        method: How ranges were chosen.
        source: What was looked at, in words: ``digits``, a folder's name, a file's name.
        images: How many images.
        seed: What chose them.
        ranges: By tensor, the smallest and the largest number that should have a code, in the prepared graph.
        equalise: How far channels are made equally large, 0 to 1; see `quantize.equalise`.
        magnitudes: By tensor, the largest magnitude of each channel in the captured graph; empty where
            nothing is equalised.
        shifts: By tensor, what is added to each channel's bias in the equalised graph for what rounding does
            elsewhere, see `quantize.correct`; empty where biases are not corrected.
        own_shifts: The same, for what rounding the layer's own weights does: a layer in floating point goes
            without.
        floats: Tensors whose layers compute in floating point, which the shifts take into account.
    """

    graph: str
    method: Method
    source: str
    images: int
    seed: int
    ranges: Mapping[str, tuple[float, float]] = field(repr=False)
    equalise: float = 0.0
    magnitudes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    own_shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    floats: frozenset[str] = frozenset()

    def equalised(self, graph: Graph) -> Graph:
        """Return the captured graph with equalised channels; it computes the same.

        Raises:
            DataError: The calibration is of another graph.
        """
        self.require(graph)
        return equalised(graph, self.magnitudes, self.equalise) if self.magnitudes else graph

    def prepare(self, graph: Graph) -> Graph:
        """Return the captured graph with equalised channels and corrected biases: the graph that gets codes.

        It computes the same, up to rounding and the correction.

        Raises:
            DataError: The calibration is of another graph, or its figures are.
        """
        graph = self.equalised(graph)
        own = {name: shift for name, shift in self.own_shifts.items() if name not in self.floats}
        for shifts in (self.shifts, own):
            graph = shifted(graph, shifts) if shifts else graph
        return graph

    def scales(self, graph: Graph) -> dict[str, Scale]:
        """Return the grid of every tensor of a prepared graph that has codes, the same one for tied tensors.

        Tensors that are tied to the result of a bounded function, and stay within its bounds, have the grid
        that is prescribed for it. Grids are such that every runtime rounds alike; see `quantize.agreement`.

        Raises:
            DataError: The calibration lacks a tensor.
            GraphError: A range is not finite.
        """
        tied = ties(graph)
        values = [value for node in graph.nodes for value in node.outputs]
        fixed = {str(v.name): scale for v in values if (scale := prescribed(v)) is not None}
        found: dict[str, Scale] = {}
        ends: dict[str, tuple[float, float]] = {}
        for group in dict.fromkeys(tied.groups.values()):
            members = tied.members(group)
            low, high = self._range(tied, members)
            given = {fixed[name] for name in members if name in fixed}
            known = given.pop() if len(given) == 1 else None
            if known is not None and holds(known, low, high):
                found[group] = known
            else:
                found[group], ends[group] = from_range(low, high, group), (min(low, 0.0), max(high, 0.0))
        found = agreeing(graph, tied, found, ends)
        return {name: found[group] for name, group in tied.groups.items()}

    def require(self, graph: Graph) -> None:
        """Refuse a graph that the calibration was not made on.

        Raises:
            DataError: It is another one.
        """
        if self.graph != graph_digest(graph):
            raise DataError(
                "the calibration was made for another graph (other weights, input size or model)",
                hint="calibrate again with --calibration digits, a folder of images or an .npz file",
            )

    def _range(self, tied: Ties, members: list[str]) -> tuple[float, float]:
        ends = []
        for name in members:
            if name not in self.ranges:
                raise DataError(f"the calibration has no range for tensor {name!r}")
            low, high = self.ranges[name]
            ends.append((max(low, 0.0) if name in tied.saturated else low, high))
        return min(low for low, _ in ends), max(high for _, high in ends)

    @property
    def summary(self) -> dict[str, Any]:
        """On what it was made, and how, without the figures."""
        return {
            "source": self.source,
            "images": self.images,
            "seed": self.seed,
            "method": self.method,
            "equalise": self.equalise,
            "bias_correction": bool(self.shifts),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return {
            "schema": SCHEMA,
            "graph": self.graph,
            "method": self.method,
            "source": self.source,
            "images": self.images,
            "seed": self.seed,
            "equalise": self.equalise,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "magnitudes": {name: _figures(array) for name, array in self.magnitudes.items()},
            "shifts": {name: _figures(array) for name, array in self.shifts.items()},
            "floats": sorted(self.floats),
            "own_shifts": {name: _figures(array) for name, array in self.own_shifts.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            return cls(
                str(data["graph"]),
                cast("Method", str(data["method"])),
                str(data["source"]),
                int(data["images"]),
                int(data["seed"]),
                {str(name): (float(low), float(high)) for name, (low, high) in data["ranges"].items()},
                float(data["equalise"]),
                _channels(data["magnitudes"]),
                _channels(data["shifts"]),
                _channels(data["own_shifts"]),
                frozenset(str(name) for name in data["floats"]),
            ).sound(data["schema"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DataError(
                f"this is no calibration: {error}", hint="calibrate again with --calibration"
            ) from error

    def sound(self, schema: object) -> Self:
        """Return the calibration, if its figures can be used.

        Raises:
            ValueError: They cannot.
        """
        if schema != SCHEMA or self.method not in METHODS or not 0 <= self.equalise <= 1:
            raise ValueError("it is of another kind")
        if not all(math.isfinite(end) for ends in self.ranges.values() for end in ends):
            raise ValueError("a range is not finite")
        for arrays in (self.magnitudes, self.shifts, self.own_shifts):
            if not all(array.ndim == 1 and np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("figures of channels are no lists of numbers")
        return self

    def to_bytes(self) -> bytes:
        """Return the calibration as a JSON file, the same bytes for the same calibration."""
        return (json.dumps(self.to_json(), separators=(",", ":")) + "\n").encode()


def _channels(data: Mapping[Any, Any]) -> dict[str, NDArray[np.float32]]:
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
        return {str(name): np.asarray(values, np.float32) for name, values in data.items()}


def _figures(array: NDArray[np.float32]) -> list[float]:
    """Return numbers with the digits that float32 has."""
    return [float(str(value)) for value in array]
