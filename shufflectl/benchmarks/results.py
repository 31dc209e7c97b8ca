"""What a measurement leaves behind: immutable records, and their versioned JSON.

A *round* is one fresh process that ran one artifact (or, paired, two in turns); it is the statistical unit. A
*benchmark* is all rounds of one artifact on one target under one configuration. A *suite* is what one call
measured. All times are integer nanoseconds of a monotonic clock as the process read them, and warm-up runs
are kept apart from timed ones. Nothing is deleted: a round that does not count stays, with the reason.

A result file may come from anywhere: it is bounded in size, holds no NaN, and is validated against the schema
in this package before anything of it is used.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from shufflectl.benchmarks.records import decode, encode, text
from shufflectl.deploy.documents import Kind
from shufflectl.errors import ArtifactError

__all__ = [
    "SCHEMA",
    "Benchmark",
    "Comparison",
    "Config",
    "Delegation",
    "Flag",
    "Mode",
    "ModelFile",
    "Round",
    "RunnerInfo",
    "Snapshot",
    "Status",
    "Suite",
    "Summary",
    "Target",
    "Verdict",
    "Warmup",
    "read_suite",
    "threads_in_words",
]

SCHEMA: Final = "shufflectl.bench/1"

_HINT: Final = "pass a file that 'shufflectl bench --out FILE' wrote"
_MAX_BYTES: Final = 256 << 20
"""Some ten million samples: more than a day of measuring leaves behind."""
_KIND: Final = Kind(SCHEMA, "result of bench", "shufflectl.benchmarks", _MAX_BYTES, _HINT, ArtifactError)

Mode = Literal["absolute", "paired"]
Status = Literal["ok", "unstable", "failed"]
Verdict = Literal["pass", "fail", "inconclusive"]
JSON = dict[str, Any]


@dataclass(frozen=True)
class Delegation:
    """What an accelerator really took of a model. None: the runtime does not say.

    Attributes:
        accelerator: Its name, for example ``xnnpack`` or ``gpu``.
        replaced: Operators that it executes.
        total: Operators of the model.
        partitions: Pieces that it executes them in.
    """

    accelerator: str
    replaced: int | None = None
    total: int | None = None
    partitions: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """The machine's state at one moment. What it does not tell is None or absent.

    Attributes:
        load_1m: The load average of a minute.
        governor: Of the CPU's clock.
        frequencies_khz: Current, by CPU.
        limits_khz: The highest that is allowed now, by CPU.
        temperatures: In °C, by sensor.
        thermal_status: Android's, 0 (none) to 6 (shutdown).
        battery_percent: Its charge.
        powered: Whether it is being charged.
        stolen: Share of the CPU time since the snapshot before that a hypervisor gave to other machines.
        others: Share of the CPU time since the snapshot before that other processes took.
        waited: Share of the round's time that the measuring process was ready to run and had no core.
    """

    load_1m: float | None = None
    governor: str = ""
    frequencies_khz: Mapping[str, int] = field(default_factory=dict)
    limits_khz: Mapping[str, int] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    thermal_status: int | None = None
    battery_percent: float | None = None
    powered: bool | None = None
    stolen: float | None = None
    others: float | None = None
    waited: float | None = None


@dataclass(frozen=True)
class Round:
    """One artifact's part of one process.

    Attributes:
        index: Its number among the rounds of its benchmark, from 0, retried ones included.
        block: The block of the schedule; every artifact (or pair) comes once in each.
        order: Its place among all processes of the suite, from 0.
        seed: Of the order of runs within the process.
        valid: Whether it counts.
        reason: Why not; empty where it counts.
        init_ns: Time from opening the file until the runtime could run it.
        first_ns: Time of the first run.
        warmup_ns: Runs until the time was steady, the first one included.
        steady: Whether the warm-up ended because runs were steady; False where it reached its limit.
        samples_ns: Timed runs in the order of time; empty where the runner gives none.
        median_ns: Of the samples, or what the runner reported.
        reported: The runner's own figures, in ns: mean, min, max, p5, p95, std.
        peak_rss_bytes: The process's; in a paired round that of both artifacts together.
        delegation: What the accelerator took.
        before: The machine's state before the process started.
        after: The machine's state after it ended.
        partner: In paired rounds, the index in the suite of the benchmark that it alternated with.
    """

    index: int
    block: int
    order: int
    seed: int
    valid: bool
    reason: str = ""
    init_ns: int | None = None
    first_ns: int | None = None
    warmup_ns: Sequence[int] = ()
    steady: bool | None = None
    samples_ns: Sequence[int] = ()
    median_ns: float | None = None
    reported: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int | None = None
    delegation: Delegation | None = None
    before: Snapshot | None = None
    after: Snapshot | None = None
    partner: int | None = None


@dataclass(frozen=True)
class ModelFile:
    """The artifact that was measured.

    Attributes:
        path: As the user gave it.
        sha256: See `shufflectl.deploy.publish.digest`.
        format: ``onnx``, ``tflite`` or ``coreml``.
        bytes: Of the file, or of all files in the package.
    """

    path: str
    sha256: str
    format: str
    bytes: int


@dataclass(frozen=True)
class Target:
    """Where it ran.

    Attributes:
        kind: This machine, or a phone over adb.
        model: A phone's model.
        soc: A phone's system on chip.
        sdk: Android's API level.
        abi: For example ``arm64-v8a``.
        fingerprint: Android's build.
        serial_hash: The first 16 digits of the SHA-256 of a phone's serial number.
        os: System and release.
        cpu: The CPU's name.
        cores: How many the system has.
        memory_bytes: How much the system has.
        virtual: Whether it is a virtual machine.
    """

    kind: Literal["local", "android"]
    model: str = ""
    soc: str = ""
    sdk: int | None = None
    abi: str = ""
    fingerprint: str = ""
    serial_hash: str = ""
    os: str = ""
    cpu: str = ""
    cores: int | None = None
    memory_bytes: int | None = None
    virtual: bool | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two results come from the same device; software may have been updated in between."""
        return (self.kind, self.model, self.soc, self.abi, self.serial_hash, self.cpu, str(self.cores))


