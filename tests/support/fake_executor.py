"""A place where models run that runs nothing: its times follow from a function of the job."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.protocol import Group, Subject
from shufflectl.benchmarks.results import Config, Mode, ModelFile, RunnerInfo, Target, Warmup

CONFIG = Config("cpu", 1, "", "fp32", "absolute", 10, Warmup(), 30, 2.0, 1, 7)
RUNNER = RunnerInfo("fake", "1", "", ("fake",), provides_samples=True, can_pair=True)


class FakeExecutor:
    """An executor whose results ``answer`` gives."""

    def __init__(self, answer: Callable[[Job], Sequence[Measured]]) -> None:
        self.answer = answer
        self.runner = RUNNER
        self.target = Target("local", cpu="fake", cores=2)
        self.jobs: list[Job] = []
        self.settled = 0
        self.opened: list[tuple[Path, ...]] = []
        self.is_open = False

    @contextmanager
    def open(self, artifacts: Sequence[Path]) -> Iterator[None]:
        self.opened.append(tuple(artifacts))
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def settle(self) -> None:
        self.settled += 1

    def run(self, job: Job) -> tuple[Measured, ...]:
        assert self.is_open
        self.jobs.append(job)
        return tuple(self.answer(job))


def subject(name: str) -> Subject:
    return Subject(name, Path(name), ModelFile(name, "0" * 64, "tflite", 1), "fp32")


def group(executor: FakeExecutor, *names: str, mode: Mode = "absolute", rounds: int = 10) -> Group:
    pairs = tuple((0, place) for place in range(1, len(names))) if mode == "paired" else ()
    config = replace(CONFIG, mode=mode, rounds=rounds)
    return Group(executor, config, tuple(map(subject, names)), pairs)


def constant(job: Job) -> list[Measured]:
    return [Measured(samples_ns=(1000,) * 60, measured_s=0.0) for _ in job.artifacts]
