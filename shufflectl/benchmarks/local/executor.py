"""Runs artifacts on this machine, one fresh process a round (`round_worker`)."""

import hashlib
import json
import math
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.local import machine
from shufflectl.benchmarks.local.base import OnThisMachine, require_cpu, require_file
from shufflectl.benchmarks.results import Delegation, RunnerInfo
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.runtimes import create
from shufflectl.errors import (
    ArtifactError,
    MissingDependencyError,
    ShufflectlError,
    UnavailableError,
    UnstableError,
    UsageError,
    nearest,
)

__all__ = ["CHOOSES_THREADS", "RUNTIMES", "LocalExecutor"]

RUNTIMES: Final = ("onnxruntime", "litert", "tflite-runtime", "coreml")
"""Runtimes that the worker times; the Core ML reference is not worth it."""

CHOOSES_THREADS: Final = frozenset({"coreml"})
"""Those of them that cannot be told a number of threads: none is recorded, since none would be true."""

_WORKER: Final = Path(__file__).with_name("round_worker.py")


class LocalExecutor(OnThisMachine):
    """One runtime on this machine; an `Executor`.

    Args:
        runtime: One of `RUNTIMES`.
        python: The interpreter in which tflite-runtime is installed.
        timeout: The longest time of one process, in seconds; None for one that follows from the job.

    Raises:
        UsageError: There is no such runtime, or it needs an interpreter.
    """

    def __init__(self, runtime: str, *, python: Path | None = None, timeout: float | None = None) -> None:
        if runtime not in RUNTIMES:
            what = (
                "is not timed: it computes what Core ML would, slowly"
                if runtime == "coreml-reference"
                else ""
            )
            raise UsageError(
                f"the runtime {runtime!r} {what or 'does not exist'}", hint=nearest(runtime, RUNTIMES)
            )
        self._runtime = create(runtime, python=python)
        self._python = str(python) if runtime == "tflite-runtime" else sys.executable
        super().__init__(
            RunnerInfo(
                runtime,
                sha256=hashlib.sha256(_WORKER.read_bytes()).hexdigest(),
                argv=("python", "-I", _WORKER.name, "REQUEST"),
                provides_samples=True,
                can_pair=True,
            ),
            timeout,
        )

    @property
    def format(self) -> str:
        """The format of the artifacts that it runs."""
        return self._runtime.format

    @contextmanager
    def open(self, artifacts: Sequence[Path]) -> Iterator[None]:
        """Check that the runtime works here, and that it may open the artifacts; see `Executor.open`."""
        state = self._runtime.available()
        if not state.ok:
            row = TARGETS[self.format]
            if state.remedy and row.package and row.extra and self._runtime.name == row.runtimes[0]:
                raise MissingDependencyError(row.package, row.extra, f"running {row.extension} files")
            raise UnavailableError(f"{self._runtime.name}: {state.reason}", hint=state.remedy)
        for artifact in artifacts:
            require_file(artifact, self.format, self._runtime.name)
        version = state.version
        if self._runtime.name == "coreml":  # a part of macOS; the package only calls it
            version = f"macOS {platform.mac_ver()[0]}, coremltools {version}"
        self._runner = replace(self._runner, version=version)
        yield

    def run(self, job: Job) -> tuple[Measured, ...]:
        """Run one job in a fresh process; see `Executor.run`."""
        require_cpu(job)
        request = {
            "runtime": self._runtime.name,
            "artifacts": [str(path.absolute()) for path in job.artifacts],
            "threads": job.threads,
            "seed": job.seed,
            "warmup": {name: getattr(job.warmup, name) for name in job.warmup.__dataclass_fields__},
            "min_iterations": job.min_iterations,
            "min_seconds": job.min_seconds,
            "settle": job.settle,
            "affinity": list(machine.affinity(job.affinity)),
        }
        before = machine.snapshot()
        # -I: neither PYTHONPATH nor the worker's own folder may lend it modules
        argv = [self._python, "-I", str(_WORKER), json.dumps(request)]
        names = " and ".join(path.name for path in job.artifacts)
        done = self.call(argv, job)
        reply = self._reply(done.stdout, done.status, done.stderr, names)
        after = machine.snapshot(noise=reply["noise"])
        try:
            return tuple(
                _measured(entry, reply["peak_rss_bytes"], before, after, float(reply["measured_s"]))
                for _, entry in zip(job.artifacts, reply["results"], strict=True)
            )
        except (LookupError, TypeError, ValueError) as error:
            raise self._nonsense(names) from error

    def _reply(self, text: str, status: int, said: str, names: str) -> dict[str, Any]:
        try:
            reply = json.loads(text)
            message = str(reply.get("message", ""))
            kind = reply.get("error")
        except (ValueError, AttributeError, RecursionError) as error:
            lines = said.strip().splitlines()
            words = f": {lines[-1][:300]}" if lines else ""
            raise ArtifactError(
                f"{self._runtime.name} ended with status {status} on {names}{words}",
                hint="see with 'shufflectl check' whether the file runs",
            ) from error
        if kind == "import":
            raise UnavailableError(f"{self._runtime.name} does not load: {message}", hint="install it again")
        if kind == "file":
            raise ArtifactError(f"{self._runtime.name} cannot run {message}", hint="export the model again")
        if kind is not None:
            raise ShufflectlError(
                f"the worker of {self._runtime.name} failed: {message}", hint="report this defect"
            )
        if (
            not isinstance(reply.get("noise"), dict)
            or "results" not in reply
            or "peak_rss_bytes" not in reply
        ):
            raise self._nonsense(names)
        reply["noise"] = {
            key: min(float(value), 1e6)
            for key, value in reply["noise"].items()
            if key in ("stolen", "others", "waited") and isinstance(value, (int, float)) and value >= 0
        }
        return dict(reply)

    def _nonsense(self, names: str) -> UnstableError:
        return UnstableError(f"the reply of {self._runtime.name} on {names} makes no sense")


def _measured(entry: Mapping[str, Any], peak: Any, before: Any, after: Any, measured_s: float) -> Measured:
    """Read one result of a reply.

    Raises:
        LookupError, TypeError, ValueError: It is not one.
    """
    took = entry["delegation"]
    return Measured(
        init_ns=_count(entry["init_ns"]),
        first_ns=_count(entry["first_ns"]),
        warmup_ns=tuple(map(_count, entry["warmup_ns"])),
        steady=bool(entry["steady"]),
        samples_ns=tuple(map(_count, entry["samples_ns"])),
        peak_rss_bytes=None if peak is None else _count(peak),
        delegation=None
        if took is None
        else Delegation(
            str(took["accelerator"]),
            _count(took["replaced"]),
            _count(took["total"]),
            _count(took["partitions"]),
        ),
        before=before,
        after=after,
        measured_s=measured_s,
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < math.pow(2, 62):
        raise ValueError(f"{value!r} is no count")
    return value
