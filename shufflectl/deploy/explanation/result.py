"""What an explanation says: the model, its sites, what each target gets, and every form that was tried."""

from dataclasses import dataclass
from typing import Any, Final

from shufflectl.converters.rewrite.choose import Candidate, Choice
from shufflectl.converters.rewrite.lowering import Report, SiteReport
from shufflectl.converters.rewrite.provenance import LeftAlone, Site

__all__ = ["SCHEMA", "ExplainedSite", "Explanation", "FormResult", "Made", "Subject"]

SCHEMA: Final = "shufflectl.explain/1"


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
