"""A layer that diverges: what it reads, what the file makes of it, and what the captured graph does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from shufflectl.deploy.parity.figures import figure
from shufflectl.deploy.parity.limits import Limits
from shufflectl.deploy.parity.metrics import Comparison, compare
from shufflectl.deploy.parity.segments import Segment, SegmentedGraph, execute
from shufflectl.deploy.runtimes.base import Arrays
from shufflectl.models.preprocess import Preprocess

__all__ = ["Array", "Case", "Diagnosis", "before_activation", "wrong_channels"]

_ACTIVATIONS: Final = frozenset(
    {
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Tanh",
        "Softmax",
        "Gelu",
    }
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Diagnosis:
    """Why a layer diverges.

    Attributes:
        cause: One of ``shape``, ``zero point``, ``overflow``, ``nan``, ``zero``, ``activation``,
            ``saturation``, ``scale``, ``offset``, ``layout``, ``shifted``, ``channels permuted``,
            ``channels zero``,
            ``channels scaled``, ``padding``, ``bias``, ``kernel``, ``input channel``, ``operands``,
            ``image``, ``unrelated``, ``rounding``, ``unknown``.
        sentence: The cause with its evidence, without a full stop.
        fit: How well the cause explains the file's tensor, SQNR in dB; None where nothing was predicted.
        exact: Whether the tensor follows from the cause alone, with no number fitted to it.
    """

    cause: str
    sentence: str
    fit: float | None = None
    exact: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return {
            "cause": self.cause,
            "sentence": self.sentence,
            "fit_db": None if self.fit is None else figure(self.fit),
        }


@dataclass(frozen=True)
class Case:
    """A layer that diverges.

    Attributes:
        graph: The captured graph, cut at the tensors that the file holds.
        segment: The layer.
        sources: The file's own tensors that the layer reads, as the graph has them; one record for each
            group of images that is executed at once.
        actual: The file's tensor, as the graph has it, all groups along the first axis.
        limits: Within which a prediction counts as the explanation.
        preprocess: What happens to an image, where known.
    """

    graph: SegmentedGraph
    segment: Segment
    sources: tuple[Arrays, ...]
    actual: Array
    limits: Limits
    preprocess: Preprocess | None = None

    @cached_property
    def expected(self) -> Array:
        """What the captured graph makes of the file's own sources."""
        return self.run()

    def run(
        self,
        *,
        output: str | None = None,
        nodes: Mapping[int, onnx.NodeProto] | None = None,
        weights: Mapping[str, NDArray[Any]] | None = None,
        change: Callable[[str, NDArray[Any]], NDArray[Any]] | None = None,
    ) -> Array:
        """Execute the layer again, with something changed.

        Args:
            output: What to give back; the layer's tensor unless given.
            nodes: Nodes in place of the graph's, by position.
            weights: Initialisers in place of the graph's, by name.
            change: Maps each source by name.

        Raises:
            GraphError: The changed layer cannot be executed.
        """
        name = output or self.segment.tensor
        model = self.graph.model([self.segment], outputs=[name], nodes=nodes, weights=weights)
        parts = []
        for group in self.sources:
            given = {key: change(key, value) for key, value in group.items()} if change else group
            parts.append(execute(model, self.graph.feeds([self.segment], given))[name])
        return np.concatenate(parts).astype(np.float64)

    def tensor(self, name: str) -> Array:
        """Return a source, or a tensor inside the layer, as the file's own sources make it."""
        if name in self.segment.sources:
            return np.concatenate([group[name] for group in self.sources]).astype(np.float64)
        return self.run(output=name)

    def compare(self, prediction: Array) -> Comparison:
        """Compare the file's tensor with what a cause predicts."""
        return compare(prediction, self.actual, self.limits)

    @property
    def last(self) -> onnx.NodeProto:
        """The node that makes the layer's tensor."""
        return self.graph.nodes[self.graph.producer[self.segment.tensor]]


def before_activation(case: Case) -> Array | None:
    """Return what the layer's last activation reads; None where the layer does not end in one."""
    if case.last.op_type not in _ACTIVATIONS or case.last.input[0] in case.segment.sources:
        return None
    before = case.tensor(case.last.input[0])
    return before if before.shape == case.expected.shape else None


def wrong_channels(case: Case) -> NDArray[np.intp]:
    """Return the channels whose error alone is beyond the limits, measured against the average channel."""
    expected = case.expected
    axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
    noise = np.square(case.actual - expected).sum(axis=axes)
    power = np.square(expected).sum() / expected.shape[1]
    return np.flatnonzero(noise > power * 10 ** (-case.limits.sqnr / 10))
