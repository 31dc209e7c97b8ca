"""Latencies and their comparisons, as tables or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output, human_bytes
from shufflectl.render.words import FAIL, PASS, UNKNOWN, escape, plain

if TYPE_CHECKING:
    from shufflectl.benchmarks.results import Benchmark, Comparison, Flag, Suite

__all__ = ["compared", "measured"]

_VERDICTS = {"pass": PASS, "fail": FAIL, "inconclusive": "[yellow]inconclusive[/]", None: ""}
_STATUS = {"ok": "", "unstable": "[yellow]unstable[/]", "failed": FAIL}


def measured(output: Output, suite: "Suite", skipped: Sequence[tuple[str, str]] = ()) -> None:
    """Show what was measured."""
    if output.json:
        output.document_text(suite.to_text(indent=2))
    else:
        _benchmarks(output, suite.benchmarks)
        if suite.interrupted:
            output.text("[bold yellow]interrupted:[/] the measurement was ended before all rounds were run")
        if suite.comparisons:
            _comparisons(output, suite.comparisons)
    for name, why in skipped:
        output.note(f"[yellow]not measured:[/] {_word(name)}: {_word(why)}")


def compared(output: Output, comparisons: "Sequence[Comparison]") -> None:
    """Show comparisons of stored results."""
    if output.json:
        from shufflectl.benchmarks.compare import comparisons_to_json

        output.document(comparisons_to_json(comparisons))
        return
    _comparisons(output, comparisons)


def _word(text: str) -> str:
    return escape(plain(text))


def _benchmarks(output: Output, benchmarks: "Sequence[Benchmark]") -> None:
    rows = []
    for benchmark in benchmarks:
        summary = benchmark.summary
        cells = [_word(benchmark.name), _word(benchmark.runner.name), _threads(benchmark.config.threads)]
        if summary is None:
            rows.append([*cells, "", "", "", "", "", "", "", "", _STATUS[benchmark.status]])
            continue
        interval = summary.interval_ns
        cells += [
            _ms(summary.median_ns),
            UNKNOWN if interval is None else f"{_ms(interval[0])}-{_ms(interval[1])}",
            _ms(summary.p90_ns),
            _ms(summary.p99_ns),
            _ms(summary.init_ns),
            _ms(summary.first_ns),
            "" if summary.peak_rss_bytes is None else human_bytes(int(summary.peak_rss_bytes)),
            str(summary.rounds),
            _STATUS[benchmark.status],
        ]
        rows.append(cells)
    columns = ["file", "runner", "threads", "median ms", "95 % interval", "p90", "p99", "load", "first"]
    columns += ["peak memory", "rounds", ""]
    output.table("", columns, rows, right=columns[2:-1])
    for line in _conditions(benchmarks):
        output.text(f"[dim]{_word(line)}[/]")
    for benchmark in benchmarks:
        if benchmark.reasons:
            state = "failed" if benchmark.status == "failed" else "unstable"
            output.text(
                f"[bold yellow]{state}:[/] {_word(_title(benchmark))}: {_word('; '.join(benchmark.reasons))}"
            )
    _flags(output, benchmarks)


def _title(benchmark: "Benchmark") -> str:
    from shufflectl.benchmarks.results import threads_in_words

    return f"{benchmark.name} ({benchmark.runner.name}, {threads_in_words(benchmark.config.threads)})"


def _threads(count: int | None) -> str:
    """Return a number of threads for a column of them."""
    return "its own" if count is None else str(count)


def _flags(output: Output, benchmarks: "Sequence[Benchmark]") -> None:
    """Show each warning once, with the files that it is about."""
    found: dict[tuple[str, str], list[tuple[Benchmark, Flag]]] = {}
    for benchmark in benchmarks:
        for flag in benchmark.summary.flags if benchmark.summary is not None else ():
            found.setdefault((flag.name, flag.advice), []).append((benchmark, flag))
    for (name, advice), entries in found.items():
        output.text(f"[yellow]{_word(name)}:[/]")
        for benchmark, flag in entries:
            output.text(f"  {_word(_title(benchmark))}: {_word(flag.text)}")
        output.text(f"  [cyan]{_word(advice)}[/]")


def _conditions(benchmarks: "Sequence[Benchmark]") -> list[str]:
    """Return under which conditions the figures hold."""
    first = benchmarks[0]
    target = first.target
    lines = []
    name = " ".join(filter(None, (target.model, target.soc))) or target.cpu or target.abi
    cores = f"{target.cores} cores" if target.cores else ""
    virtual = "virtual machine" if target.virtual else ""
    lines.append(", ".join(filter(None, (name, cores, virtual, target.os))))
    runners = dict.fromkeys(f"{b.runner.name} {b.runner.version}".strip() for b in benchmarks)
    precisions = dict.fromkeys(b.config.precision for b in benchmarks)
    config = first.config
    pinned = f"pinned to {config.affinity}" if config.affinity else "not pinned"
    lines.append(
        f"{', '.join(runners)}; {config.accelerator}, {', '.join(precisions)}, {pinned}; {config.mode}, "
        f"{config.rounds} rounds, seed {config.seed}"
    )
    took = dict.fromkeys(_delegation(b) for b in benchmarks)
    lines.append(_machine(benchmarks) + "".join(f"; {text}" for text in took if text))
    return lines


def _delegation(benchmark: "Benchmark") -> str:
    took = next((entry.delegation for entry in benchmark.rounds if entry.delegation is not None), None)
    if took is None or took.replaced is None:
        return ""
    pieces = (
        "" if took.partitions is None else f" in {took.partitions} partition{'s' * (took.partitions != 1)}"
    )
    return f"{took.accelerator} ran {took.replaced} of {took.total} operators{pieces}"


def _machine(benchmarks: "Sequence[Benchmark]") -> str:
    """Return what the machine did meanwhile."""
    states = [e.after for b in benchmarks for e in b.rounds if e.after is not None]
    loads = [state.load_1m for state in states if state.load_1m is not None]
    governors = dict.fromkeys(state.governor for state in states if state.governor)
    words = [f"governor {', '.join(governors) or 'not visible'}"]
    if loads:
        words.append(f"load average {min(loads):.1f} to {max(loads):.1f}")
    for share, text in (("stolen", "stolen"), ("others", "other programs"), ("waited", "waiting for a core")):
        seen = sorted(v for v in (getattr(state, share) for state in states) if v is not None)
        if seen:
            words.append(f"{text} {seen[len(seen) // 2]:.1%}")
    return ", ".join(words)


def _comparisons(output: Output, comparisons: "Sequence[Comparison]") -> None:
    judged = any(entry.tolerance is not None for entry in comparisons)
    columns = ["candidate", "baseline", "runner", "threads", "time ratio", "95 % interval", "", "rounds"]
    rows = []
    for entry in comparisons:
        interval = UNKNOWN if entry.interval is None else "{:.3f}-{:.3f}".format(*entry.interval)
        rows.append(
            [
                _word(entry.candidate),
                _word(entry.baseline),
                _word(entry.runner),
                _threads(entry.threads),
                f"{entry.ratio:.3f}",
                interval,
                entry.mode,
                str(entry.rounds),
                *([_VERDICTS[entry.verdict]] if judged else []),
                _word(entry.reason),
            ]
        )
    columns += [*(["verdict"] if judged else []), "finding"]
    output.table("", columns, rows, right=["threads", "time ratio", "95 % interval", "rounds"])
    if any(entry.mode == "unpaired" for entry in comparisons):
        output.text(
            "[dim]unpaired: the two were measured in separate processes, so what else changed in between is "
            "in the ratio too[/]"
        )


def _ms(nanoseconds: float | None) -> str:
    return "" if nanoseconds is None else f"{nanoseconds / 1e6:.4g}"
