"""What runs when, what is tried again, and what is said about it."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from shufflectl.benchmarks.compare import paired
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.protocol import Group, Measurement, measure
from shufflectl.errors import ArtifactError, UnavailableError, UnstableError
from support.fake_executor import FakeExecutor, constant, group


def run(*groups: Group, retries: int = 3) -> Measurement:
    return measure(groups, notify=lambda *_: None, retries=retries)


def test_every_unit_comes_once_in_each_block_in_an_order_of_its_own() -> None:
    executor = FakeExecutor(constant)
    run(group(executor, "a", "b", "c", "d"))
    blocks = [[str(j.artifacts[0]) for j in executor.jobs if j.block == block] for block in range(10)]
    assert all(["a", "b", "c", "d"] == sorted(block) for block in blocks)
    assert 1 < len(set(map(tuple, blocks)))


def test_groups_are_interleaved_within_blocks() -> None:
    first, second = FakeExecutor(constant), FakeExecutor(constant)
    found = run(group(first, "a"), group(second, "b"))
    orders = [[r.order for r in benchmark.rounds] for benchmark in found.benchmarks]
    assert all(set(pair) == {2 * b, 2 * b + 1} for b, pair in enumerate(zip(*orders, strict=True)))
    assert [0] * 10 != [order % 2 for order in orders[0]]


def test_the_schedule_follows_from_the_seed() -> None:
    jobs = []
    for seed in (7, 7, 8):
        executor = FakeExecutor(constant)
        made = group(executor, "a", "b", "c")
        run(replace(made, config=replace(made.config, seed=seed)))
        jobs.append([(job.artifacts, job.seed) for job in executor.jobs])
    assert jobs[0] == jobs[1]
    assert jobs[0] != jobs[2]
    assert 30 == len({seed for _, seed in jobs[0]})


def test_an_executor_that_two_groups_share_is_opened_once() -> None:
    executor = FakeExecutor(constant)
    made = group(executor, "a", "b")
    run(made, replace(made, config=replace(made.config, threads=2)))
    assert [2] == [len(paths) for paths in executor.opened]
    assert Counter({1: 20, 2: 20}) == Counter(job.threads for job in executor.jobs)
    assert not executor.is_open


def interrupted_in(number: int) -> Callable[[Job], list[Measured]]:
    """Return an answer that the user interrupts in the process of that number."""
    numbers = iter(range(1, 1000))

    def answer(job: Job) -> list[Measured]:
        if next(numbers) == number:
            raise KeyboardInterrupt
        return constant(job)

    return answer


def test_an_interrupt_keeps_the_rounds_that_have_ended() -> None:
    executor = FakeExecutor(interrupted_in(8))
    found = measure([group(executor, "a", "b")], notify=lambda *_: None, stoppable=True)
    assert found.interrupted
    assert not executor.is_open
    assert list(range(7)) == sorted(r.order for b in found.benchmarks for r in b.rounds)
    assert {"unstable"} == {b.status for b in found.benchmarks}
    for benchmark in found.benchmarks:
        assert (f"interrupted: {len(benchmark.rounds)} of 10 rounds count",) == benchmark.reasons


def test_a_benchmark_that_an_interrupt_left_without_a_round_has_not_failed() -> None:
    executor = FakeExecutor(interrupted_in(2))
    found = measure([group(executor, "a", "b")], notify=lambda *_: None, stoppable=True)
    (without,) = [b for b in found.benchmarks if not b.rounds]
    assert ("unstable", ("interrupted before its first round ended",)) == (without.status, without.reasons)


def test_an_interrupt_is_passed_on_unless_the_caller_wants_it() -> None:
    executor = FakeExecutor(interrupted_in(8))
    with pytest.raises(KeyboardInterrupt):
        run(group(executor, "a"))
    assert not executor.is_open


def test_it_settles_before_every_process() -> None:
    executor = FakeExecutor(constant)
    run(group(executor, "a"))
    assert 10 == executor.settled


def test_paired_rounds_name_their_partners() -> None:
    executor = FakeExecutor(constant)
    found = run(group(executor, "z"), group(executor, "a", "b", "c", mode="paired"))
    base, first, second = found.benchmarks[1:]
    assert 20 == len(base.rounds)
    assert {2, 3} == {r.partner for r in base.rounds}
    assert {1} == {r.partner for r in (*first.rounds, *second.rounds)}
    assert all(status == "ok" for status in (base.status, first.status, second.status))


def test_the_ratio_is_that_of_each_process() -> None:
    """Processes differ threefold; within each the candidate takes 2 % more."""
    draw = random.Random(0)

    def answer(job: Job) -> list[Measured]:
        speed = draw.uniform(1, 3)
        return [Measured(samples_ns=(int(1e6 * speed * share),) * 50) for share in (1, 1.02)]

    found = run(group(FakeExecutor(answer), "a", "b", mode="paired"))
    comparison = paired(*found.benchmarks, (0, 1), 0.03)
    assert comparison is not None
    assert comparison.interval == pytest.approx((1.02, 1.02), abs=1e-5)
    assert ("pass", 10) == (comparison.verdict, comparison.rounds)


def test_a_spoiled_round_is_kept_does_not_count_and_is_tried_again() -> None:
    calls = iter(range(1000))

    def answer(job: Job) -> list[Measured]:
        call = next(calls)
        if call == 2:
            raise UnstableError("the phone is hot")
        return [replace(entry, spoiled="capped" if call == 5 else "") for entry in constant(job)]

    (benchmark,) = run(group(FakeExecutor(answer), "a")).benchmarks
    assert ["the phone is hot", "capped"] == [r.reason for r in benchmark.rounds if not r.valid]
    assert (12, 10, "ok") == (len(benchmark.rounds), benchmark.summary.rounds, benchmark.status)  # type: ignore[union-attr]
    assert list(range(12)) == [r.index for r in benchmark.rounds]
    assert list(range(10)) == [r.block for r in benchmark.rounds if r.valid]


def test_a_unit_that_stays_spoiled_is_unstable() -> None:
    def answer(job: Job) -> list[Measured]:
        if job.block == 4:
            raise UnstableError("the phone is hot")
        return constant(job)

    executor = FakeExecutor(answer)
    (benchmark,) = run(group(executor, "a"), retries=2).benchmarks
    assert ("unstable", ("9 of 10 rounds count", "the phone is hot")) == (benchmark.status, benchmark.reasons)
    assert 12 == len(executor.jobs)


def test_nothing_but_spoiled_rounds_is_unstable() -> None:
    def answer(job: Job) -> list[Measured]:
        raise UnstableError("hot")

    (benchmark,) = run(group(FakeExecutor(answer), "a"), retries=0).benchmarks
    assert ("unstable", ("hot",), None) == (benchmark.status, benchmark.reasons, benchmark.summary)
    assert 10 == len(benchmark.rounds)


def test_a_result_without_any_figure_is_spoiled() -> None:
    (benchmark,) = run(group(FakeExecutor(lambda _: [Measured()]), "a"), retries=0).benchmarks
    assert "failed" == benchmark.status
    assert "neither samples nor a median" in benchmark.reasons[0]


def test_an_artifact_that_fails_leaves_the_schedule_and_the_others_go_on() -> None:
    def answer(job: Job) -> list[Measured]:
        if "b" == job.artifacts[0].name:
            raise ArtifactError("b is damaged")
        return constant(job)

    executor = FakeExecutor(answer)
    found = run(group(executor, "a", "b"))
    assert ["ok", "failed"] == [benchmark.status for benchmark in found.benchmarks]
    assert ["b is damaged"] == [error.message for error in found.errors]
    assert 11 == len(executor.jobs)


def test_a_device_that_is_gone_ends_all_its_units_and_no_others() -> None:
    def answer(job: Job) -> list[Measured]:
        if job.block == 3:
            raise UnavailableError("unplugged")
        return constant(job)

    gone, there = FakeExecutor(answer), FakeExecutor(constant)
    found = run(group(gone, "a", "b"), group(there, "c"))
    assert ["unstable", "unstable", "ok"] == [benchmark.status for benchmark in found.benchmarks]
    assert "unplugged" in found.benchmarks[0].reasons
    assert 7 == len(gone.jobs)
    assert 10 == len(there.jobs)


def test_what_was_opened_is_closed_when_something_breaks() -> None:
    def answer(job: Job) -> list[Measured]:
        raise KeyboardInterrupt

    executor = FakeExecutor(answer)
    with pytest.raises(KeyboardInterrupt):
        run(group(executor, "a"))
    assert not executor.is_open


@pytest.mark.parametrize(("spread", "status"), [(0.01, "ok"), (0.3, "unstable")])
def test_a_median_that_is_hardly_known_is_unstable(spread: float, status: str) -> None:
    draw = random.Random(3)

    def answer(job: Job) -> list[Measured]:
        return [Measured(samples_ns=(int(1e6 * (1 + draw.uniform(-spread, spread))),) * 50)]

    assert status == run(group(FakeExecutor(answer), "a")).benchmarks[0].status


def test_the_runners_own_median_counts_where_it_gives_no_samples() -> None:
    found = run(group(FakeExecutor(lambda _: [Measured(median_ns=1234.5, reported={"mean": 2.0})]), "a"))
    summary = found.benchmarks[0].summary
    assert summary is not None
    assert (1234.5, (1234.5, 1234.5), None, 0) == (
        summary.median_ns,
        summary.interval_ns,
        summary.p90_ns,
        summary.samples,
    )
    assert found.overhead is None
