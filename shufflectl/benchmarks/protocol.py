"""The order in which processes run, what is tried again, and what becomes of it.

A measurement is a sequence of *blocks*. In each block every unit runs once, in a fresh process, in an order
of its own: a unit is one artifact (absolute), or a baseline and a candidate that take turns in one process
(paired). What changes slowly on the machine therefore meets all units alike. The order and the seeds within
processes follow from the configuration's seed, and are recorded.

A round that the executor calls spoiled is kept, does not count, and is tried again. A unit whose artifact
fails leaves the schedule; a device that is gone ends its units. An interrupt from the keyboard ends the
schedule, if the caller wants it so: rounds that have ended are results.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.executor import Executor, Job, Measured
from shufflectl.benchmarks.results import Benchmark, Config, ModelFile, Round, Status
from shufflectl.benchmarks.samples import Spool
from shufflectl.benchmarks.statistics import median
from shufflectl.benchmarks.summary import summarise
from shufflectl.errors import ShufflectlError, UnstableError

__all__ = ["Group", "Measurement", "Subject", "measure"]

Notify = Callable[[str, int, int], None]

RETRIES: Final = 3
"""How often a spoiled round is tried again before its unit goes without."""
_MAX_BETWEEN: Final = 0.10
_MAX_INTERVAL: Final = 0.10
"""Half the interval's width, of the median: a figure that is less certain than this is not one."""
_NO_FIGURE: Final = "the runner gave neither samples nor a median"


@dataclass(frozen=True)
class Subject:
    """An artifact to measure.

    Attributes:
        name: Unique among those of a call.
        path: Where it is.
        model: What it is.
        precision: Of its arithmetic, as far as it says.
    """

    name: str
    path: Path
    model: ModelFile
    precision: str = "unknown"


