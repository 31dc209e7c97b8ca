"""How much time a candidate takes relative to a baseline, and whether that passes.

Paired: a process held both files, and its ratio of medians is one observation. Unpaired: the rounds of two
measurements at different times or in different processes; everything that changed in between is in the ratio
too, and the comparison says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from shufflectl.benchmarks.records import encode
from shufflectl.benchmarks.results import Benchmark, Comparison, Suite, Verdict
from shufflectl.benchmarks.statistics import median, median_interval, ratio_of_samples
from shufflectl.errors import GateError, InputError, UnstableError, UsageError

__all__ = [
    "SCHEMA",
    "compare_suites",
    "comparisons_to_json",
    "paired",
    "paired_ratios",
    "raise_for_verdicts",
    "unpaired",
]

SCHEMA: Final = "shufflectl.compare/1"

_HINT: Final = "measure both under the same conditions"


def paired(
    baseline: Benchmark, candidate: Benchmark, places: tuple[int, int], tolerance: float | None
) -> Comparison | None:
    """Return the comparison of two benchmarks whose artifacts took turns in the same processes.

    Args:
        baseline: What the candidate is held against.
        candidate: What is judged.
        places: Their indices in the suite, which their rounds name as partners.
        tolerance: How much more time the candidate may take, as a share; None for no verdict.

    Returns:
        None where no process measured both.
    """
    ratios = paired_ratios(baseline, candidate, places)
    if not ratios:
        return None
    found = _Found("paired", median(ratios), median_interval(ratios), len(ratios))
    missing = len(ratios) < candidate.config.rounds
    return found.judged(baseline, candidate, tolerance, doubtful=missing)


def paired_ratios(baseline: Benchmark, candidate: Benchmark, places: tuple[int, int]) -> list[float]:
    """Return the ratio of medians of every process that held both artifacts and counts; see `paired`."""
    of_baseline = {
        entry.order: entry.median_ns
        for entry in baseline.rounds
        if entry.valid and entry.partner == places[1] and entry.median_ns
    }
    return [
        entry.median_ns / of_baseline[entry.order]
        for entry in candidate.rounds
        if entry.valid and entry.partner == places[0] and entry.median_ns and entry.order in of_baseline
    ]


def unpaired(baseline: Benchmark, candidate: Benchmark, tolerance: float | None) -> Comparison:
    """Return the comparison of two benchmarks whose rounds were separate processes.

    Raises:
        InputError: They were measured under conditions that differ, or a side has no figures.
    """
    _require_same(baseline, candidate)
    sides = []
    for benchmark in (baseline, candidate):
        medians = [entry.median_ns for entry in benchmark.rounds if entry.valid and entry.median_ns]
        if not medians:
            why = "; ".join(benchmark.reasons) or "none was measured"
            raise InputError(
                f"{benchmark.name} has no round that counts: {why}",
                hint="measure it again",
            )
        sides.append(medians)
    ratio, interval = ratio_of_samples(sides[0], sides[1])
    found = _Found("unpaired", ratio, interval, min(map(len, sides)))
    doubtful = baseline.status != "ok" or candidate.status != "ok"
    return found.judged(baseline, candidate, tolerance, doubtful=doubtful)


@dataclass(frozen=True)
class _Found:
    mode: Literal["paired", "unpaired"]
    ratio: float
    interval: tuple[float, float] | None
    rounds: int

    def judged(
        self, baseline: Benchmark, candidate: Benchmark, tolerance: float | None, *, doubtful: bool
    ) -> Comparison:
        verdict, reason = _judge(self.interval, self.rounds, tolerance, doubtful=doubtful)
        return Comparison(
            baseline.name,
            candidate.name,
            baseline.model.sha256,
            candidate.model.sha256,
            candidate.runner.name,
            candidate.config.threads,
            self.mode,
            self.ratio,
            self.interval,
            tolerance,
            verdict,
            reason,
            self.rounds,
        )


def _judge(
    interval: tuple[float, float] | None, rounds: int, tolerance: float | None, *, doubtful: bool
) -> tuple[Verdict | None, str]:
    """Return the verdict, and the finding in words."""
    if interval is None:
        verdict: Verdict | None = None if tolerance is None else "inconclusive"
        return verdict, f"{rounds} rounds are too few to tell"
    low, high = interval
    if tolerance is None:
        if low > 1:
            return None, "slower"
        return None, "faster" if high < 1 else "no difference seen"
    limit = 1 + tolerance
    if low > limit:
        return "fail", f"slower by more than {tolerance:.3g}: the whole interval lies above {limit:.4g}"
    if high > limit:
        return (
            "inconclusive",
            f"the interval contains {limit:.4g}: measure more rounds, or on a quieter machine",
        )
    if doubtful:
        return "inconclusive", "the interval would pass, but the measurement is unstable"
    return "pass", f"the whole interval lies at or below {limit:.4g}"


def compare_suites(baseline: Suite, candidate: Suite, tolerance: float | None) -> tuple[Comparison, ...]:
    """Return the comparisons of what two results have in common, unpaired.

    Benchmarks belong together by artifact's name, runner, threads and accelerator. Where each side holds one
    alone, these two do, whatever their names.

    Raises:
        InputError: They were measured under conditions that differ.
        UsageError: They have nothing in common.
    """
    if len(baseline.benchmarks) == len(candidate.benchmarks) == 1:
        return (unpaired(baseline.benchmarks[0], candidate.benchmarks[0], tolerance),)
    known = {_key(benchmark): benchmark for benchmark in baseline.benchmarks}
    both = [(known[_key(b)], b) for b in candidate.benchmarks if _key(b) in known]
    if both:
        return tuple(unpaired(first, second, tolerance) for first, second in both)
    for benchmark in candidate.benchmarks:  # the same file under other conditions: say which
        for other in baseline.benchmarks:
            if other.name == benchmark.name:
                _require_same(other, benchmark)
    raise UsageError(
        f"the results have no artifact in common: {_names(baseline.benchmarks)} against "
        f"{_names(candidate.benchmarks)}",
        hint="pass results of the same artifacts, or results that hold one artifact each",
    )


def comparisons_to_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return comparisons as the document of ``schemas/compare-1.schema.json``."""
    return {"schema": SCHEMA, "comparisons": encode(tuple(comparisons))}


