"""The job behind `shufflectl tune`: every form, proved equal, raced, and the winner proved faster."""

import datetime as dt
import importlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.bench import Device
from shufflectl.benchmarks.executor import Executor, Job, Measured
from shufflectl.benchmarks.halving import NATIVE, Limits, Outcome, Proof, race
from shufflectl.benchmarks.local.executor import LocalExecutor
from shufflectl.benchmarks.local.runtimes import require_choice, thread_numbers
from shufflectl.benchmarks.options import in_order
from shufflectl.benchmarks.protocol import Group, Subject, measure
from shufflectl.benchmarks.results import Benchmark, Config, ModelFile, RunnerInfo, Target, Warmup
from shufflectl.benchmarks.statistics import median
from shufflectl.benchmarks.tuned import Entry, Race, TuneResult
from shufflectl.converters.targets import TARGETS, Emitter, Layout
from shufflectl.converters.worker import EmitterProcess
from shufflectl.deploy import runtimes
from shufflectl.deploy.export import fix_layout, open_subject, source_of
from shufflectl.deploy.forms import Form, Forms, Written
from shufflectl.deploy.options import ExportRequest
from shufflectl.errors import UnavailableError, UnstableError, UsageError

__all__ = ["TuneOptions", "parse_budget", "tune"]

Notify = Callable[[str, int, int], None]

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_WARMUP: Final = Warmup(min_iterations=10, min_seconds=0.1, window=10, max_seconds=2.0)
_NOISE: Final = ("load_1m", "others", "stolen", "waited")


