"""Our own runner, in C over LiteRT: every run's time, two models in turns, warm-up until steady.

``shufflectl/benchmarks/runner/runner.c`` describes its flags and the JSON document that it writes. It loads
``libLiteRt.so``, which is sent along with it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shufflectl.benchmarks.android.runners.base import Finished, Plan, complaint, failed, unreadable
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.results import Delegation, Snapshot
from shufflectl.errors import UnavailableError

__all__ = ["OwnRunner"]

_SCHEMA: Final = "shufflectl.runner/1"
_RESULT: Final = "result.json"
_LONGEST_NS: Final = 3_600_000_000_000
_MOST: Final = 1 << 20


class OwnRunner:
    """The runner of this project."""

    name = "shufflectl"
    suffixes = (".tflite",)
    accelerators = ("cpu",)
    provides_samples = True
    can_pair = True
    marks = (_SCHEMA.encode(),)

    def probe(self, job: Job, program: str, models: Sequence[str]) -> Plan | None:  # noqa: ARG002
        """Return None: nothing must be known before."""
        return None

    def plan(self, job: Job, program: str, models: Sequence[str], probed: Finished | None) -> Plan:  # noqa: ARG002
        """Plan one round."""
        options = {
            "threads": job.threads,
            "seed": job.seed,
            "settle": job.settle if len(models) > 1 else 0,
            "warmup-min-iterations": job.warmup.min_iterations,
            "warmup-min-seconds": f"{job.warmup.min_seconds:g}",
            "warmup-max-seconds": f"{job.warmup.max_seconds:g}",
            "min-iterations": job.min_iterations,
            "min-seconds": f"{job.min_seconds:g}",
            "output": _RESULT,
        }
        words = [program]
        for model in models:
            words += ["--model", model]
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        return Plan(tuple(words), output=_RESULT)

    def read(self, job: Job, finished: Finished) -> tuple[Measured, ...]:
        """Read one round."""
        if finished.status in (2, 7):
            raise UnavailableError(
                f"the {self.name} runner does not run: {complaint(finished)}",
                hint="build it again from this version's source, with its libLiteRt.so (docs/runner.md)",
            )
        if finished.status != 0:
            raise failed(self.name, finished)
        try:
            document = json.loads(finished.output or b"", parse_constant=_refuse)
            if document["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {str(document['schema'])[:60]}")  # noqa: TRY301
            if document["threads"] != job.threads or document["accelerator"] != job.accelerator:
                raise ValueError("it ran with other threads, or elsewhere, than was asked")  # noqa: TRY301
            models = document["models"]
            if len(models) != len(job.artifacts):
                raise ValueError("it measured another number of models")  # noqa: TRY301
            process = _process(document)
            results = tuple(_measured(model, process) for model in models)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(self.name, f"{type(error).__name__}: {error}"[:200]) from error
        few = [len(result.samples_ns) for result in results if len(result.samples_ns) < job.min_iterations]
        if few:
            raise unreadable(self.name, f"it ran {few[0]} times, and was asked for {job.min_iterations}")
        return results


def _process(document: Mapping[str, Any]) -> Measured:
    """Return what holds for all models of a process."""
    spent = _whole(document["measured_ns"])
    waited = None if document["waited_ns"] is None else _whole(document["waited_ns"], 1 << 50)
    return Measured(
        peak_rss_bytes=_whole(document["peak_rss_bytes"], 1 << 50),
        after=None if waited is None or not spent else Snapshot(waited=waited / spent),
        measured_s=spent / 1e9,
    )


def _measured(model: Mapping[str, Any], process: Measured) -> Measured:
    delegation = model["delegation"]
    return replace(
        process,
        init_ns=_whole(model["init_ns"]),
        first_ns=_whole(model["first_ns"]),
        warmup_ns=_times(model["warmup_ns"]),
        steady=bool(model["steady"]),
        samples_ns=_times(model["samples_ns"]),
        delegation=None
        if delegation is None
        else Delegation(
            str(delegation["accelerator"])[:40],
            _whole(delegation["replaced"], 1 << 32),
            _whole(delegation["total"], 1 << 32),
            _whole(delegation["partitions"], 1 << 32),
        ),
    )


def _times(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > _MOST:
        raise TypeError("times are no list")
    return tuple(_whole(value) for value in values)


def _whole(value: object, most: int = _LONGEST_NS) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a figure is no whole number, or out of range")
    return value


def _refuse(text: str) -> float:
    raise ValueError(f"it holds {text}")