def raise_for_verdicts(comparisons: Sequence[Comparison]) -> None:
    """Turn verdicts into the exit code.

    Raises:
        GateError: A candidate is slower than allowed.
        UnstableError: None is, and a comparison is inconclusive.
    """
    for verdict, error in (("fail", GateError), ("inconclusive", UnstableError)):
        for entry in comparisons:
            if entry.verdict == verdict:
                interval = "" if entry.interval is None else " ({:.3f}-{:.3f})".format(*entry.interval)
                raise error(
                    f"{entry.candidate} takes {entry.ratio:.3f}{interval} of the time of {entry.baseline} "
                    f"with {entry.runner}: {entry.reason}",
                    hint="see where its time goes with: shufflectl inspect FILE"
                    if verdict == "fail"
                    else "measure again with more --rounds on a quieter machine",
                )


def _key(benchmark: Benchmark) -> tuple[str, ...]:
    config = benchmark.config
    return (benchmark.name, benchmark.runner.name, str(config.threads), config.accelerator)


def _names(benchmarks: Sequence[Benchmark]) -> str:
    names = list(dict.fromkeys(benchmark.name for benchmark in benchmarks))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"


def _require_same(baseline: Benchmark, candidate: Benchmark) -> None:
    """Refuse to compare what was not measured alike."""
    first, second = baseline.config, candidate.config
    for what, before, after in (
        ("devices", baseline.target.identity, candidate.target.identity),
        ("runners", baseline.runner.name, candidate.runner.name),
        ("versions of the runner", baseline.runner.version, candidate.runner.version),
        ("binaries of the runner", *_binaries(baseline, candidate)),
        ("accelerators", first.accelerator, second.accelerator),
        ("numbers of threads", *(c.threads or "the runtime's choice" for c in (first, second))),
        ("cores", first.affinity, second.affinity),
        ("modes", first.mode, second.mode),
    ):
        if before != after:
            raise InputError(
                f"{baseline.name} and {candidate.name} cannot be compared: they were measured on different "
                f"{what}: {_show(before)} and {_show(after)}",
                hint=_HINT,
            )


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(entry) for entry in value if entry and entry != "None")
    return str(value) or "none"


def _binaries(*benchmarks: Benchmark) -> tuple[str, ...]:
    """Return the runners' digests; on this machine the version of the runtime says it all."""
    return tuple(b.runner.sha256 if b.target.kind == "android" else "" for b in benchmarks)
