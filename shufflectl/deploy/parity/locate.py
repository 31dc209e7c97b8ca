"""Find the layer at which a file stops computing what the captured graph computes.

Rounding errors grow from layer to layer, so a tensor that is far from the reference need not be the one that
is wrong. Every tensor that the file still holds is therefore judged twice: against the reference's tensor
(*total* error), and against what the captured graph makes of the file's *own* earlier tensors (*own* error).
The own error is what this layer alone added, in any precision and however deep it lies; the first tensor in
graph order whose own error is beyond the limits is the culprit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.deploy.parity.case import Case, Diagnosis
from shufflectl.deploy.parity.codes import CodeCounter, CodeReference, Codes
from shufflectl.deploy.parity.diagnose import diagnose
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.parity.limits import Limits
from shufflectl.deploy.parity.metrics import Accumulator, Comparison
from shufflectl.deploy.parity.ports import Ports
from shufflectl.deploy.parity.segments import Executor, Segment, SegmentedGraph
from shufflectl.deploy.runtimes.base import Arrays, Session
from shufflectl.errors import DataError

__all__ = ["Divergence", "Examination", "Layer", "examine", "locate"]

_CHUNK: Final = 1 << 26
"""Elements of inner tensors held at once: 256 MB in fp32 for each of reference, candidate and own."""

_MEANS: Final = frozenset({"GlobalAveragePool", "ReduceMean"})

_OUTLIER_DB: Final = 20.0
"""How far below the median a layer's own SQNR must lie to stand out though it is within the limits."""


_SUSPECT_DB: Final = 10.0
"""The same for a layer that is a culprit only if an exact cause explains its error."""

_SUSPECTS: Final = 8
"""How many of those are diagnosed, which takes a fraction of a second each."""


@dataclass(frozen=True)
class Layer:
    """One tensor of the captured graph that the file still holds.

    Attributes:
        tensor: Its name in the captured graph.
        held_as: Its name in the file.
        nodes: The nodes that make it from the held tensors before it, as ``stage2.0.branch2.0 (Conv)``.
        sources: Those earlier tensors.
        total: Its distance from the reference's tensor; None where the shapes differ.
        own: Its distance from what the captured graph makes of the file's own sources; None where the shapes
            differ or a source cannot be used.
        problem: Why a comparison is missing; empty otherwise.
        codes: The same as ``own``, counted in codes; None for a tensor that has none.
        flaw: What the file says of the tensor's codes and the graph does not; None where they agree.
    """

    tensor: str
    held_as: str
    nodes: tuple[str, ...]
    sources: tuple[str, ...]
    total: Comparison | None
    own: Comparison | None
    problem: str = ""
    codes: Codes | None = None
    flaw: Diagnosis | None = None

    @property
    def diverges(self) -> bool:
        """Whether this layer itself is beyond the limits, or has another shape or other codes."""
        if self.flaw is not None or (self.problem and self.total is None):
            return True
        if self.codes is not None:
            return not self.codes
        return self.own is not None and not self.own

    @property
    def made_by(self) -> str:
        """The layer's nodes in one line; the first and last of many."""
        if len(self.nodes) <= 4:
            return ", ".join(self.nodes)
        return f"{self.nodes[0]} to {self.nodes[-1]}, {len(self.nodes)} nodes"

    def to_json(self) -> dict[str, Any]:
        """Return the layer as JSON values."""
        return {
            "tensor": self.tensor,
            "held_as": self.held_as,
            "nodes": list(self.nodes),
            "sources": list(self.sources),
            "total": None if self.total is None else self.total.to_json(),
            "own": None if self.own is None else self.own.to_json(),
            "problem": self.problem,
            "codes": None if self.codes is None else self.codes.to_json(),
            "diverges": self.diverges,
        }