def parse_budget(text: str) -> float:
    """Read ``90s``, ``3m`` or ``1h`` as seconds.

    Raises:
        UsageError: It is none of these, or no time at all.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        seconds = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 1 <= seconds <= 7 * 24 * 3600:
        raise UsageError(f"{text!r} is no time to spend", hint="write it as 90s, 3m or 1h")
    return seconds


@dataclass(frozen=True)
class TuneOptions:
    """How forms are measured.

    Attributes:
        device: Where.
        runtime: On this machine: the runtime; None for the format's preferred one.
        runtime_python: The interpreter in which tflite-runtime is installed.
        runner: On a phone: a runner's name, or the path of its binary.
        threads: Numbers of threads; each has a race of its own. A runtime that chooses them has one race.
        affinity: Cores to pin to; empty for none.
        accelerator: ``cpu``, ``gpu`` or ``nnapi``.
        budget_s: Seconds for everything.
        warmup: When runs count as steady.
        min_iterations: Fewest timed runs of each of two files in a process.
        min_seconds: Shortest time that a process measures for.
        seed: Of the order of processes.
        limits: How far a race goes.
    """

    device: Device = field(default_factory=Device)
    runtime: str | None = None
    runtime_python: Path | None = None
    runner: str | None = None
    threads: tuple[int, ...] = (1,)
    affinity: str = ""
    accelerator: str = "cpu"
    budget_s: float = 180.0
    warmup: Warmup = _WARMUP
    min_iterations: int = 15
    min_seconds: float = 0.3
    seed: int = 0
    limits: Limits = field(default_factory=Limits)


def tune(
    request: ExportRequest, options: TuneOptions, notify: Notify, *, executor: Executor | None = None
) -> TuneResult:
    """Find the fastest form of a model for one target on one device.

    Args:
        request: What to export: one target, one precision, a fixed batch.
        options: How to measure.
        notify: Told about progress.
        executor: Where files run; by default what the options say.

    Raises:
        UsageError: Options do not fit.
        ShufflectlError: As `shufflectl.deploy.export.export`.
        UnavailableError: The device, runtime or runner is not there.
        MissingDependencyError: A package is not installed.
        UnstableError: The time was over before anything was measured.
    """
    if len(request.targets) != 1 or len(request.precisions) != 1:
        raise UsageError("one target and one precision are tuned at a time", hint="name one --target")
    if request.batch == "dynamic":
        raise UsageError("a batch of any size has no one time", hint="give a number to --batch")
    begun = time.monotonic()
    created = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    (target,), (precision,) = request.targets, request.precisions
    in_order(options.affinity)
    place = executor or _executor(target, options)  # before any work, so that what is missing is known now

    require_choice([place.runner.name], options.threads)
    numbers = thread_numbers(place.runner.name, options.threads)

    def left() -> float:
        return options.budget_s - (time.monotonic() - begun)

    with ExitStack() as stack:
        stack.enter_context(place.open([]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shufflectl-tune-")))
        emit: Emitter = TARGETS[target].emit
        if TARGETS[target].preload:
            emit = stack.enter_context(EmitterProcess(target, verbose=request.verbose)).emit
        if request.factory is not None:  # what a user's code prints is no result
            stack.enter_context(redirect_stdout(sys.stderr))
        subject = open_subject(request, notify)
        request = fix_layout(request, subject)
        forms = Forms(request, subject, emit, folder, notify)
        found = forms.enumerate(_layouts(target, request), notify)
        config = Config(
            options.accelerator,
            numbers[0],
            in_order(options.affinity),
            precision,
            "paired" if place.runner.can_pair else "absolute",
            options.limits.proof,
            options.warmup,
            options.min_iterations,
            options.min_seconds,
            1,
            options.seed,
        )
        track = _Track(forms, found, place, target, precision, notify, left)
        races = []
        for number, threads in enumerate(numbers):
            later = left() * (1 - 1 / (len(numbers) - number))  # for those that follow
            races.append(_race(track, replace(config, threads=threads), options.limits, later))
        return TuneResult(
            subject.info,
            source_of(request, subject, forms.calibration),
            target,
            precision,
            place.target,
            place.runner,
            config,
            tuple(races),
            min(range(len(races)), key=lambda index: races[index].choice_ns or float("inf")),
            created,
            options.budget_s,
            time.monotonic() - begun,
            (*subject.notes, *forms.notes),
            None if forms.codes is None else forms.codes.data,
        )


def _executor(target: str, options: TuneOptions) -> Executor:
    """Return what runs the files."""
    if options.device.kind == "android":
        if options.runtime is not None:
            raise UsageError("a runtime is of this machine", hint="choose with --runner on a phone")
        open_executor = importlib.import_module("shufflectl.benchmarks.android").open_executor
        found: Executor = open_executor(options.device.serial, options.runner or "litert")
        return found
    if options.runner is not None:
        raise UsageError("runners are for phones", hint="choose with --runtime on this machine")
    if options.accelerator != "cpu":
        raise UsageError(
            f"on this machine files run on the CPU, not on {options.accelerator!r}",
            hint="leave --accelerator out, or pass --device android",
        )
    if options.runtime is not None and options.runtime not in TARGETS[target].runtimes:
        raise UsageError(
            f"{options.runtime} does not run {TARGETS[target].extension} files",
            hint="choose from: " + ", ".join(TARGETS[target].runtimes),
        )
    # Never the Core ML reference, which is not for timing.
    preferred = options.runtime or ("coreml" if target == "coreml" else None)
    name = runtimes.choose(target, (preferred,) if preferred else (), python=options.runtime_python).name
    return LocalExecutor(name, python=options.runtime_python)


def _layouts(target: str, request: ExportRequest) -> tuple[Layout, ...]:
    """Return the layouts that are worth a try: both, the target's own first, unless there is just one."""
    if request.layout is not None:
        return (request.layout,)
    if target == "coreml" and request.input_type == "uint8":  # a picture has none
        return ("nchw",)
    return ("nhwc", "nchw") if TARGETS[target].default_layout == "nhwc" else ("nchw", "nhwc")


@dataclass
class _Track:
    """What all races share: forms, each written and compared once."""

    forms: Forms
    found: tuple[Form, ...]
    executor: Executor
    target: str
    precision: str
    notify: Notify
    left: Callable[[], float]
    written: dict[int, Written] = field(default_factory=dict)

    def admit(self, place: int) -> str:
        """Write a form, unless there is a file already; return why it cannot be measured."""
        form = self.found[place]
        if place not in self.written:
            if place != NATIVE and self.left() <= 0:
                return "not measured: the time was over"
            self.notify(f"writing and comparing {form.name}", place, len(self.found))
            self.written[place] = self.forms.write(form)
        written = self.written[place]
        if written.problem:
            return written.problem
        twins = [i for i, other in self.written.items() if i < place and other.sha256 == written.sha256]
        return f"the same file as {self.found[twins[0]].name}" if twins else ""


