"""The job behind `shufflectl bench`: which files run where, in which mode, against what."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import shufflectl
from shufflectl.benchmarks.compare import compare_suites, paired, raise_for_verdicts, unpaired
from shufflectl.benchmarks.executor import Executor
from shufflectl.benchmarks.local import machine
from shufflectl.benchmarks.local.own import OWN
from shufflectl.benchmarks.local.runtimes import RUNTIMES, create, require_choice, thread_numbers, timed
from shufflectl.benchmarks.options import in_order
from shufflectl.benchmarks.protocol import Group, Subject, measure
from shufflectl.benchmarks.results import (
    Benchmark,
    Comparison,
    Config,
    Mode,
    ModelFile,
    Suite,
    Warmup,
    read_suite,
)
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.artifacts import Artifact, find_groups
from shufflectl.deploy.digests import digest, size
from shufflectl.deploy.runtimes import choose
from shufflectl.errors import ArtifactError, ShufflectlError, StoppedError, UnstableError, UsageError

__all__ = ["Bench", "BenchOptions", "Device", "bench"]

Notify = Callable[[str, int, int], None]
MAX_ROUNDS: Final = 10_000


@dataclass(frozen=True)
class Device:
    """Where files run.

    Attributes:
        kind: This machine, or a phone over adb.
        serial: The phone's; None for the only one that is connected.
    """

    kind: Literal["local", "android"] = "local"
    serial: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Device":
        """Read what follows ``--device``.

        Raises:
            UsageError: It is neither ``local`` nor ``android`` nor ``android:SERIAL``.
        """
        kind, colon, serial = text.partition(":")
        if kind == "local" and not colon:
            return cls()
        if kind == "android" and bool(colon) == bool(serial):
            return cls("android", serial or None)
        raise UsageError(f"there is no device {text!r}", hint="choose local, android or android:SERIAL")


@dataclass(frozen=True)
class BenchOptions:
    """How files are measured.

    Attributes:
        device: Where.
        runtimes: On this machine: names from `RUNTIMES`; by default each format's preferred one.
        runtime_python: The interpreter in which tflite-runtime is installed.
        runners: Names in the cache of runners, or paths; none where it holds just one that fits. Several on
            a phone; on this machine one of our own, for the runtime `OWN`.
        runner_kind: On a phone: what the programs are; empty where they say.
        adb: The adb client's path; None for where it is usually found.
        fixed_performance: On a phone: whether to hold the clocks at what it can keep up.
        threads: Numbers of threads, each measured; a runtime that chooses them itself is measured once.
        affinity: Cores to pin to; empty for none on this machine, and for the fastest ones of a phone.
        accelerator: ``cpu``, ``gpu`` or ``nnapi``.
        mode: None for paired where there is a baseline file, absolute otherwise.
        rounds: Processes of each artifact, or of each pair.
        warmup: When runs count as steady.
        min_iterations: Fewest timed runs of an artifact in a process.
        min_seconds: Shortest time that a process measures for.
        settle: Untimed runs before each timed one, in paired mode.
        seed: Of the schedule.
        baseline: An artifact, or a stored result.
        tolerance: How much more time than the baseline is allowed, as a share; None for no verdict.
    """

    device: Device = field(default_factory=Device)
    runtimes: tuple[str, ...] = ()
    runtime_python: Path | None = None
    runners: tuple[str, ...] = ()
    runner_kind: str = ""
    adb: str | None = None
    fixed_performance: bool = False
    threads: tuple[int, ...] = (1,)
    affinity: str = ""
    accelerator: str = "cpu"
    mode: Mode | None = None
    rounds: int = 10
    warmup: Warmup = field(default_factory=Warmup)
    min_iterations: int = 30
    min_seconds: float = 2.5
    settle: int = 1
    seed: int = 0
    baseline: Path | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UsageError: A figure is out of range, or options do not go together.
        """
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise UsageError(f"{self.rounds} rounds cannot be measured", hint=f"choose 1 to {MAX_ROUNDS}")
        if not self.threads or min(self.threads) < 1 or len(set(self.threads)) < len(self.threads):
            raise UsageError("numbers of threads are different and positive", hint="as in --threads 1,2")
        if self.tolerance is not None and not 0 <= self.tolerance < 10:
            raise UsageError(f"a tolerance of {self.tolerance:g} makes no sense", hint="as in --tolerance 3%")
        if self.tolerance is not None and self.baseline is None and self.mode != "paired":
            raise UsageError("a tolerance needs a baseline", hint="pass --baseline FILE")
        in_order(self.affinity)
        if self.device.kind == "local":
            if self.runner_kind or self.adb or self.fixed_performance:
                raise UsageError(
                    "kinds of runners, adb and fixed performance are for phones",
                    hint="choose with --runtime on this machine, or pass --device android",
                )
            if self.runners and (OWN not in self.runtimes or len(self.runners) > 1):
                raise UsageError(
                    f"a runner on this machine is one, and for the runtime {OWN}; others are for phones",
                    hint=f"pass --runtime {OWN} with one --runner, or pass --device android",
                )
            if self.accelerator != "cpu":
                raise UsageError(
                    f"on this machine files run on the CPU, not on {self.accelerator!r}",
                    hint="leave --accelerator out, or pass --device android",
                )
            for name in self.runtimes:
                if name not in RUNTIMES:
                    create(name)  # says why
            machine.affinity(self.affinity)
        elif self.runtimes:
            raise UsageError("a runtime is of this machine", hint="choose with --runner on a phone")


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        suite: All of it.
        skipped: Files of a folder that nothing here runs, and why.
        errors: Why benchmarks failed, or cannot be compared.
    """

    suite: Suite
    skipped: tuple[tuple[str, str], ...] = ()
    errors: tuple[ShufflectlError, ...] = ()

    def raise_for_failure(self, kept: Sequence[str] = ()) -> None:
        """Turn what went wrong into the exit code.

        Args:
            kept: Where every run was written, for messages.

        Raises:
            StoppedError: The user ended it.
            ShufflectlError: The first reason why an artifact could not be measured.
            GateError: A candidate is slower than its baseline by more than the tolerance.
            UnstableError: A comparison is inconclusive, or a measurement unstable.
        """
        if self.suite.interrupted:
            count = len({entry.order for b in self.suite.benchmarks for entry in b.rounds})
            rounds = f"{count} round{'s' * (count != 1)}"
            if kept:
                raise StoppedError(f"interrupted: {rounds} had ended, and are in {' and '.join(kept)}")
            raise StoppedError(
                f"interrupted: {rounds} had ended, and their runs are lost",
                hint="keep them next time with --out FILE",
            )
        if self.errors:
            raise self.errors[0]
        raise_for_verdicts(self.suite.comparisons)
        for benchmark in self.suite.benchmarks:
            if benchmark.status != "ok":
                raise UnstableError(
                    f"{benchmark.name} with {benchmark.runner.name}: {'; '.join(benchmark.reasons)}",
                    hint="let the machine come to rest and measure again; --rounds gives more certainty",
                )


def bench(paths: Sequence[Path], options: BenchOptions, notify: Notify) -> Bench:
    """Measure artifacts.

    Args:
        paths: Artifacts, or folders of them.
        options: How.
        notify: Told about progress.

    Raises:
        ArtifactError: A file is missing, damaged, or of a kind that the runner does not take.
        MissingDependencyError, UnavailableError: A runtime, runner or device is not there.
        StoppedError: The user ended it before a round had ended; later, what was measured is returned.
        UsageError: Options do not fit the files.
    """
    created = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stored, against = _baseline(options, notify)
    phone = _on_phone(options, notify) if options.device.kind == "android" else ()
    artifacts, skipped = _artifacts(paths, options, phone, notify)
    if against is not None:
        artifacts = [against, *artifacts]
    elif options.mode == "paired" and len(artifacts) < 2:
        raise UsageError("one file alone makes no pair", hint="pass the other one too, or --baseline FILE")
    subjects = _subjects(artifacts)
    mode: Mode = options.mode or ("paired" if against is not None else "absolute")
    groups = _groups(artifacts, subjects, mode, options, phone)
    found = measure(groups, notify=notify, stoppable=True)
    if found.interrupted and not any(benchmark.rounds for benchmark in found.benchmarks):
        raise StoppedError("interrupted before a round had ended: nothing was measured")
    suite = Suite(
        created,
        f"shufflectl {shufflectl.__version__}",
        found.benchmarks,
        elapsed_s=found.elapsed_s,
        overhead=found.overhead,
        interrupted=found.interrupted,
    )
    comparisons: tuple[Comparison, ...] = ()
    errors = found.errors
    try:
        if stored is not None:
            comparisons = compare_suites(stored, suite, options.tolerance)
        elif against is not None or mode == "paired":
            comparisons = _comparisons(groups, found.benchmarks, options.tolerance)
    except ShufflectlError as error:  # what was measured is worth showing all the same
        errors = (*errors, error)
    return Bench(replace(suite, comparisons=comparisons), tuple(skipped), errors)


def _baseline(options: BenchOptions, notify: Notify) -> tuple[Suite | None, Artifact | None]:
    """Return the baseline, as a stored result or as an artifact."""
    path = options.baseline
    if path is None:
        return None, None
    if path.suffix == ".json":
        if options.mode == "paired":
            raise UsageError(
                "a stored result cannot take turns with a file", hint="pass the baseline's model file instead"
            )
        return read_suite(path), None
    found = [artifact for group in find_groups([path], notify) for artifact in group.artifacts]
    if len(found) != 1:
        raise UsageError(
            f"{path} holds {len(found)} artifacts, and a baseline is one", hint="pass the file itself"
        )
    return None, found[0]


def _on_phone(options: BenchOptions, notify: Notify) -> tuple[tuple[Executor, tuple[str, ...]], ...]:
    """Return the runners that were asked for, on the phone, each with the suffixes of what it runs.

    Raises:
        UsageError: No runner is named, and the cache does not hold just one for the phone; or there are
            several phones.
        UnavailableError: adb or a phone is missing.
    """
    from shufflectl.benchmarks.android import AndroidOptions, open_executor
    from shufflectl.benchmarks.android.runners import runner

    chosen = AndroidOptions(
        kind=options.runner_kind, adb=options.adb, fixed_performance=options.fixed_performance
    )
    executors = [
        open_executor(options.device.serial, name, options=chosen, notify=lambda what: notify(what, 0, 0))
        for name in options.runners or (None,)
    ]
    return tuple((executor, runner(executor.runner.name).suffixes) for executor in executors)


def _artifacts(
    paths: Sequence[Path],
    options: BenchOptions,
    phone: Sequence[tuple[Executor, tuple[str, ...]]],
    notify: Notify,
) -> tuple[list[Artifact], list[tuple[str, str]]]:
    """Return what is to be measured, and what of a folder cannot run here."""
    found: list[Artifact] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        whole_folder = path.is_dir() and path.suffix != TARGETS["coreml"].extension
        for group in find_groups([path], notify):
            for artifact in group.artifacts:
                why = _not_here(artifact, options, phone) if whole_folder else ""
                if why:
                    skipped.append((artifact.file, why))
                else:
                    found.append(artifact)
    if not found:
        raise ArtifactError(
            "nothing here runs any of the files: " + "; ".join(f"{name}: {why}" for name, why in skipped),
            hint="see what is missing with: shufflectl doctor",
        )
    return found, skipped


def _not_here(
    artifact: Artifact, options: BenchOptions, phone: Sequence[tuple[Executor, tuple[str, ...]]]
) -> str:
    if options.device.kind == "android":
        taken = any(artifact.path.suffix in suffixes for _, suffixes in phone)
        return "" if taken else f"no runner takes {artifact.path.suffix} files"
    try:
        _runtimes(artifact.target, options)
    except ShufflectlError as error:
        return error.message
    return ""


def _runtimes(target: str, options: BenchOptions) -> tuple[str, ...]:
    """Return the runtimes that run a format here.

    Raises:
        MissingDependencyError, UnavailableError: None does.
        UsageError: The runtimes that were asked for are of other formats.
    """
    asked = tuple(name for name in options.runtimes if name in timed(target))
    if options.runtimes and not asked:
        raise UsageError(
            f"{', '.join(options.runtimes)} does not run {TARGETS[target].extension} files",
            hint="choose from: " + ", ".join(timed(target)),
        )
    if asked:
        return asked
    preferred = ("coreml",) if target == "coreml" else ()  # never the reference, which is not for timing
    return (choose(target, preferred).name,)


def _subjects(artifacts: Sequence[Artifact]) -> list[Subject]:
    names: list[str] = []
    places = {artifact.file: {a.path for a in artifacts if a.file == artifact.file} for artifact in artifacts}
    for artifact in artifacts:
        name = artifact.file if len(places[artifact.file]) == 1 else str(artifact.path)
        again = sum(known.partition(" (")[0] == name for known in names)
        names.append(f"{name} ({again + 1})" if again else name)
    return [
        Subject(
            name,
            artifact.path,
            ModelFile(str(artifact.path), digest(artifact.path), artifact.target, size(artifact.path)),
            artifact.precision,
        )
        for name, artifact in zip(names, artifacts, strict=True)
    ]


def _groups(
    artifacts: Sequence[Artifact],
    subjects: Sequence[Subject],
    mode: Mode,
    options: BenchOptions,
    phone: Sequence[tuple[Executor, tuple[str, ...]]],
) -> list[Group]:
    """Return who runs what, under each number of threads; files of one format share a group."""
    if mode == "paired":
        other = next((a for a in artifacts if a.target != artifacts[0].target), None)
        if other is not None:
            raise UsageError(
                f"{other.file} cannot be compared with {artifacts[0].file}: different runtimes run them",
                hint="compare files of one format, or measure them one by one with --mode absolute",
            )
    groups = []
    executors = _executors(artifacts, options, phone)
    require_choice([executor.runner.name for executor, _ in executors], options.threads)
    for executor, places in executors:
        alternating = mode == "paired" and executor.runner.can_pair
        if options.mode == "paired" and not alternating:
            raise UsageError(
                f"the runner {executor.runner.name} cannot hold two models in one process",
                hint="leave --mode out to compare separate processes",
            )
        for threads in thread_numbers(executor.runner.name, options.threads):
            config = Config(
                options.accelerator,
                threads,
                in_order(options.affinity) or ("big" if options.device.kind == "android" else ""),
                "unknown",
                "paired" if alternating else "absolute",
                options.rounds,
                options.warmup,
                options.min_iterations,
                options.min_seconds,
                options.settle,
                options.seed,
            )
            chosen = tuple(subjects[place] for place in places)
            pairs = tuple((0, place) for place in range(1, len(chosen))) if alternating else ()
            groups.append(Group(executor, config, chosen, pairs))
    return groups


def _executors(
    artifacts: Sequence[Artifact],
    options: BenchOptions,
    phone: Sequence[tuple[Executor, tuple[str, ...]]],
) -> list[tuple[Executor, list[int]]]:
    """Return the executors, each with the places of the artifacts that it runs.

    Raises:
        ArtifactError: No runner takes a file that was named.
        UsageError: A runner or runtime was asked for that runs none of the files.
    """
    if options.device.kind == "android":
        for artifact in artifacts:
            why = _not_here(artifact, options, phone)
            if why:
                raise ArtifactError(f"{artifact.file}: {why}", hint="choose another with --runner")
        shared = [
            (executor, [n for n, artifact in enumerate(artifacts) if artifact.path.suffix in suffixes])
            for executor, suffixes in phone
        ]
        idle = next((executor for executor, places in shared if not places), None)
        if idle is not None:
            raise UsageError(f"{idle.runner.name} runs none of the files", hint="leave this --runner out")
        return shared
    by_runtime: dict[str, list[int]] = {}
    for place, artifact in enumerate(artifacts):
        for name in _runtimes(artifact.target, options):
            by_runtime.setdefault(name, []).append(place)
    unused = set(options.runtimes) - set(by_runtime)
    if unused:
        raise UsageError(
            f"none of the files runs with {min(unused)}", hint="choose from: " + ", ".join(by_runtime)
        )
    runner = next(iter(options.runners), None)
    return [
        (create(name, python=options.runtime_python, runner=runner), places)
        for name, places in by_runtime.items()
    ]


def _comparisons(
    groups: Sequence[Group], benchmarks: Sequence[Benchmark], tolerance: float | None
) -> tuple[Comparison, ...]:
    found = []
    first = 0
    for group in groups:
        for place in range(1, len(group.subjects)):
            places = (first, first + place)
            sides = benchmarks[places[0]], benchmarks[places[1]]
            if any(side.summary is None for side in sides):
                continue  # its failure is an error of its own
            if group.config.mode == "paired":
                comparison = paired(*sides, places, tolerance)
                found += [comparison] if comparison is not None else []
            else:
                found.append(unpaired(*sides, tolerance))
        first += len(group.subjects)
    return tuple(found)
