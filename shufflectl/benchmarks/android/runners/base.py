"""What a program that measures on a phone must be told, and how what it prints is read.

A runner is one module: it plans a command line for a job, and reads what the program left. It never calls
the device itself. What a program prints is not trusted: figures are bounded, and a program that ignored a
flag, or ran the model elsewhere than asked, is an error.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.errors import ArtifactError, UnavailableError

__all__ = [
    "Finished",
    "Plan",
    "Runner",
    "complaint",
    "failed",
    "nanoseconds",
    "refuse_ignored_flags",
    "unreadable",
]

_IGNORED: Final = re.compile(r"Unconsumed cmdline flags: (.*)")
_WORDS: Final = re.compile(r"error|fail|cannot|could not|unable|invalid|unsupported", re.IGNORECASE)
_LONGEST_NS: Final = 3600.0 * 1e9


@dataclass(frozen=True)
class Plan:
    """A command line for the device, in the folder that holds the runner and the models.

    Attributes:
        argv: The program and its arguments.
        output: A file that it writes there, by name; empty for none.
        env: Variables to add to its environment.
    """

    argv: tuple[str, ...]
    output: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """What the program left.

    Attributes:
        status: Its exit status.
        stdout: Its standard output.
        stderr: Its standard error.
        output: The file that it was to write; None where it wrote none.
    """

    status: int
    stdout: str
    stderr: str
    output: bytes | None = None

    @property
    def log(self) -> str:
        """Everything that it printed."""
        return f"{self.stdout}\n{self.stderr}"


class Runner(Protocol):
    """A kind of program that measures on a device."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The files that it runs."""

    @property
    def accelerators(self) -> tuple[str, ...]:
        """What it can run them on."""

    @property
    def provides_samples(self) -> bool:
        """Whether it gives every run's time."""

    @property
    def can_pair(self) -> bool:
        """Whether one process can hold two models."""

    @property
    def marks(self) -> tuple[bytes, ...]:
        """What its binaries, and no other kind's that is looked for later, contain."""

    def probe(self, job: Job, program: str, models: Sequence[str]) -> Plan | None:
        """Plan what must be known of a model before its first round; None where nothing must."""

    def plan(self, job: Job, program: str, models: Sequence[str], probed: Finished | None) -> Plan:
        """Plan one round.

        Raises:
            UsageError: The job asks for what this runner cannot do.
        """

    def read(self, job: Job, finished: Finished) -> tuple[Measured, ...]:
        """Read one round, one result for each model; its ``after`` holds what the process saw itself.

        Raises:
            ArtifactError: The program fails on the model.
            UnavailableError: The program ignored a flag, did not use the accelerator, or left nothing that
                can be read.
        """


def refuse_ignored_flags(runner: str, log: str) -> None:
    """Refuse what a program measured that did not understand what it was asked.

    Raises:
        UnavailableError: It says that it ignored flags.
    """
    match = _IGNORED.search(log)
    if match is not None:
        flags = "".join(char for char in match[1].strip() if char.isprintable())[:200]
        raise UnavailableError(
            f"the {runner} runner ignored {flags}, so that it measured something else than was asked",
            hint="get a newer build of it (docs/runner.md)",
        )


def complaint(finished: Finished) -> str:
    """Return the line that says best why a program failed."""
    lines = [line.strip() for line in finished.log.splitlines() if line.strip()]
    last = [line for line in lines if line.startswith("error: ")][-1:]  # how our own runner ends
    telling = last or [line for line in lines if _WORDS.search(line)]
    text = (telling or lines or ["it printed nothing"])[0 if telling else -1]
    return "".join(char if char.isprintable() else "?" for char in text)[:300]


def failed(runner: str, finished: Finished) -> ArtifactError:
    """Return the error for a program that ended with a status of failure."""
    return ArtifactError(
        f"the {runner} runner failed with status {finished.status}: {complaint(finished)}",
        hint="shufflectl check runs the file here, and shufflectl inspect shows its operators",
    )


def unreadable(runner: str, what: str) -> UnavailableError:
    """Return the error for a program that ended well and left no figures."""
    return UnavailableError(
        f"the {runner} runner left no result that can be read: {what}",
        hint="see that the runner is what its name says (shufflectl runner list), and docs/runner.md",
    )


def nanoseconds(value: float, unit_ns: float) -> float:
    """Return a time in nanoseconds.

    Raises:
        ValueError: It is no time of an inference.
    """
    result = value * unit_ns
    if not math.isfinite(result) or not 0.0 <= result <= _LONGEST_NS:
        raise ValueError(f"{value} is no time")
    return result
