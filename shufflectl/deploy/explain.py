"""What becomes of every channel shuffle of a model: where it is, what it moves, the form it gets and why.

The model is one of the registry, an ONNX file of any exporter, or a network that a user's function builds.
Nothing is written. The figures are those of the graph: what an emitter adds (layout changes) and what a
runtime fuses is `inspect`'s to say.
"""

import ast
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.choose import (
    AUTO,
    NATIVE,
    NO_CODES,
    Candidate,
    Choice,
    candidates,
    choose,
    lower,
    parse_align,
    settle,
)
from shufflectl.converters.rewrite.lowering import (
    LOWERINGS,
    Report,
    SiteReport,
    bytes_moved,
    largest_rank,
    operators,
)
from shufflectl.converters.rewrite.provenance import LeftAlone, Site, label
from shufflectl.converters.targets import PRECISIONS, TARGETS, Precision
from shufflectl.deploy.onnx_model import is_file, reading, refuse_finished
from shufflectl.deploy.onnx_weights import load_weights, parse
from shufflectl.deploy.options import parse_factory, words
from shufflectl.errors import UsageError
from shufflectl.models import zoo
from shufflectl.models.factory import Factory

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from shufflectl.deploy.verify import Notify

__all__ = [
    "SCHEMA",
    "ExplainRequest",
    "ExplainedSite",
    "Explanation",
    "FormResult",
    "Made",
    "Subject",
    "explain",
    "explain_graph",
]

SCHEMA: Final = "shufflectl.explain/1"
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
"""The node property under which torch.onnx keeps the modules that a node comes from, as a Python list."""
_MAX_SIZE: Final = 2048
_MAX_TEXT: Final = 2000


@dataclass(frozen=True)
class ExplainRequest:
    """What is to be explained.

    Attributes:
        subject: A name of the registry, the path of an ONNX file, or a function of the user's
            (``package.module:factory``).
        factory: What the user says of that function; None where ``subject`` is none.
        targets: Names of `TARGETS`.
        precisions: Of every target.
        weights: As `models.load` takes it; only with a name of the registry.
        num_classes: Likewise.
        input_size: Height and width in pixels; of a file only where it leaves them free.
        shuffle: A name of `LOWERINGS`, or ``auto`` for what `export` would take.
        align: What channel counts are padded to a multiple of; None for what is best with the form.
        all_forms: Whether every form is tried, too.
    """

    subject: str
    factory: Factory | None = None
    targets: tuple[str, ...] = tuple(TARGETS)
    precisions: tuple[Precision, ...] = ("fp32",)
    weights: str | None = None
    num_classes: int | None = None
    input_size: int | None = None
    shuffle: str = AUTO
    align: int | None = None
    all_forms: bool = False

    @classmethod
    def parse(
        cls,
        *,
        targets: Sequence[str],
        precisions: Sequence[str],
        align: str = AUTO,
        arguments: Sequence[str] = (),
        inputs: Sequence[str] = (),
        **rest: Any,
    ) -> Self:
        """Read what the command line has as text.

        Raises:
            UsageError: A word is not one of the choices, or a number is out of range.
        """
        request = cls(
            factory=parse_factory(rest.get("subject"), arguments, inputs),
            targets=words(targets, tuple(TARGETS), "target", everything="all"),
            precisions=cast("tuple[Precision, ...]", words(precisions, PRECISIONS, "precision")),
            align=parse_align(align),
            **rest,
        )
        size = request.input_size
        if size is not None and not 1 <= size <= _MAX_SIZE:
            raise UsageError(f"an input of {size} pixels is too large", hint=f"give at most {_MAX_SIZE}")
        for target in request.targets:
            for precision in request.precisions:
                request.choice(target, precision)
        return request

    def choice(self, target: str, precision: str) -> Choice:
        """Return the form that a target gets.

        Raises:
            UsageError: There is no form of that name, or it does not pad channels.
        """
        return choose(target, precision, shuffle=self.shuffle, align=self.align)


