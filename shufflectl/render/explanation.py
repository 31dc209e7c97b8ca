"""Shuffle sites and their forms, as tables or as JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output
from shufflectl.render.words import escape, shape

if TYPE_CHECKING:
    from shufflectl.deploy.explanation.result import ExplainedSite, Explanation, Made

__all__ = ["explained"]


def explained(output: Output, found: "Explanation") -> None:
    """Show every shuffle site, and what each target makes of it."""
    if output.json:
        output.document(found.to_json())
        return
    subject = found.subject
    inputs = ", ".join(f"{name} {shape(sizes)}" for name, sizes in subject.inputs)
    written = f", written by {subject.producer}" if subject.producer else ""
    output.text(f"[bold]{escape(subject.name)}[/]  {escape(inputs)}, opset {subject.opset}{escape(written)}")
    for change in subject.changes:
        output.text(f"[dim]made plain first: {escape(change)}[/]")
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
        output.text(f"[yellow]left alone:[/] {escape(nodes)}: {escape(entry.reason)}")
    if subject.frozen:
        output.text(f"[yellow]kept as it is:[/] {escape(subject.frozen)}")
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
        cells = [escape(form.candidate.label), *(str(count or "") for count in counts)]
        rows.append([*cells, _kb(form.report.bytes_after), str(form.report.rank_after)])
        rows[-1].append(" ".join(target[0] if target in form.targets else "-" for target in targets))
    columns = ["form", "Concat", "Slice Split Gather", "Transpose", "Conv", "kB", "rank", "for"]
    output.table("every form, for the whole graph", columns, rows, right=columns[1:7])
    legend = ", ".join(f"{target[0]} {target}" for target in targets)
    output.text(f"  for: targets for which it is worth measuring on a phone: {legend}")
    for form in found.forms:
        if form.why_not:
            output.text(f"  {escape(form.candidate.label)} changes nothing: {escape(form.why_not)}")


def _site(found: "ExplainedSite") -> list[str]:
    site = found.site
    whole = [o for o in site.outputs if len(o.map) == site.channels]
    gives = "+".join(str(len(o.map)) for o in site.outputs if o not in whole) or str(site.channels)
    groups = "any" if site.form is None else str(site.form.groups) if site.form.groups > 1 else ""
    return [
        str(found.number),
        escape(found.where),
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
        f"[bold]{made.target} {made.precision}: {escape(choice.candidate.label)}[/]"
        + (" [yellow](not applied)[/]" if frozen else "" if report.changed else " (nothing changes)")
    )
    output.text(f"  why: {escape(choice.why)}")
    if choice.source:
        output.text(f"  source: {escape(choice.source)}")
    if choice.phone:
        output.text(f"  on phones: {escape(choice.phone)}")
    output.text(
        f"  operators {sum(report.operators_before.values())} -> {sum(report.operators_after.values())}"
        f" ({escape(_changed(report.operators_before, report.operators_after))}),"
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
        output.text(f"  {_numbers(numbers)}  {escape(text)}")
    for site in made.added:
        if site.bytes_before or site.bytes_after:
            output.text(
                f"  added: {escape(site.description)}: {site.form}, {_counts(site.operators_after)},"
                f" {_kb(site.bytes_after)} kB"
            )
    for note in report.notes:
        output.text(f"  note: {escape(note)}")


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
