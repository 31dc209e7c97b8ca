"""What the protocol asks of a place where models run: this machine, or a phone.

An executor starts one fresh process a job and returns what it measured. It does not decide how often, in
which order, or whether a result counts beyond what it can see itself; that is the protocol's.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shufflectl.benchmarks.results import Delegation, RunnerInfo, Snapshot, Target, Warmup

__all__ = ["Executor", "Job", "Measured"]


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        artifacts: One (absolute) or two (paired) of those that the executor was opened with. The process
            opens and runs them in an order that follows from the seed.
        block: The block of the schedule that it belongs to.
        seed: Of the order of runs within the process.
        warmup: When runs count as steady.
        min_iterations: Fewest timed runs of each artifact.
        min_seconds: Shortest time that the process measures for, untimed (settling) runs included.
        settle: Untimed runs of the same artifact before each timed one, in paired jobs.
        threads: Of the runtime, unless it is one that chooses them itself.
        accelerator: ``cpu``, ``gpu`` or ``nnapi``.
        affinity: Cores to pin the process to, as in ``0,1``; empty for none; a phone also takes ``big``.
    """

    artifacts: tuple[Path, ...]
    block: int
    seed: int
    warmup: Warmup
    min_iterations: int
    min_seconds: float
    settle: int = 1
    threads: int = 1
    accelerator: str = "cpu"
    affinity: str = ""


@dataclass(frozen=True)
class Measured:
    """What one process measured of one artifact; the fields are those of `results.Round`.

    Attributes:
        spoiled: Why the executor thinks that it must not count, for example a clock that was capped
            meanwhile; empty where it may. The protocol tries again, as after an `UnstableError`.
        measured_s: How long the process warmed up and measured, all its artifacts together, where it says so.
    """

    init_ns: int | None = None
    first_ns: int | None = None
    warmup_ns: tuple[int, ...] = ()
    steady: bool | None = None
    samples_ns: tuple[int, ...] = ()
    median_ns: float | None = None
    reported: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int | None = None
    delegation: Delegation | None = None
    before: Snapshot | None = None
    after: Snapshot | None = None
    spoiled: str = ""
    measured_s: float | None = None


class Executor(Protocol):
    """A place where models run."""

    @property
    def runner(self) -> RunnerInfo:
        """What runs them; complete once `open` was entered."""

    @property
    def target(self) -> Target:
        """Where; complete once `open` was entered."""

    def open(self, artifacts: Sequence[Path]) -> AbstractContextManager[None]:
        """Make artifacts ready (push and check them); leaving cleans up in every ending.

        Raises:
            ArtifactError: An artifact is missing or of a kind that the runner does not take.
            UnavailableError: The runner or the device is not there.
        """

    def run(self, job: Job) -> tuple[Measured, ...]:
        """Run one job in a fresh process and return one result for each of its artifacts, in their order.

        ``median_ns`` may be None where there are samples: the protocol computes it then.

        Raises:
            UnstableError: The round is spoiled (a hot or capped phone); the protocol tries again.
            UnavailableError: The device or runner is gone, or did not answer in time.
            ArtifactError: The runner fails on the artifact.
        """

    def settle(self) -> None:
        """Wait until the next round may begin (cool down); nothing on this machine.

        Raises:
            UnstableError: It does not get there in time.
        """
