"""Results as tables for people, or as the JSON document that programs read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output, human_bytes

if TYPE_CHECKING:
    from shufflectl.deploy.check import CheckResult
    from shufflectl.deploy.doctor import Diagnosis
    from shufflectl.deploy.inspect import Summary
    from shufflectl.deploy.parity.locate import Layer
    from shufflectl.deploy.verify import Result, Verification
    from shufflectl.models.zoo import Variant

__all__ = ["checked", "diagnosis", "exported", "models", "summary"]

_PASS = "[green]pass[/]"  # noqa: S105 - a verdict
_FAIL = "[bold red]FAIL[/]"
_UNKNOWN = "?"


def exported(output: Output, verification: "Verification", folder: str, *, published: bool) -> None:
    """Show what an export made."""
    if output.json:
        output.document(
            {
                "schema": "shufflectl.export/1",
                "out": folder,
                "published": published,
                **verification.to_json(),
            }
        )
        return
    _verification(output, verification)
    if published:
        output.note(f"[dim]written to {_escape(folder)}, with manifest.json[/]")
    else:
        output.note(f"[bold]nothing was written to {_escape(folder)}[/]")


def checked(output: Output, result: "CheckResult") -> None:
    """Show what a check found."""
    if output.json:
        output.document(result.to_json())
        return
    for verification in result.verifications:
        _verification(output, verification)


def _verification(output: Output, verification: "Verification") -> None:
    labelled = verification.reference_accuracy is not None
    # The verdict comes early: what a narrow terminal cuts off is on the right.
    columns = ["file", "verdict", "bytes", "operators", "rank", "max |Δ|", "SQNR dB", "top-1 agreement"]
    if labelled:
        columns.append("accuracy")
    right = columns[2:]
    if any(result.artifact.form for result in verification.results):
        columns.append("shuffle")
    output.table(
        f"{verification.model} against {verification.reference}",
        columns,
        [_row(result, labelled=labelled) for result in verification.results],
        right=right,
    )
    ran = dict.fromkeys(f"{result.artifact.target}: {result.runtime}" for result in verification.results)
    output.text(f"[dim]run with {_escape(', '.join(ran))}[/]")
    if verification.reference_accuracy is not None:
        record = verification.reference_accuracy
        output.text(f"accuracy of {record.member}: {record.correct}/{record.total}")
    for note in verification.notes:
        output.note(f"[yellow]note:[/] {_escape(note)}")
    pairs = [row for row in verification.report.pairwise if not row.comparison.passed]
    for row in pairs:
        output.text(
            f"{_FAIL} {_escape(row.candidate)} against {_escape(row.reference)} ({row.kind} images): "
            + _escape("; ".join(row.comparison.failures))
        )
    for result in verification.results:
        if result.passed:
            continue
        output.text(f"{_FAIL} {_escape(result.artifact.file)}")
        for reason in result.reasons:
            output.text(f"     {_escape(reason)}")
        needed = None if result.comparison is None else result.comparison.needed
        if needed is not None:
            output.text(
                f"     it would have passed with --max-rel {needed.max_rel:g} --min-sqnr {needed.sqnr:g}"
                f" --min-top1 {needed.top1:g}"
            )
        if result.layers is not None:
            _layers(output, result.artifact.file, result.layers)


def _row(result: "Result", *, labelled: bool) -> list[str]:
    comparison = result.comparison
    rank = result.summary.largest_rank
    verdict = _PASS if result.passed else _FAIL
    if result.changed:
        verdict += " [yellow]changed[/]"
    cells = [
        _escape(result.artifact.file),
        verdict,
        human_bytes(result.summary.bytes or 0),
        str(len(result.summary.operators)),
        _UNKNOWN if rank is None else str(rank.rank),
    ]
    if comparison is None:
        cells += ["reference", "", ""]
    else:
        agreement = comparison.agreement
        cells += [
            f"{comparison.max_abs:.2e}",
            f"{comparison.sqnr:.1f}",
            "" if agreement is None else f"{agreement:.4g}",
        ]
    if labelled:
        accuracy = result.accuracy
        cells.append("" if accuracy is None else f"{accuracy.correct}/{accuracy.total}")
    if result.artifact.form is not None:
        cells.append(result.artifact.form.label)
    return cells


def _layers(output: Output, file: str, layers: "Sequence[Layer]") -> None:
    """Show each inner tensor: its distance from the reference, and what its own layer adds to it."""
    rows = []
    for layer in layers:
        total, own = layer.total, layer.own
        rows.append(
            [
                _escape(layer.tensor),
                _escape(layer.made_by),
                "" if total is None else f"{total.max_abs:.2e}",
                "" if total is None else f"{total.sqnr:.1f}",
                "" if own is None else f"{own.sqnr:.1f}",
                _FAIL if layer.diverges else _PASS,
            ]
        )
    columns = ["tensor", "made by", "max |Δ|", "SQNR dB", "own SQNR dB", "verdict"]
    output.table(f"{_escape(file)}, layer by layer", columns, rows, right=columns[2:5])


def summary(output: Output, found: "Summary", *, operators: bool) -> None:
    """Show what a file holds and costs."""
    if output.json:
        output.document(found.to_json())
        return
    output.text(f"[bold]{_escape(found.name)}[/]  {found.format}, {human_bytes(found.bytes or 0)}")
    if found.producer:
        output.text(f"written by {_escape(found.producer)}")
    if found.metadata is not None:
        info = found.metadata
        output.text(f"model {_escape(info.name)}, weights {_escape(info.weights or _UNKNOWN)}")
    for title, tensors in (("inputs", found.inputs), ("outputs", found.outputs)):
        rows = [[_escape(t.name), _shape(t.shape), t.dtype or _UNKNOWN] for t in tensors]
        output.table(title, ["name", "shape", "type"], rows)
    rank = found.largest_rank
    totals = [
        ["operators", str(len(found.operators))],
        ["parameters", _number(found.parameters)],
        ["multiply-adds", _number(found.multiply_adds)],
        ["memory access", f"{_number(found.memory_access)} elements, {_number(found.memory_bytes)} bytes"],
        [
            "largest rank",
            _UNKNOWN if rank is None else f"{rank.rank} ({rank.count} tensors, first {rank.tensor})",
        ],
    ]
    output.table("totals", ["", ""], [[name, _escape(value)] for name, value in totals])
    histogram = [[_escape(name), str(count)] for name, count in found.histogram.items()]
    output.table("operators by type", ["type", "count"], histogram, right=["count"])
    if operators:
        output.table(
            "operators",
            ["name", "type", "output", "params", "madds", "access"],
            [
                [
                    _escape(o.name),
                    _escape(o.type),
                    " ".join(_shape(s) for s in o.output_shapes),
                    _number(o.parameters),
                    _number(o.multiply_adds),
                    _number(o.memory_access),
                ]
                for o in found.operators
            ],
            right=["params", "madds", "access"],
        )
    for finding in found.findings:
        output.text(f"[bold]{finding.guideline}[/] {_escape(finding.title)}: {_escape(finding.text)}")


def models(output: Output, variants: "Sequence[Variant]") -> None:
    """Show the registry."""
    if output.json:
        output.document({"schema": "shufflectl.models/1", "models": [v.to_json() for v in variants]})
        return
    rows = []
    for variant in variants:
        published = variant.published
        top1 = None if published is None else published.top1_accuracy
        rows.append(
            [
                variant.name,
                f"{variant.parameters / 1e6:.2f}",
                f"{variant.multiply_adds / 1e6:.1f}",
                "" if top1 is None else f"{top1:.1f}",
                ", ".join(variant.weights),
                "" if published is None else published.source,
            ]
        )
    columns = ["name", "params M", "madds M", "top-1 %", "weights", "published in"]
    output.table("", columns, rows, right=columns[1:4])
    output.note("[dim]madds at 224x224; top-1 as published for ImageNet[/]")


def diagnosis(output: Output, found: "Diagnosis") -> None:
    """Show what works on this machine."""
    if output.json:
        output.document(found.to_json())
        return
    colours = {"ok": "green", "missing": "yellow", "broken": "bold red", "absent": "dim"}
    output.table("machine", ["", ""], [[name, _escape(value)] for name, value in found.machine.items()])
    for group in ("package", "runtime", "target", "device"):
        rows = [
            [_escape(c.name), f"[{colours[c.state]}]{c.state}[/]", _escape(c.detail), _escape(c.remedy)]
            for c in found.checks
            if c.group == group
        ]
        output.table(f"{group}s", ["name", "state", "detail", "how to get it"], rows)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _shape(shape: "Sequence[int | None] | None") -> str:
    return _UNKNOWN if shape is None else _escape("x".join(_UNKNOWN if d is None else str(d) for d in shape))


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"
