"""Results as tables for people, or as the JSON document that programs read."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output, human_bytes

if TYPE_CHECKING:
    from shufflectl.deploy.check import CheckResult
    from shufflectl.deploy.doctor import Diagnosis
    from shufflectl.deploy.evaluate import Evaluation, FileScore, ModelScores
    from shufflectl.deploy.explain import ExplainedSite, Explanation, Made
    from shufflectl.deploy.inspect.ane import NeuralEngineReport
    from shufflectl.deploy.inspect.facts import Facts
    from shufflectl.deploy.inspect.inspection import Inspection
    from shufflectl.deploy.inspect.ort_layout import LayoutReport
    from shufflectl.deploy.labelled import Damaged
    from shufflectl.deploy.parity.locate import Layer
    from shufflectl.deploy.verify import Result, Verification
    from shufflectl.models.checkpoints.identify import Identification
    from shufflectl.models.zoo import Variant

__all__ = ["checked", "diagnosis", "evaluated", "explained", "exported", "identified", "inspection", "models"]

_PASS = "[green]pass[/]"  # noqa: S105 - a verdict
_FAIL = "[bold red]FAIL[/]"
_UNKNOWN = "?"
_SHOWN = 10


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
    output.table(
        f"{_escape(verification.model)} against {_escape(verification.reference)}",
        columns,
        [_row(result, labelled=labelled) for result in verification.results],
        right=columns[2:],
    )
    ran = dict.fromkeys(f"{result.artifact.target}: {result.runtime}" for result in verification.results)
    output.text(f"[dim]run with {_escape(', '.join(ran))}[/]")
    forms = dict.fromkeys(
        f"{result.artifact.target}: {result.artifact.form.label}"
        for result in verification.results
        if result.artifact.form is not None
    )
    if forms:
        output.text(f"[dim]shuffles as {_escape('; '.join(forms))}[/]")
    if verification.reference_accuracy is not None:
        record = verification.reference_accuracy
        output.text(f"accuracy of {_escape(record.member)}: {record.correct}/{record.total}")
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


def evaluated(output: Output, result: "Evaluation") -> None:
    """Show how often files are right."""
    if output.json:
        output.document(result.to_json())
        return
    for model in result.models:
        _scores(output, model, result)
    _unusable(output, "not decoded", result.damaged)
    _unusable(output, "not looked into", result.refused)


def _scores(output: Output, model: "ModelScores", result: "Evaluation") -> None:
    columns = ["file", "top-1", "top-5", "agrees with torch", "images/s"]
    if result.min_top1 is not None:
        columns.insert(1, "verdict")
    rows = []
    if model.reference is not None:
        score = model.reference
        rows.append(
            ["torch", _share(score.share), _share(score.share5), "", f"{score.images_per_second:.4g}"]
        )
        if result.min_top1 is not None:
            rows[0].insert(1, "")
    for file in model.files:
        score = file.score
        cells = [_escape(file.artifact.file), _share(score.share), _share(score.share5)]
        cells += [_share(file.agreement_share), f"{score.images_per_second:.4g}"]
        if result.min_top1 is not None:
            cells.insert(1, _FAIL if file in result.failing else _PASS)
        rows.append(cells)
    output.table(
        f"{_escape(model.model)} on {result.images} images of {result.classes} classes "
        f"({_escape(_plain(result.data))})",
        columns,
        rows,
        right=[column for column in columns[1:] if column != "verdict"],
    )
    ran = dict.fromkeys(f"{file.artifact.target}: {file.runtime}" for file in model.files)
    output.text(f"[dim]run with {_escape(', '.join(ran))}[/]")
    if model.classes_by == "order":
        output.note(
            "[yellow]note:[/] no output has a folder's name: folders and outputs were matched in sorted order"
        )
    for file in model.files:
        _feeding(output, file)


def _feeding(output: Output, file: "FileScore") -> None:
    """Say what explains a poor result, and what else a reader must know of it."""
    name = _escape(file.artifact.file)
    if file.preprocess_from == "assumed":
        output.note(
            f"[yellow]note:[/] {name} does not say how it is fed: ImageNet's mean and standard deviation are "
            "assumed"
        )
    if file.score.nonfinite:
        output.text(f"[yellow]{name}:[/] outputs of {file.score.nonfinite} images are not finite")
    if file.explanation is not None:
        output.text(f"[bold yellow]{name}:[/] {_escape(_plain(file.explanation.sentence))}")
    elif file.explained:
        output.text(f"[dim]{name}: no other preprocessing explains what is wrong[/]")


def _unusable(output: Output, what: str, files: "Sequence[Damaged]") -> None:
    """Name the first of the files that were left out."""
    if not files:
        return
    output.text(f"[yellow]{len(files)} {what}:[/]")
    for entry in files[:_SHOWN]:
        output.text(f"  {_escape(_plain(entry.file))}: {_escape(_plain(entry.why))}")
    if len(files) > _SHOWN:
        output.text(f"  and {len(files) - _SHOWN} more; --json names all")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _plain(text: str) -> str:
    """Return a file's name without what would steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def inspection(output: Output, found: "Inspection", *, operators: bool) -> None:
    """Show what a file holds and costs, and what runtimes make of it."""
    if output.json:
        output.document(found.to_json())
        return
    summary, facts = found.summary, found.facts
    output.text(f"[bold]{_escape(summary.name)}[/]  {summary.format}, {human_bytes(summary.bytes or 0)}")
    if summary.producer:
        output.text(f"written by {_escape(summary.producer)}")
    if summary.metadata is not None:
        info = summary.metadata
        output.text(f"model {_escape(info.name)}, weights {_escape(info.weights or _UNKNOWN)}")
    for title, tensors in (("inputs", summary.inputs), ("outputs", summary.outputs)):
        rows = [[_escape(t.name), _shape(t.shape), t.dtype or _UNKNOWN] for t in tensors]
        output.table(title, ["name", "shape", "type"], rows)
    rank = summary.largest_rank
    totals = [
        ["operators", str(len(summary.operators))],
        ["parameters", _number(summary.parameters)],
        ["multiply-adds", _number(summary.multiply_adds)],
        [
            "memory access",
            f"{_number(summary.memory_access)} elements, {_number(summary.memory_bytes)} bytes",
        ],
        [
            "largest rank",
            _UNKNOWN if rank is None else f"{rank.rank} ({rank.count} tensors, first {rank.tensor})",
        ],
    ]
    output.table("totals", ["", ""], [[name, _escape(value)] for name, value in totals])
    histogram = [[_escape(name), str(count)] for name, count in summary.histogram.items()]
    output.table("operators by type", ["type", "count"], histogram, right=["count"])
    if operators:
        delegated = bool(facts.delegates)
        output.table(
            "operators",
            ["name", "type", "output", "params", "madds", "access", *(["runs in"] if delegated else [])],
            [
                [
                    _escape(o.name),
                    _escape(o.type),
                    " ".join(_shape(s) for s in o.output_shapes),
                    _number(o.parameters),
                    _number(o.multiply_adds),
                    _number(o.memory_access),
                    *([", ".join(facts.runs_in(place))] if delegated else []),
                ]
                for place, o in enumerate(summary.operators)
            ],
            right=["params", "madds", "access"],
        )
    for finding in summary.findings:
        output.text(f"[bold]{finding.guideline}[/] {_escape(finding.title)}: {_escape(finding.text)}")
    _facts(output, facts, operators=operators)
    for gate in found.gates:
        verdict = _PASS if gate.passed else _FAIL
        output.text(f"{verdict} {_escape(gate.subject)}: {gate.found}, allowed {gate.limit}")


