"""Which layers of a network cost how much when they compute in codes.

Every layer in turn computes in codes while all others stay in floating point, on images of the calibration:
its weights are rounded, and so is what it reads and makes. The noise of different layers adds up nearly in
power, so a layer's share of the noise of all says what it costs the whole: what the output's SQNR gains
where that layer stays in floats. Correcting biases is left out but for each layer's own weights: it is done
for all layers together, and would tie one layer's figure to the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.trace import captured_of
from shufflectl.deploy.calibration import session_of
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.parity.figures import figure
from shufflectl.deploy.parity.metrics import Accumulator
from shufflectl.deploy.quantization import Quantized, layers
from shufflectl.deploy.verify import Notify
from shufflectl.errors import GraphError
from shufflectl.models.preprocess import Preprocess

__all__ = ["SCHEMA", "LayerCost", "Sensitivity", "fewest_floats", "output_sqnr", "sensitivity"]

SCHEMA: Final = "shufflectl.sensitivity/1"


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs.

    Attributes:
        layer: The tensor that it makes, which is named for its module.
        kind: What it is, as ``3x3 depthwise``.
        weights: How many it has.
        alone: The SQNR of the output with this layer alone in codes, in dB.
        cost: What the output's SQNR gains where it stays in floats, by its share of all noise, in dB.
    """

    layer: str
    kind: str
    weights: int
    alone: float
    cost: float

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON values."""
        return {
            "layer": self.layer,
            "kind": self.kind,
            "weights": self.weights,
            "alone_db": figure(self.alone),
            "cost_db": figure(self.cost),
        }


@dataclass(frozen=True)
class Sensitivity:
    """What every layer costs.

    Attributes:
        model: The model's name.
        source: What was calibrated on.
        images: On how many images it was measured.
        sqnr: Of the output with all layers in codes, against floating point, in dB.
        costs: In the order of the network.
    """

    model: str
    source: str
    images: int
    sqnr: float
    costs: tuple[LayerCost, ...]

    @property
    def ranking(self) -> tuple[LayerCost, ...]:
        """The layers, the most expensive first."""
        return tuple(sorted(self.costs, key=lambda entry: -entry.cost))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "calibration": self.source,
            "images": self.images,
            "sqnr_db": figure(self.sqnr),
            "layers": [entry.to_json() for entry in self.costs],
        }


class _Meter:
    """Measures the SQNR of networks in codes on the same images."""

    def __init__(self, quantized: Quantized, images: Feeds, expects: Preprocess | None) -> None:
        self._quantized = quantized
        self._images = images
        self._expects = expects
        self._wanted = self._run(quantized.graph)

    def sqnr(self, floats: frozenset[str]) -> float:
        """Return the SQNR over all outputs with these layers in floating point, in dB."""
        calibration = replace(self._quantized.calibration, floats=self._quantized.floats | floats)
        given = self._run(replace(self._quantized, calibration=calibration).reference())
        total = Accumulator()
        for expected, actual in zip(self._wanted, given, strict=True):
            total.add(expected.reshape(-1), actual.reshape(-1))
        return total.result().sqnr

    def _run(self, graph: Graph) -> list[NDArray[Any]]:
        names = [str(value.name) for value in graph.outputs]
        session = session_of(graph, names)
        inputs = {str(value.name): self._fed(graph, str(value.name)) for value in graph.inputs}
        batch = Graph.shape(graph.inputs[0])[0]
        size = batch if isinstance(batch, int) else len(self._images)
        count = len(self._images) - len(self._images) % size or size
        parts = []
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), len(self._images) - 1)
            parts.append(session.run(names, {name: array[index] for name, array in inputs.items()}))
        return [np.concatenate([np.atleast_1d(p[i]) for p in parts]) for i in range(len(names))]

    def _fed(self, graph: Graph, name: str) -> NDArray[Any]:
        value = next(v for v in graph.inputs if v.name == name)
        origin = captured_of(graph.record(name).origin)
        array = self._images.fed(origin, self._expects)
        return array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)


def output_sqnr(quantized: Quantized, images: Feeds, expects: Preprocess | None) -> float:
    """Return the SQNR of a network in codes against floating point, over all outputs, in dB."""
    return _Meter(quantized, images, expects).sqnr(frozenset())


def sensitivity(
    model: str, quantized: Quantized, images: Feeds, expects: Preprocess | None, notify: Notify
) -> Sensitivity:
    """Return what each layer costs.

    Args:
        model: What to call the network.
        quantized: The network in codes, its biases not settled yet.
        images: What to measure on.
        expects: How the graph wants its images; see `Feeds.fed`.
        notify: Told about progress.
    """
    meter = _Meter(quantized, images, expects)
    base = meter.sqnr(frozenset())
    candidates = [name for name in layers(quantized.graph) if name not in quantized.floats]
    alone = {}
    for place, name in enumerate(candidates):
        notify(f"measuring {name}", place, len(candidates))
        alone[name] = meter.sqnr(frozenset(candidates) - {name})
    noise = {name: 10 ** (-value / 10) for name, value in alone.items()}
    total = sum(noise.values())
    costs = [
        _described(quantized.graph, name, alone[name], _gain(noise[name] / total if total else 0.0))
        for name in candidates
    ]
    return Sensitivity(model, quantized.calibration.source, len(images), base, tuple(costs))


def _gain(share: float) -> float:
    """Return what an SQNR gains where a share of the noise goes away, in dB."""
    return math.inf if share >= 1 else -10 * math.log10(1 - share)


def fewest_floats(
    quantized: Quantized, images: Feeds, expects: Preprocess | None, target: float, notify: Notify
) -> frozenset[str]:
    """Return the fewest layers to keep in floating point, the most expensive first, that reach an SQNR.

    Args:
        quantized: The network in codes; layers that it keeps already stay.
        images: What to measure on.
        expects: How the graph wants its images.
        target: In dB.
        notify: Told about progress.

    Raises:
        GraphError: It is not reached with all layers in floating point.
    """
    found = sensitivity("", quantized, images, expects, notify)
    meter = _Meter(quantized, images, expects)
    order = [entry.layer for entry in found.ranking]

    def reached(count: int) -> bool:
        notify(f"with {count} layers in floating point", 0, 0)
        return meter.sqnr(frozenset(order[:count])) >= target

    if found.sqnr >= target:
        return frozenset()
    if not reached(len(order)):
        raise GraphError(
            f"an SQNR of {target:g} dB is out of reach: {meter.sqnr(frozenset(order)):.1f} dB is what "
            "activations in codes leave, with all weights in floating point",
            hint="lower --target-sqnr, or export in fp16",
        )
    return frozenset(order[: _least(reached, len(order))])


def _least(reached: Callable[[int], bool], most: int) -> int:
    """Return the smallest count that is enough, where ``most`` is."""
    low, high = 0, 1  # low is not enough
    while high < most and not reached(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _described(graph: Graph, name: str, alone: float, cost: float) -> LayerCost:
    node = next(node for node in graph.nodes if str(node.outputs[0].name) == name)
    found = weighted(node)
    shape = () if found is None else found.weights.shape
    kind = node.op_type
    if node.op_type == "Conv" and len(shape) == 4:
        groups = node.attributes.get_int("group", 1)
        how = "depthwise" if groups == shape[0] and shape[1] == 1 else f"{groups} groups"
        kind = f"{shape[2]}x{shape[3]}" + ("" if groups == 1 else f" {how}")
    return LayerCost(name, kind, int(np.prod(shape)), alone, cost)
