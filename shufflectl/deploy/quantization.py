"""A network in integers: calibrated once, then every form and format of it with the same scales."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.pixels import fold_preprocess, take_bytes
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibration import Calibration, graph_digest
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.qdq import with_qdq
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.rewrite.choose import Candidate, lower
from shufflectl.deploy.calibration import read_calibration
from shufflectl.deploy.digests import digest
from shufflectl.errors import ArtifactError, UsageError, nearest

__all__ = ["Quantized", "find_layers", "layers", "quantized_file"]


@dataclass(frozen=True)
class Quantized:
    """A graph and its calibration.

    Attributes:
        graph: What is written to files, before any rewrite; it may be the captured graph with its images'
            preprocessing folded in, and then says so in its records.
        calibration: Of that graph.
    """

    graph: Graph
    calibration: Calibration

    @property
    def floats(self) -> frozenset[str]:
        """Tensors whose layers compute in floating point."""
        return self.calibration.floats

    @cached_property
    def prepared(self) -> Graph:
        """The graph that gets codes: its tensors stand for themselves.

        Raises:
            DataError: The calibration is of another graph.
        """
        return Graph(self.calibration.prepare(self.graph).model)

    @cached_property
    def scales(self) -> Mapping[str, Scale]:
        """The grid of every tensor that has codes."""
        return self.calibration.scales(self.prepared)

    def form(self, candidate: Candidate) -> tuple[Graph, bool]:
        """Return the graph in a form, with scales, and whether the form changed it.

        Raises:
            GraphError: The form would hold channels of several scales in one tensor.
        """
        lowered, report = lower(self.prepared, candidate)
        made = annotated(lowered, self.prepared, self.scales, self.floats)
        for value in [*made.inputs, *(v for node in made.nodes for v in node.outputs)]:
            name = str(value.name)
            record = made.record(name)
            outer = self.graph.record(record.origin) if record.origin else record
            if outer.origin != record.origin:
                made.records[name] = replace(record, origin=outer.origin)
        return made, report.changed

    def reference(self) -> Graph:
        """Return what every file computes, as a plain graph with Q/DQ nodes.

        Its tensors have the names that files' traces know them by; what is rounded has the tensor's name.
        """
        rounded = with_qdq(annotated(self.prepared, self.prepared, self.scales, self.floats))
        for value in [*rounded.inputs, *(v for node in rounded.nodes for v in node.outputs)]:
            record = self.graph.record(str(value.name))
            if record != TensorRecord(str(value.name)) and record.origin:
                value.name = record.origin
        return rounded

    @property
    def in_codes(self) -> Mapping[str, Scale]:
        """The grid of every tensor of `reference` that is rounded, by its name there."""
        found = {}
        quantization = annotated(self.prepared, self.prepared, self.scales, self.floats).quantization
        for name, scale in (quantization.scales if quantization else {}).items():
            found[self.graph.record(name).origin] = scale
        return found


def quantized_file(
    path: Path, info: ModelInfo | None, captured: Callable[[], Graph | None]
) -> Quantized | None:
    """Return what an int8 file was made of: the captured graph, and the calibration beside the file.

    Args:
        path: The file.
        info: What it says about itself.
        captured: Returns the captured graph.

    Returns:
        None where the file says nothing, its calibration is not there, or the graph is out of reach.

    Raises:
        ArtifactError: The calibration beside it is not the one that it was made with.
        DataError: That is none, or of another graph.
    """
    record = None if info is None else info.quantization
    if info is None or record is None:
        return None
    place = path.parent / record.calibration
    if not place.is_file() or (graph := captured()) is None:
        return None
    if digest(place) != record.sha256:
        raise ArtifactError(
            f"{place} is not the calibration that {path.name} was made with", hint="export the files again"
        )
    calibration = read_calibration(place)
    for base in _as_given(graph, info):
        if graph_digest(base) == calibration.graph:
            return Quantized(base, calibration)
    calibration.require(graph)
    raise RuntimeError("a calibration fits a graph or is refused")


def _as_given(graph: Graph, info: ModelInfo) -> Iterator[Graph]:
    """Yield the graph as files may have it: as captured, with its images' preprocessing, with bytes."""
    bases = [graph]
    if info.input is not None and info.input.preprocess.takes_pixels:
        bases.append(fold_preprocess(graph, info.preprocess)[0])
    for base in bases:
        yield base
        if info.input is not None and info.input.type in ("uint8", "image"):
            yield take_bytes(base)


def layers(graph: Graph) -> tuple[str, ...]:
    """Return the layers of a graph, in its order: what its weights make."""
    return tuple(str(node.outputs[0].name) for node in graph.nodes if weighted(node) is not None)


def find_layers(graph: Graph, words: Iterable[str]) -> frozenset[str]:
    """Return the layers that a user names, by the whole name or by that of a module around them.

    Raises:
        UsageError: There is none of that name.
    """
    known = layers(graph)
    found: set[str] = set()
    for word in words:
        inside = [name for name in known if name == word or name.startswith(f"{word}.")]
        if not inside:
            raise UsageError(f"the network has no layer {word!r}", hint=nearest(word, known))
        found.update(inside)
    return frozenset(found)