def _facts(output: Output, facts: "Facts", *, operators: bool) -> None:
    """Show what runtimes and delegates make of a file."""
    if facts.delegates:
        _delegates(output, facts, operators=operators)
    if facts.layout is not None:
        _layout(output, facts.layout, facts.runtime, operators=operators)
    if facts.neural_engine is not None:
        _neural_engine(output, facts.neural_engine, operators=operators)
    if facts.unknown:
        output.text(f"[yellow]runtime:[/] {_escape(facts.unknown)}")


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
    output.table("delegates", columns, [[_escape(cell) for cell in row] for row in rows])
    if facts.xnnpack is not None and not facts.xnnpack.agrees:
        output.text(f"[yellow]rules and measurement differ:[/] {_escape(facts.xnnpack.difference)}")
    if facts.split_groups:
        output.text(
            f"GPU delegate: {len(facts.split_groups)} grouped convolutions become one for each group: "
            "their channels are not in multiples of 4"
        )
    for report in facts.delegates:
        left = [(f.type, f.name, f.why) for f in facts.fallback(report.delegate)]
        _left(output, report.title, left, operators=operators)


def _layout(output: Output, layout: "LayoutReport", runtime: str, *, operators: bool) -> None:
    if layout.block is None:
        output.text(f"[bold]{_escape(runtime)}[/] has no blocked layout on this CPU ({layout.machine})")
    else:
        size = layout.reordered_bytes
        output.text(
            f"[bold]{_escape(runtime)}[/] on this CPU ({layout.machine}, blocks of {layout.block} channels; "
            f"another CPU has others): {layout.blocked} convolutions and poolings in the blocked layout, "
            f"{len(layout.plain)} not; {layout.fused} activations fused; {len(layout.reorders)} reorders "
            f"({layout.count('ReorderInput')} in, {layout.count('ReorderOutput')} out), "
            f"{_UNKNOWN if size is None else human_bytes(size)} moved"
        )
    plain = [(p.type, p.name, p.why) for p in layout.plain]
    _left(output, "plain layout", plain, operators=operators)
    if operators and layout.reorders:
        output.table(
            "reorders",
            ["type", "tensor", "beside", "bytes"],
            [
                [r.type, _escape(r.tensor), _escape(", ".join(r.neighbours)), _number(r.bytes)]
                for r in layout.reorders
            ],
            right=["bytes"],
        )


