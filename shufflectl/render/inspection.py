"""What a file holds, and what runtimes make of it, as tables or as JSON."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output, human_bytes
from shufflectl.render.words import FAIL, PASS, UNKNOWN, escape, number, shape

if TYPE_CHECKING:
    from shufflectl.deploy.inspect.ane import NeuralEngineReport
    from shufflectl.deploy.inspect.facts import Facts
    from shufflectl.deploy.inspect.inspection import Inspection
    from shufflectl.deploy.inspect.ort_layout import LayoutReport
    from shufflectl.deploy.inspect.summary import Summary, TensorSummary

__all__ = ["inspection"]

_SHOWN = 8
"""Layers in floats that are named."""


def inspection(output: Output, found: "Inspection", *, operators: bool) -> None:
    """Show what a file holds and costs, and what runtimes make of it."""
    if output.json:
        output.document(found.to_json())
        return
    summary, facts = found.summary, found.facts
    output.text(f"[bold]{escape(summary.name)}[/]  {summary.format}, {human_bytes(summary.bytes or 0)}")
    if summary.producer:
        output.text(f"written by {escape(summary.producer)}")
    if summary.metadata is not None:
        info = summary.metadata
        output.text(f"model {escape(info.name)}, weights {escape(info.weights or UNKNOWN)}")
        if info.input is not None:
            output.text(f"takes images as {escape(info.input.text)}")
    for title, tensors in (("inputs", summary.inputs), ("outputs", summary.outputs)):
        coded = any(t.codes is not None for t in tensors)
        rows = [
            [escape(t.name), shape(t.shape), t.dtype or UNKNOWN, *([_grid(t)] if coded else [])]
            for t in tensors
        ]
        output.table(title, ["name", "shape", "type", *(["codes"] if coded else [])], rows)
    rank = summary.largest_rank
    totals = [
        ["operators", str(len(summary.operators))],
        ["parameters", number(summary.parameters)],
        ["held as", ", ".join(f"{kind} {number(n)}" for kind, n in summary.parameters_by_type.items())],
        *_arithmetic(summary),
        ["multiply-adds", number(summary.multiply_adds)],
        [
            "memory access",
            f"{number(summary.memory_access)} elements, {number(summary.memory_bytes)} bytes",
        ],
        [
            "largest rank",
            UNKNOWN if rank is None else f"{rank.rank} ({rank.count} tensors, first {rank.tensor})",
        ],
    ]
    if found.calibration is not None:
        totals.append(["calibrated on", found.calibration.text])
        floats = found.calibration.floats
        if floats:
            totals.append(
                ["layers in floats", ", ".join(floats[:_SHOWN]) + (" ..." if floats[_SHOWN:] else "")]
            )
    output.table("totals", ["", ""], [[name, escape(value)] for name, value in totals])
    histogram = [[escape(name), str(count)] for name, count in summary.histogram.items()]
    output.table("operators by type", ["type", "count"], histogram, right=["count"])
    if operators:
        delegated = bool(facts.delegates)
        output.table(
            "operators",
            ["name", "type", "output", "params", "madds", "access", *(["runs in"] if delegated else [])],
            [
                [
                    escape(o.name),
                    escape(o.type),
                    " ".join(shape(s) for s in o.output_shapes),
                    number(o.parameters),
                    number(o.multiply_adds),
                    number(o.memory_access),
                    *([", ".join(facts.runs_in(place))] if delegated else []),
                ]
                for place, o in enumerate(summary.operators)
            ],
            right=["params", "madds", "access"],
        )
    for finding in summary.findings:
        output.text(f"[bold]{finding.guideline}[/] {escape(finding.title)}: {escape(finding.text)}")
    _facts(output, facts, operators=operators)
    for gate in found.gates:
        verdict = PASS if gate.passed else FAIL
        output.text(f"{verdict} {escape(gate.subject)}: {gate.found}, allowed {gate.limit}")


def _grid(tensor: "TensorSummary") -> str:
    """Return what codes at the border stand for: ``int8, 0.0078 x (code + 1)``."""
    codes = tensor.codes
    if codes is None:
        return ""
    sign = "-" if codes.zero_point >= 0 else "+"
    return f"{codes.dtype or UNKNOWN}: {codes.scale:.6g} x (code {sign} {abs(codes.zero_point)})"


def _arithmetic(summary: "Summary") -> list[list[str]]:
    """Return how much of a file with codes computes in them; nothing of a file without."""
    counts = summary.arithmetic
    if not counts["codes"] and not counts["conversion"]:
        return []
    total, coded = summary.multiply_adds, summary.multiply_adds_in_codes
    share = f" ({coded / total:.1%} of the multiply-adds)" if total and coded is not None else ""
    said = f"{counts['codes']} operators in codes{share}, {counts['floats']} in floats"
    return [["computes", f"{said}, {counts['conversion']} conversions"]]


def _facts(output: Output, facts: "Facts", *, operators: bool) -> None:
    """Show what runtimes and delegates make of a file."""
    if facts.delegates:
        _delegates(output, facts, operators=operators)
    if facts.layout is not None:
        _layout(output, facts.layout, facts.runtime, operators=operators)
    if facts.neural_engine is not None:
        _neural_engine(output, facts.neural_engine, operators=operators)
    if facts.unknown:
        output.text(f"[yellow]runtime:[/] {escape(facts.unknown)}")


def _delegates(output: Output, facts: "Facts", *, operators: bool) -> None:
    rows = []
    for report in sorted(facts.delegates, key=lambda report: report.delegate != "xnnpack"):
        partitions = str(report.partitions)
        if report.most_partitions is not None and report.partitions > report.most_partitions:
            partitions += f", takes {report.most_partitions}"
        rows.append([report.title, "rules", f"{report.delegated} of {report.operators}", partitions])
        if report.delegate == "xnnpack" and facts.xnnpack is not None:
            measured = facts.xnnpack
            share = f"{measured.delegated} of {report.operators}"
            rows.insert(0, [report.title, measured.runtime, share, str(measured.partitions)])
    columns = ["delegate", "by", "operators taken", "partitions"]
    output.table("delegates", columns, [[escape(cell) for cell in row] for row in rows])
    if facts.xnnpack is not None and not facts.xnnpack.agrees:
        output.text(f"[yellow]rules and measurement differ:[/] {escape(facts.xnnpack.difference)}")
    if facts.split_groups:
        output.text(
            f"GPU delegate: {len(facts.split_groups)} grouped convolutions become one for each group: "
            "their channels are not in multiples of 4"
        )
    for report in facts.delegates:
        left = [(f.type, f.name, f.why) for f in facts.fallback(report.delegate)]
        _left(output, report.title, left, operators=operators)


def _layout(output: Output, layout: "LayoutReport", runtime: str, *, operators: bool) -> None:
    if layout.integers:
        kinds = ", ".join(f"{count} {kind}" for kind, count in layout.integers.items())
        output.text(
            f"[bold]{escape(runtime)}[/] on this CPU ({layout.machine}) runs kernels of codes: {kinds}; "
            f"{layout.conversions - layout.unpacked} conversions of activations are left"
        )
    if layout.unpacked:
        output.text(
            f"[bold]{escape(runtime)}[/] unpacks {layout.unpacked} weights in every run: here codes save "
            "space, not time"
        )
    if layout.integers and not layout.blocked and not layout.plain:
        return
    if layout.block is None:
        output.text(f"[bold]{escape(runtime)}[/] has no blocked layout on this CPU ({layout.machine})")
    else:
        size = layout.reordered_bytes
        output.text(
            f"[bold]{escape(runtime)}[/] on this CPU ({layout.machine}, blocks of {layout.block} channels; "
            f"another CPU has others): {layout.blocked} convolutions and poolings in the blocked layout, "
            f"{len(layout.plain)} not; {layout.fused} activations fused; {len(layout.reorders)} reorders "
            f"({layout.count('ReorderInput')} in, {layout.count('ReorderOutput')} out), "
            f"{UNKNOWN if size is None else human_bytes(size)} moved"
        )
    plain = [(p.type, p.name, p.why) for p in layout.plain]
    _left(output, "plain layout", plain, operators=operators)
    if operators and layout.reorders:
        output.table(
            "reorders",
            ["type", "tensor", "beside", "bytes"],
            [
                [r.type, escape(r.tensor), escape(", ".join(r.neighbours)), number(r.bytes)]
                for r in layout.reorders
            ],
            right=["bytes"],
        )


def _neural_engine(output: Output, found: "NeuralEngineReport", *, operators: bool) -> None:
    output.text(
        f"[bold]Neural Engine[/]: {len(found.leaving)} of {found.operations} operations leave it, as Apple "
        f"states or users report; {len(found.interleaved)} shuffles are concat(interleave), "
        f"{len(found.shuffles)} tensors of shuffles have rank 5; {escape(found.caveat)}"
    )
    for certainty in ("stated", "reported", "conflicting"):
        notes = [(n.type, n.operation, n.why) for n in found.notes if n.certainty == certainty]
        _left(output, f"Neural Engine, {certainty}", notes, operators=operators)


def _left(output: Output, title: str, left: "Sequence[tuple[str, str, str]]", *, operators: bool) -> None:
    """Show operators (type, name, why) that run elsewhere: a line for each reason, or each of them."""
    if not left:
        return
    if operators:
        rows = [[escape(cell) for cell in row] for row in left]
        output.table(f"left by {escape(title)}", ["type", "name", "why"], rows)
        return
    reasons: dict[str, list[tuple[str, str]]] = {}
    for kind, name, why in left:
        reasons.setdefault(re.sub(r" of '[^']*'", "", why), []).append((kind, name))
    for why, found in reasons.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _ in found).items())
        output.text(f"[bold]left by {escape(title)}[/]: {escape(f'{kinds} (first {found[0][1]}): {why}')}")
