"""Calibrates a captured graph: looks at its tensors on images, and settles how it gets codes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibration import Calibration, graph_digest
from shufflectl.converters.quantize.correct import biased, measured_shifts, probe
from shufflectl.converters.quantize.equalise import equalised
from shufflectl.converters.quantize.observe import ChannelObserver, Observer
from shufflectl.converters.quantize.qdq import before_rounding, with_qdq
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.quantize.ties import ties
from shufflectl.errors import DataError

__all__ = ["Run", "calibrate", "observe", "settle"]

Run = Callable[[Graph, Sequence[str] | None], Iterable[Mapping[str, NDArray[Any]]]]
"""Runs a graph over all images of the calibration: for each batch the tensors of those names, or the graph's
inputs and all float tensors."""


def calibrate(
    graph: Graph,
    run: Run,
    recipe: Recipe,
    *,
    source: str,
    images: int,
    seed: int,
    floats: frozenset[str] = frozenset(),
) -> Calibration:
    """Calibrate a captured graph: `observe` it, and `settle` its biases.

    Args:
        graph: The captured graph.
        run: Runs a graph over the images.
        recipe: How.
        source: What the images are, in words.
        images: How many there are.
        seed: What chose them.
        floats: Tensors whose layers compute in floating point.

    Raises:
        DataError: There is no image, or a tensor is not finite on one.
    """
    found = observe(graph, run, recipe, source=source, images=images, seed=seed)
    return settle(graph, found, run, floats)


def observe(graph: Graph, run: Run, recipe: Recipe, *, source: str, images: int, seed: int) -> Calibration:
    """Return the ranges of a captured graph, and what rounding weights does to each layer by itself.

    The images are run two to four times, and no batch is kept. Arguments and errors as `calibrate`.
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
    observer = Observer(recipe.method)
    for tensors in run(prepared, None):
        observer.look(tensors)
    if observer.again:
        for tensors in run(prepared, None):
            observer.look(tensors)
    ranges = observer.ranges()
    if not ranges:
        raise DataError("there are no images to calibrate on", hint="give at least one")
    found = Calibration(
        graph_digest(graph), recipe.method, source, images, seed, ranges, recipe.equalise, magnitudes
    )
    own = _own_shifts(run, prepared, found.scales(prepared)) if recipe.correct_bias else {}
    return replace(found, own_shifts=own)


def settle(
    graph: Graph, calibration: Calibration, run: Run, floats: frozenset[str] = frozenset()
) -> Calibration:
    """Return a calibration with the biases that its layers need together.

    The images are run a few times.

    Args:
        graph: The captured graph.
        calibration: What `observe` found.
        run: Runs a graph over the images.
        floats: Tensors whose layers compute in floating point.
    """
    calibration = replace(calibration, floats=floats)
    if not calibration.own_shifts:
        return calibration
    prepared = calibration.prepare(graph)
    exact = calibration.equalised(graph)
    wanted = ChannelObserver()
    names = biased(exact)
    for tensors in run(exact, names):
        wanted.look(tensors)
    in_codes = partial(_means, run, calibration.scales(prepared), floats)
    return replace(calibration, shifts=_single(measured_shifts(prepared, wanted.means, in_codes)))


def _own_shifts(run: Run, graph: Graph, scales: Mapping[str, Scale]) -> dict[str, NDArray[np.float32]]:
    """Return what takes out the mean error of each layer's own rounded weights."""
    twice, made = probe(graph, scales)
    if not made:
        return {}
    errors = ChannelObserver()
    for tensors in run(twice, list(made)):
        errors.look(tensors)
    return {made[name]: -mean for name, mean in errors.means.items()}


def _single(arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float32]]:
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _means(
    run: Run, scales: Mapping[str, Scale], floats: frozenset[str], graph: Graph, names: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each channel of tensors in codes, before they are rounded themselves."""
    plain = Graph(graph.model)  # scales are by its own tensors, not by those that they may stand for
    rounded = with_qdq(annotated(plain, plain, scales, floats))
    before = before_rounding(rounded)
    held = {before.get(name, name): name for name in names}
    channels = ChannelObserver()
    for tensors in run(rounded, list(held)):
        channels.look(tensors)
    return {held[name]: mean.astype(np.float64) for name, mean in channels.means.items()}