@dataclass(frozen=True)
class Group:
    """Artifacts that run in one place under one configuration.

    Attributes:
        executor: The place.
        config: The configuration; a benchmark's own has its artifact's precision.
        subjects: The artifacts.
        pairs: In paired mode, places in ``subjects`` of each baseline and candidate.
    """

    executor: Executor
    config: Config
    subjects: tuple[Subject, ...]
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What became of it.

    Attributes:
        benchmarks: One for each subject of each group, in their order.
        errors: Why benchmarks failed, the first of each.
        elapsed_s: Seconds from the first process to the end of the last.
        overhead: Share of that which was spent neither on warming up nor on measuring; None where the runner
            does not say.
        interrupted: Whether the user ended it before all rounds were run.
    """

    benchmarks: tuple[Benchmark, ...]
    errors: tuple[ShufflectlError, ...]
    elapsed_s: float
    overhead: float | None
    interrupted: bool = False


@dataclass
class _Unit:
    """What comes once in each block."""

    group: Group
    first: int  # index in the suite of the group's first subject
    members: tuple[int, ...]  # places in the group's subjects

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.group.subjects[place].path for place in self.members)

    @property
    def label(self) -> str:
        return " and ".join(self.group.subjects[place].name for place in self.members)


@dataclass
class _State:
    """What has been measured so far."""

    rounds: list[list[Round]]
    reasons: list[list[str]]
    spool: Spool = field(default_factory=Spool)
    errors: list[ShufflectlError] = field(default_factory=list)
    order: int = 0
    measured_s: float = 0.0
    unknown: bool = False


def measure(
    groups: Sequence[Group], *, notify: Notify, retries: int = RETRIES, stoppable: bool = False
) -> Measurement:
    """Run all blocks of all groups.

    Args:
        groups: What to run where; the number of rounds is their largest.
        notify: Told about progress.
        retries: How often a spoiled round is tried again.
        stoppable: Whether `KeyboardInterrupt` ends the schedule, rather than losing what was measured.

    Raises:
        ArtifactError: An executor does not take an artifact.
        MissingDependencyError, UnavailableError: An executor or its device is not there to begin with.
    """
    units = _units(groups)
    count = sum(len(group.subjects) for group in groups)
    state = _State([[] for _ in range(count)], [[] for _ in range(count)])
    interrupted = False
    with _opened(groups):
        begun = time.monotonic()
        try:
            _run_blocks(groups, units, state, notify, retries)
        except KeyboardInterrupt:
            if not stoppable:
                raise
            interrupted = True
        elapsed = time.monotonic() - begun
    known = state.measured_s > 0 and not state.unknown
    return Measurement(
        _benchmarks(groups, state, interrupted=interrupted),
        tuple(state.errors),
        elapsed,
        max(0.0, 1 - state.measured_s / elapsed) if known else None,
        interrupted,
    )


def _run_blocks(
    groups: Sequence[Group], units: list[_Unit], state: _State, notify: Notify, retries: int
) -> None:
    order = random.Random(groups[0].config.seed)  # noqa: S311 - the order of processes is no secret
    total = sum(unit.group.config.rounds for unit in units)
    done = 0
    for block in range(max(group.config.rounds for group in groups)):
        due = [unit for unit in units if block < unit.group.config.rounds]
        for unit in order.sample(due, len(due)):
            seed = order.getrandbits(32)
            if unit not in units:  # its device went away in this block
                continue
            notify(f"round {block + 1}: {unit.label}", done, total)
            failure = _round(unit, block, seed, state, retries)
            if failure is not None:
                state.errors.append(failure)
                _remove(unit, failure, units, state)
            done += 1


@contextmanager
def _opened(groups: Sequence[Group]) -> Iterator[None]:
    """Open each executor once, with all artifacts that any group runs there."""
    paths: dict[int, dict[Path, None]] = {}
    executors: dict[int, Executor] = {}
    for group in groups:
        executors[id(group.executor)] = group.executor
        paths.setdefault(id(group.executor), {}).update((s.path, None) for s in group.subjects)
    with ExitStack() as stack:
        for key, executor in executors.items():
            stack.enter_context(executor.open(list(paths[key])))
        yield


def _units(groups: Sequence[Group]) -> list[_Unit]:
    units: list[_Unit] = []
    first = 0
    for group in groups:
        singles = tuple((place,) for place in range(len(group.subjects)))
        members: Sequence[tuple[int, ...]] = group.pairs if group.config.mode == "paired" else singles
        units += [_Unit(group, first, member) for member in members]
        first += len(group.subjects)
    return units


def _remove(unit: _Unit, failure: ShufflectlError, units: list[_Unit], state: _State) -> None:
    """Take what cannot run any more out of the schedule, and say why."""
    gone = [unit]
    if failure.exit_code == 7:  # the place is gone, not the artifact
        gone = [other for other in units if other.group.executor is unit.group.executor]
    for other in gone:
        units.remove(other)
        for place in other.members:
            state.reasons[other.first + place].append(failure.message)


def _round(unit: _Unit, block: int, seed: int, state: _State, retries: int) -> ShufflectlError | None:
    """Run a unit once; return why it cannot run."""
    executor, config = unit.group.executor, unit.group.config
    job = Job(
        unit.paths,
        block,
        seed,
        config.warmup,
        config.min_iterations,
        config.min_seconds,
        config.settle,
        config.threads or 1,
        config.accelerator,
        config.affinity,
    )
    for _ in range(retries + 1):
        spoiled = ""
        measured: tuple[Measured, ...] = ()
        try:
            executor.settle()
            measured = executor.run(job)
            spoiled = next((entry.spoiled for entry in measured if entry.spoiled), "")
            if not spoiled and any(not entry.samples_ns and entry.median_ns is None for entry in measured):
                spoiled = _NO_FIGURE
        except UnstableError as error:
            spoiled = error.message
        except ShufflectlError as error:
            return error
        _keep(unit, block, seed, measured or (Measured(),) * len(unit.members), spoiled, state)
        if not spoiled:
            return None
    return None


def _keep(
    unit: _Unit, block: int, seed: int, measured: Sequence[Measured], spoiled: str, state: _State
) -> None:
    """Note what a process measured."""
    seconds = next((entry.measured_s for entry in measured if entry.measured_s is not None), None)
    state.unknown = state.unknown or (seconds is None and not spoiled)
    state.measured_s += seconds or 0.0
    for position, (place, entry) in enumerate(zip(unit.members, measured, strict=True)):
        rounds = state.rounds[unit.first + place]
        partner = unit.first + unit.members[1 - position] if len(unit.members) == 2 else None
        middle = entry.median_ns
        if middle is None and entry.samples_ns:
            middle = median(entry.samples_ns)
        rounds.append(
            Round(
                len(rounds),
                block,
                state.order,
                seed,
                not spoiled,
                spoiled,
                entry.init_ns,
                entry.first_ns,
                state.spool.keep(entry.warmup_ns),
                entry.steady,
                state.spool.keep(entry.samples_ns),
                middle,
                entry.reported,
                entry.peak_rss_bytes,
                entry.delegation,
                entry.before,
                entry.after,
                partner,
            )
        )
    state.order += 1


def _benchmarks(groups: Sequence[Group], state: _State, *, interrupted: bool) -> tuple[Benchmark, ...]:
    found: list[Benchmark] = []
    for group in groups:
        for place, subject in enumerate(group.subjects):
            index = len(found)
            rounds = tuple(state.rounds[index])
            benchmark = Benchmark(
                subject.name,
                "ok",
                (),
                subject.model,
                group.executor.target,
                group.executor.runner,
                replace(group.config, precision=subject.precision),
                rounds,
                summarise(rounds, group.config),
            )
            units = sum(place in pair for pair in group.pairs) if group.config.mode == "paired" else 1
            wanted = group.config.rounds * units
            status, reasons = _status(benchmark, wanted, state.reasons[index], interrupted=interrupted)
            found.append(replace(benchmark, status=status, reasons=reasons))
    return tuple(found)


def _status(
    benchmark: Benchmark, wanted: int, failures: Sequence[str], *, interrupted: bool
) -> tuple[Status, tuple[str, ...]]:
    """Say whether the figures can be trusted."""
    summary = benchmark.summary
    reasons = list(dict.fromkeys(failures))
    spoiled = dict.fromkeys(entry.reason for entry in benchmark.rounds if not entry.valid)
    if summary is None:
        if interrupted and not spoiled and not reasons:
            return "unstable", ("interrupted before its first round ended",)
        hot = spoiled and not reasons and _NO_FIGURE not in spoiled  # or capped: the device, not the file
        return "unstable" if hot else "failed", tuple(reasons or spoiled or ["no round was measured"])
    if summary.rounds < wanted:
        stopped = interrupted and not failures
        reasons.append(f"{'interrupted: ' * stopped}{summary.rounds} of {wanted} rounds count")
        reasons += spoiled
    if benchmark.config.mode == "absolute":
        spread = summary.between_round_cv
        if spread is not None and spread > _MAX_BETWEEN:
            reasons.append(f"the rounds' medians spread by {spread:.0%}")
        if summary.interval_ns is not None:
            low, high = summary.interval_ns
            share = (high - low) / 2 / summary.median_ns
            if share > _MAX_INTERVAL:
                reasons.append(f"the median is known to ±{share:.0%} only")
    return ("unstable" if reasons else "ok"), tuple(reasons)
