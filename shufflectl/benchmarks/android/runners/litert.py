"""LiteRT's ``benchmark_model``: the CompiledModel, timed by its own tool; figures from its result file.

Its log has two decimals of a millisecond, too few for small models. The result file is the message that
`benchmark_proto` reads. Flags: litert/tools/benchmark_litert_model.h.
"""

from collections.abc import Sequence
from typing import Final

from shufflectl.benchmarks.android.runners.base import (
    Finished,
    Plan,
    failed,
    nanoseconds,
    refuse_ignored_flags,
    unreadable,
)
from shufflectl.benchmarks.android.runners.benchmark_proto import read_benchmark_result
from shufflectl.benchmarks.android.runners.delegates import require_accelerator
from shufflectl.benchmarks.executor import Job, Measured

__all__ = ["LitertRunner"]

_RESULT: Final = "result.pb"
_MS: Final = 1e6
_FIGURES: Final = ("mean", "min", "max", "std", "p5", "p95")


class LitertRunner:
    """LiteRT's ``benchmark_model``."""

    name = "litert"
    suffixes = (".tflite",)
    accelerators = ("cpu", "gpu")
    provides_samples = False
    can_pair = False
    marks = (b"BENCHMARK RESULTS", b"use_npu")

    def probe(self, job: Job, program: str, models: Sequence[str]) -> Plan | None:  # noqa: ARG002
        """Return None: nothing must be known before."""
        return None

    def plan(self, job: Job, program: str, models: Sequence[str], probed: Finished | None) -> Plan:  # noqa: ARG002
        """Plan one round. Without the CPU as an accelerator it may not fall back to it."""
        on_cpu = job.accelerator == "cpu"
        flags = {
            "graph": models[0],
            "num_threads": job.threads,
            "num_runs": job.min_iterations,
            "min_secs": f"{job.min_seconds:g}",
            "warmup_runs": job.warmup.min_iterations,
            "warmup_min_secs": f"{job.warmup.min_seconds:g}",
            "use_cpu": str(on_cpu).lower(),
            "use_gpu": str(not on_cpu).lower(),
            "require_full_delegation": str(not on_cpu).lower(),
            "result_file_path": _RESULT,
        }
        return Plan((program, *(f"--{name}={value}" for name, value in flags.items())), output=_RESULT)

    def read(self, job: Job, finished: Finished) -> tuple[Measured, ...]:
        """Read one round."""
        refuse_ignored_flags(self.name, finished.log)
        if job.accelerator != "cpu" or finished.status == 0:
            delegation = require_accelerator(self.name, job.accelerator, finished.log)
        if finished.status != 0:
            raise failed(self.name, finished)
        if finished.output is None:
            raise unreadable(self.name, "it wrote no result file")
        try:
            result = read_benchmark_result(finished.output)
            figures = {name: nanoseconds(value, _MS) for name, value in result.milliseconds.items()}
        except ValueError as error:
            raise unreadable(self.name, str(error)) from error
        if not figures.get("median"):
            raise unreadable(self.name, "its result file has no median")
        if result.runs is not None and result.runs < job.min_iterations:
            raise unreadable(self.name, f"it ran {result.runs} times, and was asked for {job.min_iterations}")
        peak = result.peak_megabytes
        return (
            Measured(
                init_ns=round(figures["init"]) if "init" in figures else None,
                first_ns=round(figures["first"]) if "first" in figures else None,
                median_ns=figures["median"],
                reported={name: figures[name] for name in _FIGURES if name in figures},
                peak_rss_bytes=round(peak * 2**20) if peak else None,
                delegation=delegation,
            ),
        )
