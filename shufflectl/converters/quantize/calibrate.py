"""Calibrates a captured graph: looks at its tensors on images, and settles how it gets codes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibration import Calibration, graph_digest
from shufflectl.converters.quantize.correct import biased, expected_shifts, measured_shifts
from shufflectl.converters.quantize.equalise import equalised
from shufflectl.converters.quantize.observe import ChannelObserver, Method, Observer
from shufflectl.converters.quantize.qdq import float_name, with_qdq
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.quantize.ties import ties
from shufflectl.errors import DataError, UsageError

__all__ = ["Recipe", "Run", "calibrate"]

Run = Callable[[Graph, Sequence[str] | None], Iterable[Mapping[str, NDArray[Any]]]]
"""Runs a graph over all images of the calibration: for each batch the tensors of those names, or the graph's
inputs and all float tensors."""


@dataclass(frozen=True)
class Recipe:
    """How a graph is calibrated.

    Attributes:
        method: How ranges are chosen; see `quantize.observe`.
        equalise: How far channels are made equally large, 0 to 1; see `quantize.equalise`. At 0.5 the codes
            that activations win and weights lose balance best (ShuffleNet V2 x1.0, docs/quantisation.md).
        correct_bias: Whether mean errors are taken out of the biases; see `quantize.correct`.
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

    The images are run two to four times, and once more for every four layers whose biases are corrected. No
    batch is kept.

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
        for tensors in run(graph, None):
            channels.look(tensors)
        coded = ties(graph).groups
        magnitudes = {name: found for name, found in channels.magnitudes.items() if name in coded}
        prepared = equalised(graph, magnitudes, recipe.equalise)
    observer, channels = Observer(recipe.method), ChannelObserver()
    for tensors in run(prepared, None):
        observer.look(tensors)
        channels.look(tensors)
    if observer.again:
        for tensors in run(prepared, None):
            observer.look(tensors)
    ranges = observer.ranges()
    if not ranges:
        raise DataError("there are no images to calibrate on", hint="give at least one")
    found = Calibration(
        graph_digest(graph), recipe.method, source, images, seed, ranges, recipe.equalise, magnitudes
    )
    if not recipe.correct_bias:
        return found
    shifts = expected_shifts(prepared, channels.means, found.scales(prepared))
    in_codes = partial(_means, run, found.scales(prepared))
    wanted = {name: channels.means[name] for name in biased(prepared)}
    shifts = measured_shifts(prepared, shifts, wanted, in_codes)
    return replace(found, shifts={name: array.astype(np.float32) for name, array in shifts.items()})


def _means(
    run: Run, scales: Mapping[str, Scale], graph: Graph, names: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each channel of tensors in codes, before they are rounded themselves."""
    rounded = with_qdq(annotated(graph, graph, scales))
    made = {str(value.name) for node in rounded.nodes for value in node.outputs}
    held = {float_name(name) if float_name(name) in made else name: name for name in names}
    channels = ChannelObserver()
    for tensors in run(rounded, list(held)):
        channels.look(tensors)
    return {held[name]: mean.astype(np.float64) for name, mean in channels.means.items()}
