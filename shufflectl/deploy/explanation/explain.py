"""Explains a model: opens it, follows its channels, and tries the forms.

The model is one of the registry, an ONNX file of any exporter, or a network that a user's function builds.
Nothing is written. The figures are those of the graph: what an emitter adds (layout changes) and what a
runtime fuses is `inspect`'s to say.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.choose import NATIVE, NO_CODES, Candidate, candidates, lower, settle
from shufflectl.converters.rewrite.lowering import (
    LOWERINGS,
    Report,
    SiteReport,
    bytes_moved,
    largest_rank,
    operators,
)
from shufflectl.converters.rewrite.provenance import LeftAlone
from shufflectl.deploy.explanation.names import Names
from shufflectl.deploy.explanation.request import ExplainRequest
from shufflectl.deploy.explanation.result import ExplainedSite, Explanation, FormResult, Made, Subject
from shufflectl.deploy.onnx_model import is_file, reading, refuse_finished
from shufflectl.deploy.onnx_weights import load_weights, parse
from shufflectl.errors import UsageError
from shufflectl.models import zoo
from shufflectl.models.factory import Factory

if TYPE_CHECKING:
    import onnx

    from shufflectl.deploy.verify import Notify

__all__ = ["explain", "explain_graph"]


@dataclass(frozen=True)
class _Opened:
    """A graph, and what its own file says of it."""

    graph: Graph
    name: str
    kind: str
    producer: str = ""
    changes: tuple[str, ...] = ()
    frozen: str = ""
    nodes: dict[str, str] | None = None


def explain(request: ExplainRequest, notify: "Notify" = lambda _what, _done, _total: None) -> Explanation:
    """Explain a model, an ONNX file or a user's network. Nothing is written, and no code of a file runs.

    Args:
        request: What to explain.
        notify: Told about progress.

    Raises:
        UsageError: There is no such model, or an option does not fit a file.
        ArtifactError: The file is missing, damaged or no ONNX file.
        CheckpointError: The checkpoint cannot be loaded or does not fit.
        FactoryError: The user's function fails, or gives no network that can be exported.
        GraphError: The model cannot be captured, or a shape of the file is not known.
    """
    if request.factory is not None:
        with redirect_stdout(sys.stderr):  # what a user's code prints is no result
            return _explain(_built(request, request.factory, notify), request, notify)
    if not is_file(request.subject):
        return _explain(_model(request, notify), request, notify)
    opened = _file(request, notify)
    # A rewrite takes for granted that weights fit shapes, and onnx does not check all.
    with reading(Path(request.subject)):
        return _explain(opened, request, notify)


def explain_graph(graph: Graph, request: ExplainRequest) -> Explanation:
    """Explain a captured graph as `explain` does a model; the request's subject names it."""
    return _explain(_Opened(graph, request.subject, "model"), request, lambda _what, _done, _total: None)


def _model(request: ExplainRequest, notify: "Notify") -> _Opened:
    zoo.variant(request.subject)  # before torch is imported, so that a mistyped name is known at once
    from shufflectl.deploy.export import captured
    from shufflectl.models import load

    notify("loading weights", 0, 0)
    model = load(request.subject, weights=request.weights, num_classes=request.num_classes)
    notify("capturing the graph", 0, 0)
    graph = captured(model, request.input_size or model.input_size, 1)
    return _Opened(graph, model.variant.name, "model")


def _built(request: ExplainRequest, factory: Factory, notify: "Notify") -> _Opened:
    from shufflectl.deploy.factory_model import open_factory

    if request.num_classes is not None:
        raise UsageError(
            "--num-classes is for models of the registry",
            hint="a function of one's own takes arguments: --arg key=value",
        )
    found = open_factory(factory, weights=request.weights, size=request.input_size, notify=notify)
    notify("capturing the graph", 0, 0)
    return _Opened(found.graph, found.info.name, "model")


def _file(request: ExplainRequest, notify: "Notify") -> _Opened:
    path = Path(request.subject)
    for given, option in ((request.weights, "--weights"), (request.num_classes, "--num-classes")):
        if given is not None:
            raise UsageError(
                f"{option} is for models of the registry, and a file has its own", hint="leave it out"
            )
    refuse_finished(
        path,
        "explain the model or the ONNX file that it was made from, or see what the file holds with "
        "shufflectl inspect",
    )
    notify("reading", 0, 0)
    proto, _ = parse(path)
    producer = " ".join(part for part in (proto.producer_name, proto.producer_version) if part)
    load_weights(proto, path)
    return _adopted(path, proto, producer, request.input_size)


