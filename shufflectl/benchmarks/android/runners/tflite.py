"""TensorFlow Lite's ``benchmark_model``: the Interpreter, timed by its own tool; figures from its log.

The second line ``count=...`` is that of the timed runs (the first one is the warm-up's), in microseconds::

    count=108 first=8622 curr=8726 min=8268 max=9464 avg=8708.66 std=193 p5=8407 median=8705 p95=8982
    Inference timings in us: Init: 355447, First inference: 45401, Warmup (avg): 9580.26, Inference (avg): ...

It gives no single runs. Flags: tensorflow/lite/tools/benchmark/README.md.
"""

import re
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
from shufflectl.benchmarks.android.runners.delegates import require_accelerator
from shufflectl.benchmarks.executor import Job, Measured

__all__ = ["TfliteRunner"]

_COUNT: Final = re.compile(r"count=(\d+)((?: \w+=[\d.eE+-]+)+)")
_FIGURE: Final = re.compile(r"(\w+)=([\d.eE+-]+)")
_TIMINGS: Final = re.compile(
    r"Inference timings in us: Init: ([\d.eE+-]+), First inference: ([\d.eE+-]+), "
    r"Warmup \(avg\): ([\d.eE+-]+), Inference \(avg\): ([\d.eE+-]+)"
)
_NAMES: Final = {"avg": "mean", "min": "min", "max": "max", "std": "std", "p5": "p5", "p95": "p95"}
_US: Final = 1e3


class TfliteRunner:
    """TensorFlow Lite's ``benchmark_model``."""

    name = "tflite"
    suffixes = (".tflite",)
    accelerators = ("cpu", "gpu", "nnapi")
    provides_samples = False
    can_pair = False
    marks = (b"Inference timings in us: ",)

    def probe(self, job: Job, program: str, models: Sequence[str]) -> Plan | None:  # noqa: ARG002
        """Return None: nothing must be known before."""
        return None

    def plan(self, job: Job, program: str, models: Sequence[str], probed: Finished | None) -> Plan:  # noqa: ARG002
        """Plan one round."""
        flags = {
            "graph": models[0],
            "num_threads": job.threads,
            "num_runs": job.min_iterations,
            "min_secs": f"{job.min_seconds:g}",
            "warmup_runs": job.warmup.min_iterations,
            "warmup_min_secs": f"{job.warmup.min_seconds:g}",
        }
        if job.accelerator == "cpu":
            flags["use_xnnpack"] = "true"
        else:
            flags[f"use_{job.accelerator}"] = "true"
            flags["require_full_delegation"] = "true"
        if job.accelerator == "nnapi":
            flags["disable_nnapi_cpu"] = "true"
        return Plan((program, *(f"--{name}={value}" for name, value in flags.items())))

    def read(self, job: Job, finished: Finished) -> tuple[Measured, ...]:
        """Read one round."""
        log = finished.log
        refuse_ignored_flags(self.name, log)
        if job.accelerator != "cpu" or finished.status == 0:
            delegation = require_accelerator(self.name, job.accelerator, log)
        if finished.status != 0:
            raise failed(self.name, finished)
        timings = _TIMINGS.search(log)
        counts = _COUNT.findall(log)
        if timings is None or not counts:
            raise unreadable(self.name, "its log has no line 'Inference timings in us'")
        try:
            figures = {name: nanoseconds(float(text), _US) for name, text in _FIGURE.findall(counts[-1][1])}
            init, first = (round(nanoseconds(float(text), _US)) for text in timings.groups()[:2])
        except ValueError as error:
            raise unreadable(self.name, str(error)) from error
        if int(counts[-1][0]) < job.min_iterations:
            raise unreadable(
                self.name, f"it ran {counts[-1][0]} times, and was asked for {job.min_iterations}"
            )
        if "median" not in figures:
            raise unreadable(self.name, "it is too old to tell the median")
        return (
            Measured(
                init_ns=init,
                first_ns=first,
                median_ns=figures["median"],
                reported={name: figures[own] for own, name in _NAMES.items() if own in figures},
                delegation=delegation,
            ),
        )
