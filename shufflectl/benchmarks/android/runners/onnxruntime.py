"""ONNX Runtime's ``onnxruntime_perf_test``: every run's time, from its result file.

With a result file it appends one line a run, ``MODEL,SECONDS,PEAK_BYTES,CPU_PERCENT,INDEX`` (DumpToFile in
onnxruntime/test/perftest/performance_runner.cc). It runs a number of times and knows no least time, so a
short run first tells how long one takes. That one logs where operators were placed as well, because nothing
else says whether NNAPI took them; it would slow down what is timed.
"""

import math
import re
from collections.abc import Sequence
from typing import Final

from shufflectl.benchmarks.android.runners.base import Finished, Plan, failed, nanoseconds, unreadable
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.results import Delegation
from shufflectl.errors import UnavailableError

__all__ = ["OnnxRuntimeRunner"]

_RESULT: Final = "result.csv"
_PROBE_RUNS: Final = 5
_MOST_RUNS: Final = 100_000
_SESSION: Final = re.compile(r"Session creation time cost: ?([\d.eE+-]+) ?s")
_FIRST: Final = re.compile(r"First inference time cost: ?([\d.eE+-]+) ?ms")
_PLACED: Final = re.compile(r"placed on \[(\w+)\]\. Number of nodes: (\d{1,7})")
_PROVIDERS: Final = {"nnapi": "NnapiExecutionProvider"}


class OnnxRuntimeRunner:
    """ONNX Runtime's ``onnxruntime_perf_test``."""

    name = "onnxruntime"
    suffixes = (".onnx", ".ort")
    accelerators = ("cpu", "nnapi")
    provides_samples = True
    can_pair = False
    marks = (b"onnxruntime_perf_test",)

    def probe(self, job: Job, program: str, models: Sequence[str]) -> Plan | None:
        """Plan a few runs, with the placement of operators logged."""
        return self._plan(job, program, models, _PROBE_RUNS, verbose=job.accelerator != "cpu")

    def plan(self, job: Job, program: str, models: Sequence[str], probed: Finished | None) -> Plan:
        """Plan one round: as many runs as take the least time."""
        typical = min(_samples(probed)) if probed is not None else 0
        if probed is not None:
            self._placement(job, probed)
        least = math.ceil(job.min_seconds * 1e9 / typical) if typical else job.min_iterations
        warmup = math.ceil(job.warmup.min_seconds * 1e9 / typical) if typical else 0
        runs = max(job.min_iterations, least) + max(job.warmup.min_iterations, warmup)
        return self._plan(job, program, models, min(runs, _MOST_RUNS), verbose=False)

    def read(self, job: Job, finished: Finished) -> tuple[Measured, ...]:
        """Read one round: the first runs, by number and time, are warm-up."""
        if finished.status != 0:
            raise failed(self.name, finished)
        samples = _samples(finished)
        warmup, spent = 0, 0
        while warmup < len(samples) - job.min_iterations and (
            warmup < job.warmup.min_iterations or spent < job.warmup.min_seconds * 1e9
        ):
            spent += samples[warmup]
            warmup += 1
        session, first = _SESSION.search(finished.log), _FIRST.search(finished.log)
        try:
            init_ns = round(nanoseconds(float(session[1]), 1e9)) if session else None
            first_ns = round(nanoseconds(float(first[1]), 1e6)) if first else None
        except ValueError as error:
            raise unreadable(self.name, str(error)) from error
        peaks = [line.split(",")[-3] for line in _lines(finished)]
        peak = max((int(text) for text in peaks if text.isdecimal() and len(text) < 16), default=0)
        return (
            Measured(
                init_ns=init_ns,
                first_ns=first_ns,
                warmup_ns=tuple(samples[:warmup]),
                samples_ns=tuple(samples[warmup:]),
                peak_rss_bytes=peak or None,
                delegation=None if job.accelerator == "cpu" else Delegation(job.accelerator),
            ),
        )

    def _plan(self, job: Job, program: str, models: Sequence[str], runs: int, *, verbose: bool) -> Plan:
        words = ["-m", "times", "-r", str(runs), "-x", str(job.threads), "-y", "1", "-S", "1", "-s", "-I"]
        words += ["-e", job.accelerator]
        if job.accelerator == "nnapi":
            words += ["-i", "NNAPI_FLAG_CPU_DISABLED"]
        if verbose:
            words.append("-v")
        return Plan((program, *words, models[0], _RESULT), output=_RESULT)

    def _placement(self, job: Job, probed: Finished) -> None:
        if job.accelerator == "cpu":
            return
        placed: dict[str, int] = {}
        for name, count in _PLACED.findall(probed.log):
            placed[name] = int(count)
        wanted = _PROVIDERS[job.accelerator]
        if set(placed) != {wanted}:
            parts = ", ".join(f"{count} on {name}" for name, count in placed.items())
            raise UnavailableError(
                f"the model did not run on {job.accelerator.upper()} alone with the {self.name} runner: "
                f"{parts or 'its log does not say where operators ran'}",
                hint="measure with --accelerator cpu",
            )


def _lines(finished: Finished) -> list[str]:
    text = (finished.output or b"").decode(errors="replace")
    return [line for line in text.splitlines() if line.count(",") >= 4]


def _samples(finished: Finished) -> list[int]:
    """Return every run's time, in nanoseconds.

    Raises:
        ArtifactError: The program failed.
        UnavailableError: The file has no times.
    """
    if finished.status != 0:
        raise failed(OnnxRuntimeRunner.name, finished)
    try:
        # The model's name may hold commas: the fields are counted from the end.
        samples = [round(nanoseconds(float(line.rsplit(",", 4)[1]), 1e9)) for line in _lines(finished)]
    except ValueError as error:
        raise unreadable(OnnxRuntimeRunner.name, str(error)) from error
    if not samples or min(samples) <= 0:
        raise unreadable(OnnxRuntimeRunner.name, "its result file has no times")
    return samples
