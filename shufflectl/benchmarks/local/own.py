"""Runs TFLite files on this machine with our own runner, the C program that also measures on phones.

What it is told and how its answer is read is `android.runners.own`'s. Here it gets LiteRT's library out of
the package ai-edge-litert, unless it comes with one of its own.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.android import store
from shufflectl.benchmarks.android.runners import Finished
from shufflectl.benchmarks.android.runners.own import OwnRunner
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.local import machine
from shufflectl.benchmarks.local.base import OnThisMachine, require_cpu, require_file
from shufflectl.benchmarks.results import RunnerInfo
from shufflectl.benchmarks.runner import NAME, library
from shufflectl.deploy.devices import program_abi
from shufflectl.deploy.digests import digest
from shufflectl.deploy.runtimes import create
from shufflectl.errors import ArtifactError, UnavailableError, UsageError

__all__ = ["OWN", "OwnExecutor", "find"]

OWN: Final = "litert-c"
"""What users call it on this machine."""

_LIBRARY: Final = "libLiteRt.so"
_MOST_BYTES: Final = 16 << 20
_BUILD: Final = f"build it with: shufflectl runner build; then pass --runner ./{NAME}"


def find(wanted: str | None) -> store.Program:
    """Return our runner's program for this machine.

    Args:
        wanted: Its path, or its name in the cache of runners; None for the only one there that runs here.

    Raises:
        UsageError: It is another runner, may not be executed, or there are several; or no such one.
        UnavailableError: None is in the cache, or this is no system that it runs on.
        ArtifactError: It is for another instruction set, or was changed in the cache.
    """
    if sys.platform != "linux":
        raise UnavailableError(
            f"{OWN} runs on Linux and Android only", hint="measure with --runtime litert here"
        )
    abi = program_abi(Path(sys.executable).resolve())
    if wanted is None:
        fitting = [p.name for p in store.installed() if (p.kind, p.abi) == (OwnRunner.name, abi)]
        if not fitting:
            raise UnavailableError(
                f"{OWN} needs our own runner, and the cache has none for {abi}", hint=_BUILD
            )
        if len(fitting) > 1:
            raise UsageError(
                f"which program is to run the files with {OWN}?",
                hint=f"choose with --runner: {', '.join(fitting)}",
            )
        (wanted,) = fitting
    program = store.find(wanted)
    if program.kind != OwnRunner.name:
        raise UsageError(f"{OWN} is our own runner, and {program.name} is one of {program.kind}", hint=_BUILD)
    if program.abi != abi:
        raise ArtifactError(f"{program.name} is a program for {program.abi}, and this is {abi}", hint=_BUILD)
    if not os.access(program.path, os.X_OK):
        raise UsageError(
            f"{program.path} may not be executed", hint=f"chmod +x {shlex.quote(str(program.path))}"
        )
    return program


class OwnExecutor(OnThisMachine):
    """Our own runner on this machine; an `Executor`.

    Args:
        program: The runner.
        timeout: The longest time of one process, in seconds; None for one that follows from the job.
    """

    def __init__(self, program: store.Program, *, timeout: float | None = None) -> None:
        super().__init__(
            RunnerInfo(
                OWN,
                sha256=program.sha256,
                argv=(NAME, "--model", "MODEL"),
                provides_samples=True,
                can_pair=True,
            ),
            timeout,
        )
        self._program = program
        self._own = OwnRunner()
        self._library: Path | None = None

    @contextmanager
    def open(self, artifacts: Sequence[Path]) -> Iterator[None]:
        """Find LiteRT's library, and check that it may open the artifacts; see `Executor.open`."""
        own = next((path for path in self._program.libraries if path.name == _LIBRARY), None)
        self._library = own or library()
        version = f"library {digest(own)[:12]}" if own else create("litert").available().version
        for artifact in artifacts:
            require_file(artifact, "tflite", OWN)
        self._runner = replace(self._runner, version=version)
        yield

    def run(self, job: Job) -> tuple[Measured, ...]:
        """Run one job in a fresh process; see `Executor.run`."""
        require_cpu(job)
        if self._library is None:
            raise UsageError("the executor is not open")
        cores = machine.affinity(job.affinity)
        models = [str(path.absolute()) for path in job.artifacts]
        plan = self._own.plan(job, str(self._program.path.absolute()), models, None)
        argv = [*plan.argv, "--library", str(self._library)]
        before, begun = machine.snapshot(), machine.processor_time()
        with tempfile.TemporaryDirectory(prefix="shufflectl-") as scratch:
            folder = Path(scratch)
            with machine.pinned(cores):
                done = self.call(argv, job, folder=folder)
            finished = Finished(done.status, done.stdout, done.stderr, _output(folder / plan.output))
        after = machine.snapshot(noise=machine.noise(begun, machine.processor_time()))
        return tuple(
            replace(
                result,
                before=before,
                after=replace(after, waited=result.after.waited if result.after else None),
            )
            for result in self._own.read(job, finished)
        )


def _output(path: Path) -> bytes | None:
    """Return what the program wrote; None where it wrote nothing, or more than it ever does."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    return path.read_bytes()