def _race(track: _Track, config: Config, limits: Limits, later: float) -> Race:
    """Race all forms with one number of threads; leave some seconds for later."""
    found = track.found
    problem = track.admit(NATIVE)
    if problem:
        raise UnstableError(f"there is nothing to compare with: the native form fails: {problem}")
    usual = track.forms.automatic
    automatic = next(i for i, f in enumerate(found) if f.candidate == usual or usual.label in f.same_as)
    first = found[NATIVE].layout
    siblings = {
        i: [k for k, other in enumerate(found) if other.layout != first and other.candidate == f.candidate]
        for i, f in enumerate(found)
        if f.layout == first
    }
    rounds = _Rounds(track, config)
    outcome = race(
        len(found),
        automatic,
        rounds,
        admit=track.admit,
        siblings=siblings,
        left=lambda: track.left() - later,
        now=time.monotonic,
        limits=limits,
    )
    if outcome.winner is None:
        reasons = [contender.dropped for contender in outcome.contenders[1:] if contender.dropped]
        raise UnstableError(
            f"no form could be measured: {reasons[0] if reasons else 'the time was over'}",
            hint="give it more time with --budget",
        )
    choice, tuned, why = _choice(outcome, automatic, found)
    track.admit(choice)
    entries = tuple(
        Entry(form, track.written.get(place), tuple(map(tuple, contender.ratios)), contender.dropped)
        for place, (form, contender) in enumerate(zip(found, outcome.contenders, strict=True))
    )
    return Race(
        config.threads,
        entries,
        outcome,
        automatic,
        choice,
        tuned,
        why,
        rounds.median_ns(NATIVE),
        rounds.median_ns(choice),
        rounds.state,
    )


def _choice(outcome: Outcome, automatic: int, found: Sequence[Form]) -> tuple[int, bool, str]:
    """Return what export should take, whether that is another form than its default, and why."""
    winner = NATIVE if outcome.winner is None else outcome.winner
    against_native, against_default = outcome.proof(NATIVE, winner), outcome.proof(automatic, winner)
    usual = outcome.proof(NATIVE, automatic)
    stays = "" if usual is None else f"; the default takes {_words(usual)} of native's time"
    beats = "" if against_native is None else f"; it takes {_words(against_native)} of native's time"
    default = found[automatic].name
    if winner == automatic:
        return automatic, False, f"the default, {default}, is the fastest form found{beats}"
    if against_default is None or against_default.interval is None:
        rounds = 0 if against_default is None else len(against_default.ratios)
        why = f"{found[winner].name} looked fastest, and {rounds} rounds of proof are too few to tell"
        return automatic, False, f"{why}: the default, {default}, stays{stays}"
    if not against_default.faster:
        why = f"{found[winner].name} is not shown to be faster than the default, {default}, which stays"
        return automatic, False, f"{why}: it takes {_words(against_default)} of its time{stays}"
    if automatic == NATIVE:
        return winner, True, f"{found[winner].name} is faster{beats}"
    why = f"{found[winner].name} takes {_words(against_default)} of the default's time"
    return winner, True, why + (beats.replace("it takes ", "") if beats else "")


def _words(proof: Proof) -> str:
    if proof.interval is None:
        return f"{proof.ratio:.3f}"
    return f"{proof.ratio:.3f} ({proof.interval[0]:.3f} to {proof.interval[1]:.3f})"