def _neural_engine(output: Output, found: "NeuralEngineReport", *, operators: bool) -> None:
    output.text(
        f"[bold]Neural Engine[/]: {len(found.leaving)} of {found.operations} operations leave it, as Apple "
        f"states or users report; {len(found.interleaved)} shuffles are concat(interleave), "
        f"{len(found.shuffles)} tensors of shuffles have rank 5; {_escape(found.caveat)}"
    )
    for certainty in ("stated", "reported", "conflicting"):
        notes = [(n.type, n.operation, n.why) for n in found.notes if n.certainty == certainty]
        _left(output, f"Neural Engine, {certainty}", notes, operators=operators)


def _left(output: Output, title: str, left: "Sequence[tuple[str, str, str]]", *, operators: bool) -> None:
    """Show operators (type, name, why) that run elsewhere: a line for each reason, or each of them."""
    if not left:
        return
    if operators:
        rows = [[_escape(cell) for cell in row] for row in left]
        output.table(f"left by {_escape(title)}", ["type", "name", "why"], rows)
        return
    reasons: dict[str, list[tuple[str, str]]] = {}
    for kind, name, why in left:
        reasons.setdefault(re.sub(r" of '[^']*'", "", why), []).append((kind, name))
    for why, found in reasons.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _ in found).items())
        output.text(f"[bold]left by {_escape(title)}[/]: {_escape(f'{kinds} (first {found[0][1]}): {why}')}")


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
                ", ".join(variant.words),
                "" if published is None else published.source,
            ]
        )
    columns = ["name", "params M", "madds M", "top-1 %", "weights", "published in"]
    output.table("", columns, rows, right=columns[1:4])
    output.note("[dim]madds at 224x224; top-1 as published for ImageNet[/]")


def identified(output: Output, found: "Identification") -> None:
    """Show what a checkpoint is, or what it nearly is."""
    if output.json:
        output.document(found.to_json())
        return
    if found.match is not None:
        output.text(f"[bold]{_escape(found.file.path.name)}[/]  {_escape(found.match.variant.name)}")
        rows = [[f.what, _escape(f.value), _escape(f.why)] for f in found.match.findings]
        output.table("", ["", "", "as"], rows)
        return
    rows = [
        [_escape(candidate.variant.name), candidate.layout.name, what, _escape(which)]
        for candidate in found.candidates
        for what, which in candidate.summary
    ]
    if rows:
        output.table("the nearest networks, and what does not fit", ["model", "layout", "tensors", ""], rows)


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


def explained(output: Output, found: "Explanation") -> None:
    """Show every shuffle site, and what each target makes of it."""
    if output.json:
        output.document(found.to_json())
        return
    subject = found.subject
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in subject.inputs)
    written = f", written by {subject.producer}" if subject.producer else ""
    output.text(
        f"[bold]{_escape(subject.name)}[/]  {_escape(inputs)}, opset {subject.opset}{_escape(written)}"
    )
    for change in subject.changes:
        output.text(f"[dim]made plain first: {_escape(change)}[/]")
    shuffles = sum(site.site.shuffles for site in found.sites)
    kinds = "all of them" if shuffles == len(found.sites) else f"{shuffles} of them"
    if found.sites:
        title = f"{len(found.sites)} sites where channels are joined, moved or divided; {kinds} move channels"
        columns = ["#", "where", "joins", "g", "gives", "size", "operators", "kB"]
        rows = [_site(site) for site in found.sites]
        output.table(title, columns, rows, right=["#", "kB"])
    else:
        output.text("there is no channel shuffle, concat or split")
    for entry in found.left_alone:
        nodes = ", ".join(entry.nodes)
        output.text(f"[yellow]left alone:[/] {_escape(nodes)}: {_escape(entry.reason)}")
    if subject.frozen:
        output.text(f"[yellow]kept as it is:[/] {_escape(subject.frozen)}")
    for made in found.results:
        _made(output, made, frozen=bool(subject.frozen))
    if found.forms:
        _forms(output, found)