@dataclass(frozen=True)
class Subject:
    """What was explained.

    Attributes:
        name: The model's name, or the file's without folders.
        kind: ``model`` or ``file``.
        producer: What wrote the file; empty where unknown.
        opset: The version of the default operator set.
        inputs: Name and shape of each input; None is a batch that is not fixed.
        operators: All operators of the graph that is explained, with counts.
        bytes_moved: The bytes that its data movement reads and writes, for one image.
        largest_rank: Of any tensor.
        changes: What was made plain before anything else, a sentence each.
        frozen: Why the graph cannot be rewritten; empty where it can.
    """

    name: str
    kind: str
    producer: str
    opset: int
    inputs: tuple[tuple[str, tuple[int | None, ...]], ...]
    operators: dict[str, int]
    bytes_moved: int
    largest_rank: int
    changes: tuple[str, ...] = ()
    frozen: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the subject as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "producer": self.producer,
            "opset": self.opset,
            "inputs": [{"name": name, "shape": list(shape)} for name, shape in self.inputs],
            "operators": dict(self.operators),
            "bytes_moved": self.bytes_moved,
            "largest_rank": self.largest_rank,
            "changes": list(self.changes),
            "rewritable": not self.frozen,
            "not_rewritable_because": self.frozen,
        }


@dataclass(frozen=True)
class ExplainedSite:
    """One site.

    Attributes:
        number: Its place among the sites, from 1.
        site: What it moves.
        where: The modules, or the nodes, that it begins and ends in.
        nodes: The name and the operator of each of its nodes.
        size: The spatial shape that enters.
        operators: Its operators, with counts.
        bytes_moved: The bytes that they read and write, for one image.
        largest_rank: Of any tensor that they make.
    """

    number: int
    site: Site
    where: str
    nodes: tuple[tuple[str, str], ...]
    size: tuple[int, ...]
    operators: dict[str, int]
    bytes_moved: int
    largest_rank: int

    def to_json(self) -> dict[str, Any]:
        """Return the site as JSON values."""
        form = self.site.form
        return {
            "name": self.site.name,
            "where": self.where,
            "kind": self.site.kind,
            "description": self.site.description,
            "groups": None if form is None else form.groups,
            "channels": self.site.channels,
            "inputs": [{"tensor": name, "channels": count} for name, count in self.site.inputs],
            "outputs": [
                {
                    "tensor": output.name,
                    "channels": len(output.map),
                    "runs": [
                        {"tensor": s, "first": first, "end": end} for s, first, end in output.map.runs()
                    ],
                }
                for output in self.site.outputs
            ],
            "size": list(self.size),
            "nodes": [{"name": name, "operator": operator} for name, operator in self.nodes],
            "operators": dict(self.operators),
            "bytes_moved": self.bytes_moved,
            "largest_rank": self.largest_rank,
        }


@dataclass(frozen=True)
class Made:
    """What a target gets.

    Attributes:
        target: Its name.
        precision: Of the file.
        choice: The form, and why.
        applied: The form that was applied: `NATIVE` where the chosen one changes nothing, or none may be.
        report: What it changes.
        sites: What becomes of each site, in the order of the sites.
        added: Sites that the form itself makes: where it carries channels through padding, for example.
    """

    target: str
    precision: str
    choice: Choice
    applied: Candidate
    report: Report
    sites: tuple[SiteReport, ...] = ()
    added: tuple[SiteReport, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        report = self.report.to_json()
        report.pop("left_alone")  # the same for every form
        report.pop("lowering")
        report["sites"] = [site.to_json() for site in self.sites]
        report["added"] = [site.to_json() for site in self.added]
        return {
            "target": self.target,
            "precision": self.precision,
            "chosen": {"label": self.choice.candidate.label, **self.choice.to_json()},
            "applied": {"label": self.applied.label, **self.applied.to_json()},
            **report,
        }


@dataclass(frozen=True)
class FormResult:
    """One form, tried.

    Attributes:
        candidate: The form.
        targets: The targets for which it is worth measuring, the one that takes it first.
        why_not: Why it changes nothing; empty where it does.
        report: What it changes.
    """

    candidate: Candidate
    targets: tuple[str, ...]
    why_not: str
    report: Report

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "label": self.candidate.label,
            **self.candidate.to_json(),
            "candidate_for": list(self.targets),
            "applies": not self.why_not,
            "why_not": self.why_not,
            "operators": dict(self.report.operators_after),
            "bytes_moved": self.report.bytes_after,
            "largest_rank": self.report.rank_after,
        }