class _Opened:
    """An executor whose artifacts stay open over several calls of the protocol."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @property
    def runner(self) -> RunnerInfo:
        return self._executor.runner

    @property
    def target(self) -> Target:
        return self._executor.target

    @contextmanager
    def open(self, artifacts: Sequence[Path]) -> Iterator[None]:  # noqa: ARG002 - they are open
        yield

    def run(self, job: Job) -> tuple[Measured, ...]:
        return self._executor.run(job)

    def settle(self) -> None:
        self._executor.settle()


class _Rounds:
    """Measures pairs of forms by the protocol, a block at a time; see `halving.Rounds`."""

    def __init__(self, track: _Track, config: Config) -> None:
        self._track, self._config = track, config
        self._seeds = random.Random(config.seed)  # noqa: S311 - the order of processes is no secret
        self._medians: dict[int, list[float]] = {}
        self._block = 0
        self._most: dict[str, float] = {}

    def __call__(
        self, pairs: Sequence[tuple[int, int]], blocks: Callable[[], bool], what: str
    ) -> Iterator[dict[tuple[int, int], float | str]]:
        places = sorted({place for pair in pairs for place in pair})
        with self._track.executor.open([self._track.written[place].path for place in places]):
            while blocks():
                yield self._run(pairs, what)

    def _run(self, pairs: Sequence[tuple[int, int]], what: str) -> dict[tuple[int, int], float | str]:
        self._block += 1
        places = sorted({place for pair in pairs for place in pair})
        at = {place: index for index, place in enumerate(places)}
        paired = self._config.mode == "paired"
        group = Group(
            _Opened(self._track.executor),
            replace(self._config, rounds=1, seed=self._seeds.getrandbits(32)),
            tuple(self._subject(place) for place in places),
            tuple((at[first], at[second]) for first, second in pairs) if paired else (),
        )

        def tell(_what: str, done: int, total: int) -> None:
            left = max(0, round(self._track.left()))
            said = f"round {self._block}, {what}, at most {left // 60}:{left % 60:02d} left"
            self._track.notify(said, done, total)

        found = measure([group], notify=tell)
        for error in found.errors:
            if isinstance(error, UnavailableError):
                raise error
        for place in places:
            self._note(place, found.benchmarks[at[place]])
        answers: dict[tuple[int, int], float | str] = {}
        for first, second in pairs:
            sides = found.benchmarks[at[first]], found.benchmarks[at[second]]
            ratio = _ratio(*sides, (at[first], at[second]) if paired else None)
            if ratio is not None:
                answers[first, second] = ratio
            elif found.errors and sides[1].status == "failed":
                answers[first, second] = "; ".join(sides[1].reasons)
        if found.errors and not any(isinstance(answer, float) for answer in answers.values()):
            raise found.errors[0]  # not one form's fault
        return answers

    @property
    def state(self) -> dict[str, float | None]:
        """How many processes ran, and the most noise that any met."""
        return {"rounds": self._block, **{name: self._most.get(name) for name in _NOISE}}

    def median_ns(self, place: int) -> float | None:
        """Return the median over all processes of a form's medians."""
        found = self._medians.get(place)
        return median(found) if found else None

    def _subject(self, place: int) -> Subject:
        written, form = self._track.written[place], self._track.found[place]
        model = ModelFile(written.path.name, written.sha256, self._track.target, written.bytes)
        return Subject(form.name, written.path, model, self._track.precision)

    def _note(self, place: int, benchmark: Benchmark) -> None:
        for entry in benchmark.rounds:
            if entry.valid and entry.median_ns:
                self._medians.setdefault(place, []).append(entry.median_ns)
            for state in (entry.before, entry.after):
                for name in _NOISE:
                    value = None if state is None else getattr(state, name)
                    if value is not None:
                        self._most[name] = max(value, self._most.get(name, 0.0))


def _ratio(baseline: Benchmark, candidate: Benchmark, partners: tuple[int, int] | None) -> float | None:
    """Return the candidate's time over the baseline's in this block; paired, within the process."""
    bases = {
        entry.order if partners else 0: entry.median_ns
        for entry in baseline.rounds
        if entry.valid and entry.median_ns and (partners is None or entry.partner == partners[1])
    }
    for entry in candidate.rounds:
        if entry.valid and entry.median_ns and (partners is None or entry.partner == partners[0]):
            base = bases.get(entry.order if partners else 0)
            if base:
                return entry.median_ns / base
    return None
