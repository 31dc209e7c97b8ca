"""What an export or a check found, as a table or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output, human_bytes
from shufflectl.render.words import FAIL, PASS, UNKNOWN, escape

if TYPE_CHECKING:
    from shufflectl.deploy.check import CheckResult
    from shufflectl.deploy.parity.locate import Layer
    from shufflectl.deploy.verify import Result, Verification

__all__ = ["checked", "exported"]


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
        output.note(f"[dim]written to {escape(folder)}, with manifest.json[/]")
    else:
        output.note(f"[bold]nothing was written to {escape(folder)}[/]")


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
    output.table(
        f"{escape(verification.model)} against {escape(verification.reference)}",
        columns,
        [_row(result, labelled=labelled) for result in verification.results],
        right=columns[2:],
    )
    ran = dict.fromkeys(f"{result.artifact.target}: {result.runtime}" for result in verification.results)
    output.text(f"[dim]run with {escape(', '.join(ran))}[/]")
    forms = dict.fromkeys(
        f"{result.artifact.target}: {result.artifact.form.label}"
        for result in verification.results
        if result.artifact.form is not None
    )
    if forms:
        output.text(f"[dim]shuffles as {escape('; '.join(forms))}[/]")
    if verification.reference_accuracy is not None:
        record = verification.reference_accuracy
        output.text(f"accuracy of {escape(record.member)}: {record.correct}/{record.total}")
    for note in verification.notes:
        output.note(f"[yellow]note:[/] {escape(note)}")
    pairs = [row for row in verification.report.pairwise if not row.comparison.passed]
    for row in pairs:
        output.text(
            f"{FAIL} {escape(row.candidate)} against {escape(row.reference)} ({row.kind} images): "
            + escape("; ".join(row.comparison.failures))
        )
    for result in verification.results:
        if result.passed:
            continue
        output.text(f"{FAIL} {escape(result.artifact.file)}")
        for reason in result.reasons:
            output.text(f"     {escape(reason)}")
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
    verdict = PASS if result.passed else FAIL
    if result.changed:
        verdict += " [yellow]changed[/]"
    cells = [
        escape(result.artifact.file),
        verdict,
        human_bytes(result.summary.bytes or 0),
        str(len(result.summary.operators)),
        UNKNOWN if rank is None else str(rank.rank),
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
    return cells


def _layers(output: Output, file: str, layers: "Sequence[Layer]") -> None:
    """Show each inner tensor: its distance from the reference, and what its own layer adds to it."""
    rows = []
    for layer in layers:
        total, own = layer.total, layer.own
        rows.append(
            [
                escape(layer.tensor),
                escape(layer.made_by),
                "" if total is None else f"{total.max_abs:.2e}",
                "" if total is None else f"{total.sqnr:.1f}",
                "" if own is None else f"{own.sqnr:.1f}",
                FAIL if layer.diverges else PASS,
            ]
        )
    columns = ["tensor", "made by", "max |Δ|", "SQNR dB", "own SQNR dB", "verdict"]
    output.table(f"{escape(file)}, layer by layer", columns, rows, right=columns[2:5])