@dataclass(frozen=True)
class Divergence:
    """Where a file stops agreeing, and why.

    Attributes:
        kind: ``jump``: one layer computes something else. ``gradual``: no layer does; errors within the
            limits of every layer add up to more than the limits at the output.
        layer: The first layer that computes something else; for ``gradual`` the first whose total error is
            beyond the limits.
        diagnosis: The cause.
        others: Further tensors at which a layer of its own diverges.
    """

    kind: Literal["jump", "gradual"]
    layer: Layer
    diagnosis: Diagnosis
    others: tuple[str, ...] = ()

    @property
    def tensor(self) -> str:
        """The first tensor that diverges, by its name in the captured graph."""
        return self.layer.tensor

    @property
    def sentence(self) -> str:
        """Tensor, layer, figures and cause, in one line."""
        layer = self.layer
        figures = layer.own if self.kind == "jump" else layer.total
        measured = (
            layer.problem if figures is None else f"SQNR {figures.sqnr:.1f} dB, max |Δ| {figures.max_abs:.3g}"
        )
        if layer.codes is not None and self.kind == "jump":
            measured = layer.codes.sentence
        if layer.flaw is not None and (layer.codes is None or layer.codes):
            return f"{layer.tensor} is wrong: {self.diagnosis.sentence}"
        more = (
            f"; {len(self.others)} further layers diverge: {', '.join(self.others[:3])}"
            if self.others
            else ""
        )
        return (
            f"{layer.tensor} diverges ({measured}), made by {layer.made_by}: {self.diagnosis.sentence}{more}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the divergence as JSON values."""
        return {
            "kind": self.kind,
            "tensor": self.tensor,
            "layer": self.layer.to_json(),
            "diagnosis": self.diagnosis.to_json(),
            "others": list(self.others),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Examination:
    """The per-layer table of a file and what it shows.

    Attributes:
        layers: Every held tensor in graph order.
        divergence: Where the file stops agreeing; None where it does not.
        blind: Whether the file carries no trace, so that only its outputs could be compared.
    """

    layers: tuple[Layer, ...]
    divergence: Divergence | None
    blind: bool

    def to_json(self) -> dict[str, Any]:
        """Return the examination as JSON values."""
        return {
            "blind": self.blind,
            "divergence": None if self.divergence is None else self.divergence.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }


def locate(
    graph: Graph, session: Session, inputs: Mapping[str, NDArray[Any]] | Feeds, limits: Limits
) -> Divergence | None:
    """Return where a file stops agreeing with the captured graph, or None; see `examine`."""
    return examine(graph, session, inputs, limits).divergence


def examine(
    graph: Graph,
    session: Session,
    inputs: Mapping[str, NDArray[Any]] | Feeds,
    limits: Limits,
    *,
    file: str = "the file",
    codes: CodeReference | None = None,
) -> Examination:
    """Compare a file with the captured graph, tensor by tensor.

    Args:
        graph: The captured graph (fp32), executed by ONNX Runtime with every compared tensor as an output.
        session: The loaded file. It must give inner tensors (``taps``) unless it carries no trace.
        inputs: A few images by the graph's input names: NCHW, fp32, preprocessed; with `Feeds` the file gets
            them as it wants them. More images tell causes apart better: with a single one, a channel of the
            logits is a single number.
        limits: What each layer's own error is held to (top-1 aside), and what the output's total error is.
        file: What messages call the file.
        codes: Which tensors have codes, where the graph is one in Q/DQ form.

    Returns:
        The table and the divergence.

    Raises:
        ArtifactError: The file's trace does not fit the file or the graph, or the runtime fails on it.
        UnsupportedOperatorError: The runtime gives no inner tensors.
        DataError: Inputs are missing, or the fixed batches of graph and file differ.
    """
    examiner = _Examiner(graph, session, inputs, limits, file, codes)
    layers = examiner.layers()
    return Examination(tuple(layers), examiner.divergence(layers), examiner.blind)


class _Examiner:
    def __init__(
        self,
        graph: Graph,
        session: Session,
        inputs: Mapping[str, NDArray[Any]] | Feeds,
        limits: Limits,
        file: str,
        codes: CodeReference | None,
    ) -> None:
        self.codes = codes
        names = [value.name or "" for value in graph.inputs]
        self.ports = Ports(session, file, names, [value.name or "" for value in graph.outputs])
        self.session = session
        self.limits = replace(limits, top1=0.0)
        held = [*session.trace, *(value.name or "" for value in graph.outputs)]
        self.graph = SegmentedGraph(graph, held)
        self.blind = self.ports.foreign
        given = inputs.arrays if isinstance(inputs, Feeds) else inputs
        for name in names:
            if name not in given:
                raise DataError(f"no input is given for {name!r}")
        count = min(len(given[name]) for name in names)
        if count == 0:
            raise DataError("there are no images to compare on", hint="give at least one image")
        arrays = {name: given[name][:count] for name in names}
        self.inputs = Feeds(arrays)
        if isinstance(inputs, Feeds):
            pixels = {name: array for name, array in inputs.pixels.items() if name in arrays}
            self.inputs = Feeds(arrays, pixels, inputs.preprocess)
        self.groups = list(self._grouped(graph))

    def _grouped(self, graph: Graph) -> Iterator[Feeds]:
        """Yield the inputs in groups of the batch that both sides take."""
        count = len(self.inputs)
        first = graph.inputs[0]
        baked = Graph.shape(first)[0] if first.shape is not None and len(first.shape) else None
        fixed = {size for size in (baked, self.ports.batch) if isinstance(size, int)}
        if len(fixed) > 1:
            raise DataError(
                f"{self.ports.file} takes {self.ports.batch} images at a time, the captured graph {baked}",
                hint="capture the model with the batch that the file was exported with",
            )
        size = fixed.pop() if fixed else count
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), count - 1)
            yield self.inputs.taken(index)

    def layers(self) -> list[Layer]:
        segments = {name: self.graph.segment(name) for name in self.graph.held}
        problems: dict[str, str] = {}
        totals: dict[str, Accumulator] = {}
        owns: dict[str, Accumulator] = {}
        counted: dict[str, CodeCounter] = {}
        for chunk in self._chunks(list(segments.values())):
            names = [segment.tensor for segment in chunk]
            reference = Executor(self.graph.reference(names))
            runners: dict[tuple[str, ...], Executor] = {}
            for group in self.groups:
                wanted = reference.run(
                    {name: self.graph.cast(name, array) for name, array in group.arrays.items()}
                )
                given = self._candidate(group, chunk)
                for name in names:
                    actual, expected = list(given[name].shape), list(wanted[name].shape)
                    if actual != expected:
                        problems[name] = f"its shape is {actual} where {expected} is expected"
                usable = [segment for segment in chunk if not self._hindrance(segment, problems)]
                key = tuple(segment.tensor for segment in usable)
                if usable and key not in runners:
                    runners[key] = Executor(self.graph.model(usable))
                own = runners[key].run(self.graph.feeds(usable, given)) if usable else {}
                for name in names:
                    if name in problems:
                        continue
                    totals.setdefault(name, Accumulator(name)).add(wanted[name], given[name])
                    if name in own:
                        owns.setdefault(name, Accumulator(name)).add(own[name], given[name])
                        scale = None if self.codes is None else self.codes.scales.get(name)
                        if scale is not None:
                            counted.setdefault(name, CodeCounter(scale)).add(own[name], given[name])
        layers = [
            self._layer(segment, problems, totals, owns, counted.get(segment.tensor))
            for segment in segments.values()
        ]
        return [*self._inputs(), *layers]

    def _inputs(self) -> Iterator[Layer]:
        """Yield the inputs whose codes stand for something else than the graph's."""
        for name, spec, _ in self.ports.inputs:
            flaw = self._flaw(name, [spec.name])
            if flaw is not None:
                yield Layer(name, spec.name, (), (), None, None, flaw=flaw)

    def _flaw(self, name: str, held: Sequence[str]) -> Diagnosis | None:
        if self.codes is None:
            return None
        return self.codes.flaw(name, held, self.session.integers)

    def _layer(
        self,
        segment: Segment,
        problems: Mapping[str, str],
        totals: Mapping[str, Accumulator],
        owns: Mapping[str, Accumulator],
        counted: CodeCounter | None,
    ) -> Layer:
        name = segment.tensor
        wrong = name in problems
        view = self.session.trace.get(name)
        codes = None
        if not wrong and counted is not None and self.codes is not None:
            limits = self.codes.limits
            kinds = [self.graph.nodes[index].op_type for index in segment.nodes]
            limits = limits.for_roundings(kinds.count("QuantizeLinear"))
            codes = counted.result(limits.for_means if _MEANS.intersection(kinds) else limits)
        return Layer(
            tensor=name,
            held_as=name if view is None else ", ".join(view.names),
            nodes=tuple(self.graph.label(index) for index in segment.nodes),
            sources=segment.sources,
            total=None if wrong else totals[name].result(self.limits),
            own=None if wrong or name not in owns else owns[name].result(self.limits),
            problem=problems.get(name) or self._hindrance(segment, problems),
            codes=codes,
            flaw=self._flaw(name, [name] if view is None else view.names),
        )

    @staticmethod
    def _hindrance(segment: Segment, problems: Mapping[str, str]) -> str:
        """Say why a segment cannot be executed on the file's own tensors; empty where it can."""
        for name in (segment.tensor, *segment.sources):
            if name in problems:
                return f"{name} has another shape"
        return ""

    def _chunks(self, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
        """Yield runs of segments whose tensors and sources fit into memory together."""
        chunk: list[Segment] = []
        held: set[str] = set()
        images = max(len(group) for group in self.groups)
        for segment in segments:
            added = {segment.tensor, *segment.sources} - held
            size = sum(self.graph.sizes[name] for name in held | added) * images
            if chunk and size > _CHUNK:
                yield chunk
                chunk, held = [], set()
                added = {segment.tensor, *segment.sources}
            chunk.append(segment)
            held |= added
        if chunk:
            yield chunk

    def _candidate(self, group: Feeds, segments: Sequence[Segment]) -> Arrays:
        """Return the file's own tensors that the segments make and read, as the graph has them."""
        names = dict.fromkeys(
            name
            for segment in segments
            for name in (*segment.sources, segment.tensor)
            if name not in group.arrays
        )
        trace = self.session.trace
        ends = {name for name, _, _ in self.ports.outputs}
        views = {name: trace[name] for name in names if name in trace and name not in ends}
        wanted = dict.fromkeys(held for view in views.values() for held in view.names)
        outputs, taps = self.ports.run(group, list(wanted))
        tensors = {name: self.ports.collect(name, view, taps) for name, view in views.items()}
        return {**group.arrays, **tensors, **outputs}

    def divergence(self, layers: Sequence[Layer]) -> Divergence | None:
        """Return the first layer that diverges.

        Of a graph in codes that is all: where every layer makes the codes that it should, single codes that
        fall on the other side move others behind them, and neither the file nor the graph is the right one.
        """
        wrong = [layer for layer in layers if layer.diverges]
        if not wrong and self.codes is None:
            wrong = self._outliers(layers)
        if wrong:
            first = wrong[0]
            others = tuple(layer.tensor for layer in wrong[1:])
            return Divergence("jump", first, self._diagnose(first), others)
        if self.codes is not None:
            return None
        for suspect in self._suspects(layers):
            diagnosis = self._diagnose(suspect)
            if diagnosis.exact:
                return Divergence("jump", suspect, diagnosis)
        ends = [layer for layer in layers if layer.tensor in self.graph.outputs]
        if all(layer.total for layer in ends):
            return None
        drifted = next(layer for layer in layers if not layer.total)
        by_own = sorted((layer for layer in layers if layer.own is not None), key=_own_sqnr)
        largest = ", ".join(f"{layer.tensor} {_own_sqnr(layer):.1f} dB" for layer in by_own[:3])
        sentence = (
            "no single layer computes something else; rounding adds up over the layers, "
            f"and those that add most are {largest}"
        )
        return Divergence("gradual", drifted, Diagnosis("rounding", sentence))

    def _outliers(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return layers within the limits that still stand out, where the output is beyond its limits."""
        if all(layer.total for layer in layers if layer.tensor in self.graph.outputs):
            return []
        return self._below_median(layers, _OUTLIER_DB)

    def _suspects(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the few layers that deserve a diagnosis though nothing is beyond its limits.

        Half precision leaves room in which a small defect hides, such as one weight column of hundreds.
        Rounding has no exact cause, so a layer that has one is a culprit whatever the size of its error.
        """
        worst = sorted(self._below_median(layers, _SUSPECT_DB), key=_own_sqnr)[:_SUSPECTS]
        return [layer for layer in layers if layer in worst]

    def _below_median(self, layers: Sequence[Layer], margin: float) -> list[Layer]:
        noisy = [layer for layer in layers if math.isfinite(_own_sqnr(layer))]
        if not noisy:
            return []
        edge = min(median(map(_own_sqnr, noisy)), self.limits.sqnr + 2 * _OUTLIER_DB) - margin
        return [layer for layer in noisy if _own_sqnr(layer) < edge]

    def _diagnose(self, layer: Layer) -> Diagnosis:
        if layer.flaw is not None:
            return layer.flaw
        if layer.own is None:
            return Diagnosis("shape", f"{layer.tensor}: {layer.problem}")
        segment = self.graph.segment(layer.tensor)
        sources, actual = [], []
        for group in self.groups:
            given = self._candidate(group, [segment])
            sources.append({name: given[name] for name in segment.sources})
            actual.append(given[layer.tensor])
        info = self.session.info
        case = Case(
            self.graph,
            segment,
            tuple(sources),
            np.concatenate(actual).astype(np.float64),
            self.limits,
            None if info is None else info.preprocess,
        )
        found = diagnose(case)
        if not self.blind:
            return found
        return replace(
            found, sentence=f"{found.sentence}; the file carries no trace that tells its layers apart"
        )


def _own_sqnr(layer: Layer) -> float:
    return math.inf if layer.own is None else layer.own.sqnr