def _adopted(path: Path, proto: "onnx.ModelProto", producer: str, size: int | None) -> _Opened:
    import onnx

    from shufflectl.converters.capture.adopt import adopt
    from shufflectl.converters.capture.codes import without_codes

    with reading(path):
        onnx.checker.check_model(proto)
        plain, taken = without_codes(proto)
        found = adopt(plain, size=size)
    changes = (*taken, *found.changes)
    return _Opened(found.graph, path.name, "file", producer, changes, found.frozen, found.nodes)


class _Forms:
    """The forms of one graph, each made once."""

    def __init__(self, graph: Graph, frozen: str) -> None:
        self._graph = graph
        self._frozen = frozen
        self._made: dict[Candidate, Report] = {}

    def get(self, candidate: Candidate) -> Report:
        """Return the report of the form; of the graph as it is where it cannot be rewritten."""
        wanted = NATIVE if self._frozen else candidate
        if wanted not in self._made:
            self._made[wanted] = lower(self._graph, wanted)[1]
        return self._made[wanted]


def _explain(opened: _Opened, request: ExplainRequest, notify: "Notify") -> Explanation:
    graph = opened.graph
    notify("following channels", 0, 0)
    provenance = analyze(graph)
    names = Names(graph, opened.nodes or {})
    sites = tuple(names.site(number, site) for number, site in enumerate(provenance.sites, 1))
    forms = _Forms(graph, opened.frozen)
    pairs = [(target, precision) for precision in request.precisions for target in request.targets]
    results: list[Made] = []
    for target, precision in pairs:
        notify(f"lowering for {target}", len(results), len(pairs))
        choice = request.choice(target, precision)
        if not opened.frozen:
            choice = settle(graph, choice)
        report = forms.get(choice.candidate)
        applied = choice.candidate if report.changed else NATIVE
        results.append(Made(target, precision, choice, applied, report, *_matched(sites, report)))
    return Explanation(
        _subject(opened),
        sites,
        tuple(LeftAlone(tuple(map(names.node, e.nodes)), e.reason) for e in provenance.left_alone),
        tuple(results),
        _all_forms(forms, pairs, opened.frozen, notify) if request.all_forms else (),
    )


def _matched(
    sites: Sequence[ExplainedSite], report: Report
) -> tuple[tuple[SiteReport, ...], tuple[SiteReport, ...]]:
    """Return what becomes of each site, and the sites that a form makes.

    A form that prepares the graph first reports the sites of the prepared graph: some of them are new, and
    some that were there have gone into others.
    """
    reported = {site.name: site for site in report.sites}
    found = []
    for own in sites:
        result = reported.pop(own.site.name, None)
        if result is None:
            why = f"{report.lowering} moved its channels elsewhere; see the added sites"
            result = SiteReport(own.site.name, "", report.lowering, why, (), {}, {}, 0, 0)
        found.append(
            replace(
                result,
                description=own.site.description,
                operators_before=own.operators,
                bytes_before=own.bytes_moved,
            )
        )
    return tuple(found), tuple(reported.values())


def _subject(opened: _Opened) -> Subject:
    graph = opened.graph
    inputs = tuple(
        (str(v.name), tuple(d if isinstance(d, int) else None for d in Graph.shape(v))) for v in graph.inputs
    )
    return Subject(
        opened.name,
        opened.kind,
        opened.producer,
        graph.opset,
        inputs,
        operators(graph.nodes),
        bytes_moved(graph.nodes),
        largest_rank(graph),
        opened.changes,
        opened.frozen,
    )


def _all_forms(
    forms: _Forms, pairs: Sequence[tuple[str, str]], frozen: str, notify: "Notify"
) -> tuple[FormResult, ...]:
    left_out = NO_CODES if all(precision == "int8" for _, precision in pairs) else {}
    wanted: dict[Candidate, list[str]] = {Candidate(name): [] for name in LOWERINGS if name not in left_out}
    for target, precision in pairs:
        for candidate in candidates(target, precision):
            found = wanted.setdefault(candidate, [])
            if target not in found:
                found.append(target)
    order = list(LOWERINGS)
    results: list[FormResult] = []
    for candidate in sorted(wanted, key=lambda c: (order.index(c.form), c.label)):
        notify(f"trying {candidate.label}", len(results), len(wanted))
        report = forms.get(candidate)
        why = ""
        if candidate != NATIVE and not report.changed:
            why = frozen or _why_not(report)
        results.append(FormResult(candidate, tuple(wanted[candidate]), why, report))
    return tuple(results)


def _why_not(report: Report) -> str:
    """Return why a form changes nothing, in the words of the first site that has some."""
    refused = [reason for site in report.sites for reason in site.refused]
    return next(iter([*refused, *(site.why for site in report.sites)]), "there is no shuffle")
