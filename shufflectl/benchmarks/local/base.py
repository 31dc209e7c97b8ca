"""What executors on this machine share: what they say of themselves, refuse, and how they start processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.executor import Job
from shufflectl.benchmarks.local import machine
from shufflectl.benchmarks.results import RunnerInfo, Target
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.process import Completed, run
from shufflectl.errors import ArtifactError, UnavailableError, UsageError

__all__ = ["OnThisMachine", "require_cpu", "require_file"]

_GRACE_S: Final = 120.0
"""For starting the process and opening the files, over the time that was asked for."""
_PATIENCE: Final = 20.0
"""Runs that take this much longer than was asked for are taken to hang."""
_MAX_REPLY: Final = 16 << 20


class OnThisMachine:
    """Where an `Executor` runs, and how it starts a process for each job.

    Args:
        runner: What runs the files; its version may follow once `Executor.open` was entered.
        timeout: The longest time of one process, in seconds; None for one that follows from the job.
    """

    def __init__(self, runner: RunnerInfo, timeout: float | None) -> None:
        self._runner = runner
        self._timeout = timeout
        self._target = machine.target()

    @property
    def runner(self) -> RunnerInfo:
        """What runs the files, with its version: the runtime's, or the hash of a program's own library."""
        return self._runner

    @property
    def target(self) -> Target:
        """This machine."""
        return self._target

    def settle(self) -> None:
        """Do nothing: there is nothing to wait for."""

    def call(self, argv: Sequence[str], job: Job, *, folder: Path | None = None) -> Completed:
        """Run the process of a job, for as long as the job may take.

        Args:
            argv: The program and its arguments.
            job: The job.
            folder: The process's working folder; None for this one's.

        Raises:
            ArtifactError: It did not end in time.
            UnavailableError: It cannot be started, or printed too much.
        """
        longest = self._timeout or _GRACE_S + _PATIENCE * (job.warmup.max_seconds + job.min_seconds)
        try:
            return run(argv, timeout=longest, folder=folder, limit=_MAX_REPLY)
        except UnavailableError as error:
            if "did not end" not in error.message:
                raise
            names = " and ".join(path.name for path in job.artifacts)
            raise ArtifactError(
                f"{self.runner.name} did not get done with {names} within {longest:g} s",
                hint="ask for fewer runs with --min-iterations, or see whether the file runs at all",
            ) from error


def require_cpu(job: Job) -> None:
    """Refuse what runs on phones only.

    Raises:
        UsageError: The job asks for another accelerator.
    """
    if job.accelerator != "cpu":
        raise UsageError(
            f"on this machine files run on the CPU, not on {job.accelerator!r}",
            hint="leave --accelerator out",
        )


def require_file(artifact: Path, target: str, runtime: str) -> None:
    """Refuse what a runtime would follow out of the folder, or does not check itself.

    Raises:
        ArtifactError: The file is missing, damaged, or of another format than the target's.
    """
    if artifact.suffix != TARGETS[target].extension:
        raise ArtifactError(
            f"{runtime} does not run {artifact.name}", hint=f"it runs {TARGETS[target].extension} files"
        )
    if target == "tflite":
        from shufflectl.deploy.runtimes import tflite_file

        tflite_file.read(artifact)
    elif target == "onnx":
        from shufflectl.deploy.onnx_weights import external_files, parse

        external_files(parse(artifact)[0], artifact)
