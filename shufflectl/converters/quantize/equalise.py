"""Makes the channels of a tensor equally large, so that all of them use all codes.

One scale serves a whole tensor, and its largest channel decides it: a channel ten times smaller is left with
25 codes. But a channel may be divided by a factor where it is made if it is multiplied by it wherever it is
read::

    W1' = W1 / k (rows), b1' = b1 / k       conv, then ReLU, pooling, shuffles, splits, concats: all pass k on
    W2' = W2 * k (columns)                  every reader

Exact in real numbers, for ReLU(x / k) = ReLU(x) / k with k > 0 (M. Nagel et al., Data-Free Quantization
through Weight Equalization and Bias Correction, ICCV 2019). There the two weights are balanced. Here weights
have a scale a row, so rows are free, and activations are what loses: ``k`` is the channel's own largest
magnitude, in proportion to that of the tensors it shares a scale with, to a power. At 0 nothing changes, at 1
all channels become equally large, and the columns that read small ones small: they lose codes in turn.

The factor of a channel holds wherever the channel goes, through the shuffles of a whole stage. So channels
are followed as `rewrite.analyze` finds them. A channel keeps factor 1 where something reads it that cannot
take a factor: a graph output, a sigmoid, a clip with an upper end, a product of two tensors.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import hold, weighted
from shufflectl.converters.quantize.ties import is_activation_tensor, ties
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import Channel, Provenance

__all__ = ["equalised"]

_HOMOGENEOUS = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "MaxPool", "ReduceMean", "Relu"}
)
"""Operators with f(x / k) = f(x) / k that keep channels apart."""

_SMALLEST = 1e-2
"""A channel that was hardly ever used is made larger by the inverse of this at most, and one that never was
not at all: on other images it may be."""


class _Wires:
    """Channels that have one factor, since only such operators lie between them."""

    def __init__(self, provenance: Provenance) -> None:
        self._provenance = provenance
        self._sets = DisjointSets[Channel]()
        self._fixed: set[Channel] = set()

    def of(self, value: ir.Value) -> list[Channel] | None:
        """Return the wire of each channel; None where the tensor has no channels that can be followed."""
        found = self._provenance.map(value)
        return None if found is None else [self._sets.find(channel) for channel in found.channels]

    def tie(self, a: ir.Value, b: ir.Value) -> None:
        """Let two tensors have the same factors."""
        left, right = self.of(a), self.of(b)
        if left is None or right is None or len(left) != len(right):
            self.fix(a)
            self.fix(b)
            return
        for x, y in zip(left, right, strict=True):
            x, y = self._sets.find(x), self._sets.find(y)  # noqa: PLW2901 - joined since
            if x != y:
                self._sets.tie([y, x])
                if x in self._fixed:
                    self._fixed.add(y)

    def fix(self, value: ir.Value) -> None:
        """Let a tensor's channels keep factor 1."""
        self._fixed.update(self.of(value) or ())

    def free(self, wire: Channel) -> bool:
        """Whether a wire may have a factor."""
        return wire not in self._fixed


def equalised(graph: Graph, magnitudes: Mapping[str, NDArray[np.float32]], strength: float) -> Graph:
    """Return a captured graph that computes the same, with more equal channels.

    Args:
        graph: The captured graph.
        magnitudes: For each tensor with codes, the largest magnitude of each channel, as observed.
        strength: The power, 0 to 1.
    """
    copy = graph.clone()
    wires = _wires(copy)
    factors = _factors(copy, wires, magnitudes, strength)
    for node in copy.nodes:
        found = weighted(node)
        if found is None:
            continue
        into = _numbers(factors, wires.of(found.data))
        out = _numbers(factors, wires.of(node.outputs[0]))
        weights = found.weights.astype(np.float64)
        if out is not None:
            weights = weights / found.along_rows(out)
            if found.bias is not None:
                hold(copy, node, 2, found.bias / out)
        if into is not None:
            weights = weights * found.along_columns(into)
        if into is not None or out is not None:
            hold(copy, node, 1, weights)
    return copy


def _wires(graph: Graph) -> _Wires:
    wires = _Wires(analyze(graph))
    for value in (*graph.inputs, *graph.outputs):
        wires.fix(value)
    for node in graph.nodes:
        data = [v for v in node.inputs if v is not None and is_activation_tensor(v)]
        if is_movement(node):
            # What is a channel map is followed; what reads channels otherwise holds them as they are.
            if any(wires.of(v) is None for v in node.outputs):
                _fix(wires, data)
            continue
        if weighted(node) is not None:
            continue
        joins = node.op_type in _HOMOGENEOUS and len(data) == 1
        if joins or (node.op_type in ("Add", "Sum") and len(data) == len(node.inputs)):
            for value in data:
                wires.tie(value, node.outputs[0])
            continue
        _fix(wires, [*data, *node.outputs])
    return wires


def _fix(wires: _Wires, values: Iterable[ir.Value]) -> None:
    for value in values:
        wires.fix(value)


def _factors(
    graph: Graph, wires: _Wires, magnitudes: Mapping[str, NDArray[np.float32]], strength: float
) -> dict[Channel, float]:
    """Return what each wire is divided by: at most 1."""
    tied = ties(graph)
    peaks: dict[str, float] = {}
    for name, found in magnitudes.items():
        if name in tied.groups:
            group = tied.groups[name]
            peaks[group] = max(peaks.get(group, 0.0), float(found.max()))
    factors: dict[Channel, float] = {}
    for value in [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]:
        name = str(value.name)
        channels = wires.of(value) if name in magnitudes and name in tied.groups else None
        if channels is None or len(channels) != len(magnitudes[name]):
            continue
        peak = peaks[tied.groups[name]]
        for wire, magnitude in zip(channels, magnitudes[name], strict=True):
            if wires.free(wire) and peak > 0:
                share = max(float(magnitude) / peak, _SMALLEST) ** strength if magnitude > 0 else 1.0
                factors[wire] = max(factors.get(wire, 0.0), share)
    return factors


def _numbers(factors: Mapping[Channel, float], channels: list[Channel] | None) -> NDArray[np.float64] | None:
    """Return the factor of each channel; None where all are 1."""
    if channels is None:
        return None
    found = np.asarray([factors.get(channel, 1.0) for channel in channels])
    return None if (found == 1).all() else found