@dataclass(frozen=True)
class RunnerInfo:
    """What ran it.

    Attributes:
        name: What users call it.
        version: Of the runtime; on a phone the hashes of its libraries, and empty where it is the program.
        sha256: Of the runner's binary, or of the worker program.
        argv: An example of the command line, without paths of this machine.
        provides_samples: Whether it gives every run's time.
        can_pair: Whether one process can hold two models.
    """

    name: str
    version: str = ""
    sha256: str = ""
    argv: tuple[str, ...] = ()
    provides_samples: bool = True
    can_pair: bool = False


@dataclass(frozen=True)
class Warmup:
    """When runs count as steady: androidx.benchmark's rule, with an upper limit.

    A fast and a slow exponential moving average of the run times must lie within ``tolerance`` of one another
    for ``window`` runs on end, after ``min_iterations`` runs and ``min_seconds``.

    Attributes:
        min_iterations: Fewest runs.
        min_seconds: Shortest time.
        window: Runs in which the averages must agree.
        tolerance: How near, as a share of the slow one.
        max_seconds: After this time the process measures all the same, and says that it was not steady.
    """

    min_iterations: int = 30
    min_seconds: float = 0.25
    window: int = 40
    tolerance: float = 0.04
    max_seconds: float = 5.0


@dataclass(frozen=True)
class Config:
    """What was asked for.

    Attributes:
        accelerator: ``cpu``, ``gpu`` or ``nnapi``.
        threads: Of the runtime; None where it chooses them itself, as Core ML does.
        affinity: The cores that it was pinned to in rising order, as in ``0,1``; empty where it was not.
        precision: Of the arithmetic, as far as the file says: ``fp32``, ``fp16``, ``int8``, or ``unknown``.
        mode: One artifact a process, or two in turns.
        rounds: Processes of each artifact, or of each pair.
        warmup: When runs count as steady.
        min_iterations: Fewest timed runs of an artifact in a process.
        min_seconds: Shortest time that a process measures for.
        settle: Untimed runs of the same artifact before each timed one.
        seed: Of the schedule.
    """

    accelerator: str
    threads: int | None
    affinity: str
    precision: str
    mode: Mode
    rounds: int
    warmup: Warmup
    min_iterations: int
    min_seconds: float
    settle: int
    seed: int


@dataclass(frozen=True)
class Flag:
    """Something that makes a figure worth less.

    Attributes:
        name: One word or two: drift, bimodal, wide spread, few samples, noisy machine, not steady, ...
        text: What was seen, with its figures.
        advice: What to do about it.
    """

    name: str
    text: str
    advice: str


