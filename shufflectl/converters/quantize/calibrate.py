"""Calibrates a captured graph: looks at its tensors on images, and settles how it gets codes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.calibration import Calibration, graph_digest
from shufflectl.converters.quantize.equalise import equalised
from shufflectl.converters.quantize.observe import ChannelObserver, Method, Observer
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.ties import ties
from shufflectl.errors import DataError, UsageError

__all__ = ["Recipe", "Run", "calibrate"]

Run = Callable[[Graph], Iterable[Mapping[str, NDArray[Any]]]]
"""Runs a graph over all images of the calibration: for each batch the graph's inputs and all float
tensors."""


@dataclass(frozen=True)
class Recipe:
    """How a graph is calibrated.

    Attributes:
        method: How ranges are chosen; see `quantize.observe`.
        equalise: How far channels are made equally large, 0 to 1; see `quantize.equalise`. At 0.5 the codes
            that activations win and weights lose balance best (ShuffleNet V2 x1.0, docs/quantisation.md).
        correct_bias: Whether the mean error of rounded weights is taken out; see `quantize.correct`.
    """

    method: Method = "minmax"
    equalise: float = 0.5
    correct_bias: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.equalise <= 1:
            raise UsageError(
                f"channels cannot be equalised by {self.equalise}", hint="give a number from 0 to 1"
            )


def calibrate(graph: Graph, run: Run, recipe: Recipe, *, source: str, images: int, seed: int) -> Calibration:
    """Calibrate a captured graph.

    The images are run two to four times, and no batch is kept.

    Args:
        graph: The captured graph.
        run: Runs a graph over the images.
        recipe: How.
        source: What the images are, in words.
        images: How many there are.
        seed: What chose them.

    Raises:
        DataError: There is no image, or a tensor is not finite on one.
    """
    magnitudes = {}
    prepared = graph
    if recipe.equalise > 0:
        channels = ChannelObserver()
        for tensors in run(graph):
            channels.look(tensors)
        coded = ties(graph).groups
        magnitudes = {name: found for name, found in channels.magnitudes.items() if name in coded}
        prepared = equalised(graph, magnitudes, recipe.equalise)
    observer, channels = Observer(recipe.method), ChannelObserver()
    for tensors in run(prepared):
        observer.look(tensors)
        channels.look(tensors)
    if observer.again:
        for tensors in run(prepared):
            observer.look(tensors)
    ranges = observer.ranges()
    if not ranges:
        raise DataError("there are no images to calibrate on", hint="give at least one")
    multiplied = {str(found.data.name) for node in prepared.nodes if (found := weighted(node)) is not None}
    means = {name: found for name, found in channels.means.items() if name in multiplied}
    means = means if recipe.correct_bias else {}
    return Calibration(
        graph_digest(graph), recipe.method, source, images, seed, ranges, recipe.equalise, magnitudes, means
    )