def _forms(output: Output, found: "Explanation") -> None:
    """Show what each form leaves of the whole graph, a line each."""
    targets = list(dict.fromkeys(made.target for made in found.results))
    rows = []
    for form in found.forms:
        left = form.report.operators_after
        cuts = sum(left.get(name, 0) for name in ("Gather", "Slice", "Split"))
        counts = [left.get("Concat", 0), cuts, left.get("Transpose", 0), left.get("Conv", 0)]
        cells = [_escape(form.candidate.label), *(str(count or "") for count in counts)]
        rows.append([*cells, _kb(form.report.bytes_after), str(form.report.rank_after)])
        rows[-1].append(" ".join(target[0] if target in form.targets else "-" for target in targets))
    columns = ["form", "Concat", "Slice Split Gather", "Transpose", "Conv", "kB", "rank", "for"]
    output.table("every form, for the whole graph", columns, rows, right=columns[1:7])
    legend = ", ".join(f"{target[0]} {target}" for target in targets)
    output.text(f"  for: targets for which it is worth measuring on a phone: {legend}")
    for form in found.forms:
        if form.why_not:
            output.text(f"  {_escape(form.candidate.label)} changes nothing: {_escape(form.why_not)}")


def _site(found: "ExplainedSite") -> list[str]:
    site = found.site
    whole = [o for o in site.outputs if len(o.map) == site.channels]
    gives = "+".join(str(len(o.map)) for o in site.outputs if o not in whole) or str(site.channels)
    groups = "any" if site.form is None else str(site.form.groups) if site.form.groups > 1 else ""
    return [
        str(found.number),
        _escape(found.where),
        "+".join(str(count) for _, count in site.inputs),
        groups,
        gives + (" and all" if whole and len(whole) < len(site.outputs) else ""),
        "x".join(map(str, found.size)),
        _counts(found.operators),
        _kb(found.bytes_moved),
    ]


def _made(output: Output, made: "Made", *, frozen: bool) -> None:
    """Show what one target gets."""
    choice, report = made.choice, made.report
    output.text(
        f"[bold]{made.target} {made.precision}: {_escape(choice.candidate.label)}[/]"
        + (" [yellow](not applied)[/]" if frozen else "" if report.changed else " (nothing changes)")
    )
    output.text(f"  why: {_escape(choice.why)}")
    if choice.source:
        output.text(f"  source: {_escape(choice.source)}")
    if choice.phone:
        output.text(f"  on phones: {_escape(choice.phone)}")
    output.text(
        f"  operators {sum(report.operators_before.values())} -> {sum(report.operators_after.values())}"
        f" ({_escape(_changed(report.operators_before, report.operators_after))}),"
        f" {_kb(report.bytes_before)} -> {_kb(report.bytes_after)} kB moved,"
        f" largest rank {report.rank_before} -> {report.rank_after}"
    )
    rows: list[tuple[list[int], list[str]]] = []
    whys: dict[str, list[int]] = {}
    for number, site in enumerate(made.sites, 1):
        cells = [site.form, _counts(site.operators_after), _kb(site.bytes_before), _kb(site.bytes_after)]
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(number)
        else:
            rows.append(([number], cells))
        whys.setdefault(f"{site.form}: {site.why}", []).append(number)
        for reason in site.refused:
            whys.setdefault(f"refused: {reason}", []).append(number)
    if rows:
        columns = ["#", "form", "in its place", "kB before", "kB after"]
        table = [[_numbers(numbers), *cells] for numbers, cells in rows]
        output.table("", columns, table, right=["kB before", "kB after"])
    for text, numbers in whys.items():
        output.text(f"  {_numbers(numbers)}  {_escape(text)}")
    for site in made.added:
        if site.bytes_before or site.bytes_after:
            output.text(
                f"  added: {_escape(site.description)}: {site.form}, {_counts(site.operators_after)},"
                f" {_kb(site.bytes_after)} kB"
            )
    for note in report.notes:
        output.text(f"  note: {_escape(note)}")


def _kb(count: int) -> str:
    return f"{count / 1000:,.1f}"


def _counts(operators: Mapping[str, int]) -> str:
    """Return operators as ``Concat 2xReshape``."""
    return " ".join(name if count == 1 else f"{count}x{name}" for name, count in operators.items()) or "-"


def _changed(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Return the operators whose number changes, as ``Conv 56 -> 93``."""
    names = [name for name in sorted({*before, *after}) if before.get(name, 0) != after.get(name, 0)]
    return ", ".join(f"{n} {before.get(n, 0)} -> {after.get(n, 0)}" for n in names) or "the same"


def _numbers(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ``1-3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _shape(shape: "Sequence[int | None] | None") -> str:
    return _UNKNOWN if shape is None else _escape("x".join(_UNKNOWN if d is None else str(d) for d in shape))


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"