@dataclass(frozen=True)
class Explanation:
    """All that is known of a model's shuffles.

    Attributes:
        subject: The model.
        sites: Every place where channels are joined, moved or divided, in graph order.
        left_alone: Data movement that is no channel map: the nodes' names, and why.
        results: What each target gets, in each precision.
        forms: Every form, where that was asked for.
    """

    subject: Subject
    sites: tuple[ExplainedSite, ...]
    left_alone: tuple[LeftAlone, ...]
    results: tuple[Made, ...]
    forms: tuple[FormResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as the document of ``schemas/explain-1.schema.json``."""
        return {
            "schema": SCHEMA,
            "subject": self.subject.to_json(),
            "sites": [site.to_json() for site in self.sites],
            "left_alone": [{"nodes": list(e.nodes), "reason": e.reason} for e in self.left_alone],
            "targets": [made.to_json() for made in self.results],
            "forms": [form.to_json() for form in self.forms],
        }


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
    names = _Names(graph, opened.nodes or {})
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


class _Names:
    """What nodes are called, for people."""

    def __init__(self, graph: Graph, names: dict[str, str]) -> None:
        self._graph = graph
        self._by_label = {label(node): node for node in graph.nodes}
        self._names = names

    def node(self, key: str) -> str:
        """Return the name that the file gives to a node, or that of its result."""
        node = self._by_label.get(key)
        return self._names.get(key) or (str(node.name) if node is not None and node.name else key)

    def _scope(self, key: str) -> str:
        """Return the module that a node comes from; empty where the graph does not say."""
        scope = _module(self._by_label[key].metadata_props.get(_SCOPES, ""))
        if scope:
            return scope
        name = self.node(key)
        if name.startswith("/") and name.count("/") > 1:  # TorchScript: /stage2/stage2.0/Concat_1
            return name.split("/")[-2]
        if key not in self._names and "." in key:  # captured: stage2.0.concat
            return _parent(key)
        return ""

    def _where(self, site: Site) -> str:
        """Return the modules that a site begins and ends in, or the nodes where no module is known."""
        scopes = [scope for key in site.nodes if (scope := self._scope(key))]
        places = scopes or [self.node(key) for key in site.nodes]
        return places[0] if places[0] == places[-1] else f"{places[0]} to {places[-1]}"

    def site(self, number: int, site: Site) -> ExplainedSite:
        """Return what is known of a site."""
        nodes = [self._by_label[key] for key in site.nodes]
        return ExplainedSite(
            number,
            site,
            self._where(site),
            tuple((self.node(key), node.op_type) for key, node in zip(site.nodes, nodes, strict=True)),
            self._size(site.inputs[0][0]),
            operators(nodes),
            bytes_moved(nodes),
            max((len(v.shape) for n in nodes for v in n.outputs if v.shape is not None), default=0),
        )

    def _size(self, tensor: str) -> tuple[int, ...]:
        values: Iterable[ir.Value] = (
            *self._graph.inputs,
            *(v for node in self._graph.nodes for v in node.outputs),
        )
        value = next(v for v in values if v.name == tensor)
        return tuple(int(d) for d in Graph.shape(value)[2:] if isinstance(d, int))


def _parent(key: str) -> str:
    """Return the module of a tensor that capture named ``module.operator`` or ``module.operator.index``."""
    scope, _, last = key.rpartition(".")
    if last.isdigit() and not scope.rpartition(".")[2].isdigit():
        scope = scope.rpartition(".")[0] or scope
    return scope


def _module(text: str) -> str:
    """Return the innermost module that torch.onnx's list of scopes names; empty where it names none."""
    if not text or len(text) > _MAX_TEXT:
        return ""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    if not isinstance(names, list) or len(names) < 2 or not isinstance(names[-2], str):
        return ""
    return names[-2]
