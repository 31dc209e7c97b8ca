"""Runs that lie in a file, and values of given ranks among many."""

import copy
import gc
import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.benchmarks import statistics
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.protocol import measure
from shufflectl.benchmarks.results import Suite
from shufflectl.benchmarks.samples import Spool, as_array
from shufflectl.benchmarks.selection import percentile_of_many, ranked
from shufflectl.benchmarks.statistics import percentile, ratio_of_samples
from support.fake_executor import FakeExecutor, group

RUNS = st.lists(st.integers(0, 2**62), max_size=50).map(tuple)


@given(st.lists(RUNS, max_size=6))
def test_runs_come_back_as_they_were_kept(rounds: list[tuple[int, ...]]) -> None:
    spool = Spool()
    kept = [spool.keep(runs) for runs in rounds]
    for runs, found in reversed(list(zip(rounds, kept, strict=True))):
        assert runs == found
        assert found == runs
        assert (len(runs), list(runs)) == (len(found), list(found))
        assert runs[-3:] == found[-3:]
        assert list(runs) == as_array(found).tolist()
        assert all(type(value) is int for value in found)


def test_a_copy_is_equal_and_another_sequence_is_not() -> None:
    kept = Spool().keep((1, 2, 3))
    assert kept == copy.deepcopy([kept])[0]
    assert kept != (1, 2)
    assert kept != "123"
    assert 3 == kept[-1]
    assert hash(kept) == hash((1, 2, 3))


def files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_the_file_has_no_name_and_ends_with_the_last_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = files()
    spool = Spool()
    kept = [spool.keep((1,)), spool.keep((2, 3))]
    del spool
    kept.pop(0)
    assert (before + 1, (2, 3)) == (files(), kept[0])
    assert [] == list(tmp_path.iterdir())
    kept.clear()
    assert before == files()


def test_without_a_place_for_the_file_runs_are_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert Spool().keep((1, 2)) == (1, 2)


VALUES = st.lists(st.integers(0, 10**9) | st.integers(0, 3), min_size=1, max_size=200)


@given(VALUES, st.data(), st.sampled_from([1, 7, 1000]))
def test_a_rank_is_found_however_few_are_held(values: list[int], data: st.DataObject, held: int) -> None:
    cut = data.draw(st.integers(0, len(values)))
    rank = data.draw(st.integers(0, len(values) - 1))
    parts = [np.array(part, np.float64) for part in (values[:cut], values[cut:])]
    assert sorted(values)[rank] == ranked(lambda: iter(parts), rank, held)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_percentiles_are_those_of_all_values_at_once(share: float) -> None:
    draw = np.random.default_rng(0)
    parts = [draw.lognormal(14, 0.3, 999).round() for _ in range(200)]
    values = [float(v) for part in parts for v in part]
    assert percentile(values, share) == pytest.approx(
        percentile_of_many(lambda: iter(parts), len(values), share), rel=1e-12
    )


def test_many_ratios_give_what_few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    sides = [list(draw.normal(5e6, 1e5, 40)) for _ in range(2)]
    expected = ratio_of_samples(sides[0], sides[1])
    monkeypatch.setattr(statistics, "_RATIOS", 10)
    ratio, interval = ratio_of_samples(sides[0], sides[1])
    assert expected[0] == pytest.approx(ratio, rel=1e-12)
    assert expected[1] == interval


def test_what_was_measured_holds_no_runs_in_memory_and_is_written_piece_by_piece() -> None:
    def answer(job: Job) -> list[Measured]:
        return [Measured(samples_ns=tuple(range(job.seed, job.seed + 2000)))]

    measure([group(FakeExecutor(answer), "warm", rounds=1)], notify=lambda *_: None)  # imports
    tracemalloc.start()
    try:
        found = measure([group(FakeExecutor(answer), "a", rounds=20)], notify=lambda *_: None)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held / 20 < 0.5 * 2000 * 8  # half of what the runs alone would take, packed
    longest = max(map(len, Suite("", "", found.benchmarks).to_text()))
    assert longest < 1.1 * len(json.dumps(list(found.benchmarks[0].rounds[0].samples_ns)))