@dataclass(frozen=True)
class Summary:
    """The figures of a benchmark, from its rounds that count.

    Attributes:
        median_ns: The median over rounds of each round's median.
        interval_ns: Its 95 % interval; None with fewer rounds than one takes.
        p90_ns: Over all samples, where there are enough.
        p99_ns: Over all samples, where there are a thousand or more.
        between_round_cv: Standard deviation of the rounds' medians over their mean.
        init_ns: Median over rounds.
        first_ns: Median over rounds.
        peak_rss_bytes: Median over rounds.
        rounds: How many count.
        samples: How many they hold.
        flags: What makes the figures worth less.
    """

    median_ns: float
    interval_ns: tuple[float, float] | None
    p90_ns: float | None
    p99_ns: float | None
    between_round_cv: float | None
    init_ns: float | None
    first_ns: float | None
    peak_rss_bytes: float | None
    rounds: int
    samples: int
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """One artifact on one target under one configuration.

    Attributes:
        name: The artifact's name, unique among those of the call.
        status: Whether the figures can be trusted: ``unstable`` ones are shown, and never pass a gate.
        reasons: Why it is not ok.
        model: The artifact.
        target: Where it ran.
        runner: What ran it.
        config: What was asked for.
        rounds: All, those that do not count included.
        summary: None where no round counts.
    """

    name: str
    status: Status
    reasons: tuple[str, ...]
    model: ModelFile
    target: Target
    runner: RunnerInfo
    config: Config
    rounds: tuple[Round, ...]
    summary: Summary | None


@dataclass(frozen=True)
class Comparison:
    """How much time a candidate takes, relative to a baseline.

    Attributes:
        baseline: The baseline's name.
        candidate: The candidate's name.
        baseline_sha256: Its artifact's.
        candidate_sha256: Its artifact's.
        runner: What ran both.
        threads: Of both; None where the runner chooses them itself.
        mode: ``paired``: ratios within processes. ``unpaired``: medians of separate processes.
        ratio: Candidate over baseline: below 1 the candidate is faster.
        interval: The ratio's 95 % interval; None with fewer rounds than one takes.
        tolerance: How much more time the candidate may take, as a share; None where nothing was asked.
        verdict: Where a tolerance was given.
        reason: The verdict in words.
        rounds: Ratios (paired), or rounds of the side with fewer (unpaired).
    """

    baseline: str
    candidate: str
    baseline_sha256: str
    candidate_sha256: str
    runner: str
    threads: int | None
    mode: Literal["paired", "unpaired"]
    ratio: float
    interval: tuple[float, float] | None
    tolerance: float | None
    verdict: Verdict | None
    reason: str
    rounds: int


@dataclass(frozen=True)
class Suite:
    """What one call measured.

    Attributes:
        created: When it began, UTC, as ``2026-01-31T12:00:00Z``.
        tool: Name and version of the program that measured.
        benchmarks: By artifact, runner and number of threads.
        comparisons: Of candidates with the baseline.
        elapsed_s: Seconds that the call took.
        overhead: Share of the processes' time that was spent outside of warm-up and timed runs.
        interrupted: Whether the user ended it before all rounds were run.
    """

    created: str
    tool: str
    benchmarks: tuple[Benchmark, ...]
    comparisons: tuple[Comparison, ...] = ()
    elapsed_s: float | None = None
    overhead: float | None = None
    interrupted: bool = False

    def to_json(self) -> JSON:
        """Return the suite as the document of ``schemas/bench-1.schema.json``."""
        return {"schema": SCHEMA, **encode(self)}

    def to_text(self, *, indent: int | None = None) -> Iterator[str]:
        """Yield the text of `to_json` in pieces: of all runs only those of one round are in memory."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return text({"schema": SCHEMA, **own}, indent=indent)

    @classmethod
    def from_json(cls, document: Any, name: str = "the result") -> Self:
        """Read what `to_json` wrote.

        Args:
            document: Parsed JSON of any shape.
            name: What to call it in messages.

        Raises:
            ArtifactError: It is of another version, or does not satisfy the schema.
        """
        _validate(document, name)
        return decode(cls, {key: value for key, value in document.items() if key != "schema"})


def threads_in_words(count: int | None) -> str:
    """Return a number of threads with the noun, or whose choice it was."""
    if count is None:
        return "threads chosen by the runtime"
    return f"{count} thread{'s' * (count != 1)}"


def read_suite(path: Path) -> Suite:
    """Read a result file.

    Raises:
        ArtifactError: It is missing, too large, no JSON, of another version, or does not satisfy the schema.
    """
    return Suite.from_json(_KIND.parse(_KIND.read(path), str(path)), str(path))


def _validate(document: Any, name: str) -> None:
    _KIND.validate(document, name)
    for place, benchmark in enumerate(document["benchmarks"]):
        counted = [entry for entry in benchmark["rounds"] if entry["valid"]]
        if any(entry["median_ns"] is None for entry in counted):
            raise ArtifactError(
                f"{name} is not a result of bench: benchmarks[{place}] has a valid round without a median",
                hint=_HINT,
            )
