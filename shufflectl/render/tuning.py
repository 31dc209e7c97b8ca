"""What a tuning found, as tables or as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shufflectl.console import Output
from shufflectl.render.words import escape, plain

if TYPE_CHECKING:
    from shufflectl.benchmarks.tuned import Race, TuneResult

__all__ = ["tuned"]


def tuned(
    output: Output,
    found: "TuneResult",
    document: dict[str, Any],
    path: Path,
    calibration: Path | None = None,
) -> None:
    """Show the races, what was chosen and why."""
    if output.json:
        output.document(document)
        return
    for number, entry in enumerate(found.races):
        mark = ", chosen" if len(found.races) > 1 and number == found.chosen else ""
        _race(output, found, entry, mark)
    for note in found.notes:
        output.note(f"[yellow]note:[/] {escape(note)}")
    if calibration is not None:
        where = escape(plain(str(calibration)))
        output.note(f"[dim]calibrated once; export with --tuning and --calibration {where}[/]")
    output.note(f"[dim]written to {escape(plain(str(path)))} after {found.elapsed_s:.0f} s[/]")


def _race(output: Output, found: "TuneResult", entry: "Race", mark: str) -> None:
    from shufflectl.benchmarks.results import threads_in_words

    measured = [form for form in entry.entries if form.all]
    measured.sort(key=lambda form: (-len(form.ratios), sorted(form.all)[len(form.all) // 2]))
    threads = threads_in_words(entry.threads)
    output.table(
        f"{escape(found.model.name)} as {found.target} in {found.precision}, {threads}{mark}",
        ["form", "rungs", "rounds", "of native's time", "in the selection"],
        [
            [
                escape(form.form.name),
                str(len(form.ratios)),
                str(len(form.all)),
                f"{sorted(form.all)[len(form.all) // 2]:.3f}",
                escape(form.dropped.partition(": ")[2] or form.dropped) or "[green]looked fastest[/]",
            ]
            for form in measured
        ],
        right=["rungs", "rounds", "of native's time"],
    )
    for form in entry.entries:
        if not form.all and form.written is not None and form.written.problem:
            output.text(f"[red]left out[/] {escape(form.form.name)}: {escape(form.written.problem)}")
    device = found.device.model or found.device.cpu
    output.text(
        f"[dim]run with {escape(f'{found.runner.name} {found.runner.version} on {plain(device)}')}[/]"
    )
    choice = entry.entries[entry.choice].form.name
    output.text(f"[bold]{escape(choice)}[/]: {escape(entry.why)}")
