"""Figures of a benchmark, and what is said about them."""

import random
from dataclasses import replace
from typing import Any

import pytest

from shufflectl.benchmarks.results import Delegation, Round, Snapshot
from shufflectl.benchmarks.statistics import median
from shufflectl.benchmarks.summary import summarise
from support.fake_executor import CONFIG

DRAW = random.Random(0)


def rounds(samples: list[list[int]], **changes: Any) -> list[Round]:
    return [
        Round(i, i, i, 0, True, samples_ns=tuple(s), median_ns=median(s), **changes)
        for i, s in enumerate(samples)
    ]


def quiet(count: int = 120, processes: int = 10, spread: float = 0.057) -> list[list[int]]:
    levels = [1e6 * (1 + DRAW.gauss(0, 0.01)) for _ in range(processes)]
    return [[int(level * abs(1 + DRAW.gauss(0, spread))) for _ in range(count)] for level in levels]


def names(found: list[Round]) -> set[str]:
    summary = summarise(found, CONFIG)
    assert summary is not None
    assert all(flag.text and flag.advice for flag in summary.flags)
    return {flag.name for flag in summary.flags}


def test_ordinary_rounds_raise_no_flag() -> None:
    for _ in range(30):
        assert set() == names(rounds(quiet()))


def test_the_figures_of_a_small_table() -> None:
    found = rounds([[3, 1, 2], [4, 4, 4], [9, 8, 7], [5, 5, 5], [6, 6, 6], [1, 1, 1]], init_ns=5, first_ns=6)
    found += [Round(6, 6, 6, 0, False, "hot", samples_ns=(99,), median_ns=99.0)]
    summary = summarise(found, CONFIG)
    assert summary is not None
    assert (4.5, (1.0, 8.0), 5.0, 6.0) == (
        summary.median_ns,
        summary.interval_ns,
        summary.init_ns,
        summary.first_ns,
    )
    assert (6, 18, None, None) == (summary.rounds, summary.samples, summary.p90_ns, summary.peak_rss_bytes)


@pytest.mark.parametrize(("count", "p90", "p99"), [(9, False, False), (10, True, False), (100, True, True)])
def test_percentiles_need_samples(count: int, p90: bool, p99: bool) -> None:
    summary = summarise(rounds([list(range(1, count + 1))] * 10), CONFIG)
    assert summary is not None
    assert (p90, p99) == (summary.p90_ns is not None, summary.p99_ns is not None)


def test_no_round_no_figures() -> None:
    assert summarise([Round(0, 0, 0, 0, False, "hot")], CONFIG) is None


def test_drift_over_rounds() -> None:
    found = rounds([[int(v * (1 + 0.01 * i)) for v in s] for i, s in enumerate(quiet())])
    assert "drift" in names(found)


def test_drift_within_rounds() -> None:
    found = rounds([[int(v * (1 + 0.08 * i / 120)) for i, v in enumerate(s)] for s in quiet()])
    assert "drift within rounds" in names(found)


def test_two_modes() -> None:
    found = rounds([[int(v * DRAW.choice((1, 1, 1.5))) for v in s] for s in quiet(spread=0.02)])
    assert "bimodal" in names(found)


@pytest.mark.parametrize("shape", ["uniform", "exponential"])
def test_one_wide_mode_is_not_two(shape: str) -> None:
    draw = {"uniform": lambda: DRAW.uniform(0.9, 1.1), "exponential": lambda: 1 + DRAW.expovariate(20)}[shape]
    assert "bimodal" not in names(rounds([[int(1e6 * draw()) for _ in range(120)] for _ in range(10)]))


def test_wide_spread() -> None:
    assert "wide spread" in names(rounds(quiet(spread=0.2)))
    wide = [[int(v * DRAW.uniform(0.8, 1.2)) for v in [1e6]] * 120 for _ in range(10)]
    assert "wide spread between rounds" in names(rounds(wide))


def test_outliers() -> None:
    assert "outliers" in names(rounds([[v if i % 50 else v * 9 for i, v in enumerate(s)] for s in quiet()]))


def test_few_samples_and_rounds() -> None:
    assert {"few samples"} == names(rounds(quiet(count=49)))
    assert {"few rounds"} == names(rounds(quiet(processes=5)))


def test_runs_that_never_were_steady() -> None:
    found = rounds(quiet())
    assert {"not steady"} == names([replace(found[0], steady=False), *found[1:]])


@pytest.mark.parametrize("share", ["stolen", "others", "waited"])
def test_a_noisy_machine(share: str) -> None:
    noisy, calm = Snapshot(**{share: 0.3}), Snapshot(**{share: 0.001})  # type: ignore[arg-type]
    assert {"noisy machine"} == names(rounds(quiet(), after=noisy))
    assert set() == names(rounds(quiet(), after=calm))


def test_a_clock_that_is_not_fixed_or_was_lowered() -> None:
    assert {"clock"} == names(rounds(quiet(), before=Snapshot(governor="powersave")))
    assert set() == names(rounds(quiet(), before=Snapshot(governor="performance")))
    lowered = {"before": Snapshot(limits_khz={"0": 2}), "after": Snapshot(limits_khz={"0": 1})}
    assert {"throttled"} == names(rounds(quiet(), **lowered))


def test_a_delegate_that_took_a_part() -> None:
    assert {"partial delegation"} == names(rounds(quiet(), delegation=Delegation("xnnpack", 147, 155, 8)))
    assert set() == names(rounds(quiet(), delegation=Delegation("xnnpack", 155, 155, 1)))
