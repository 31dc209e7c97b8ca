"""Ratios, verdicts, and what may not be compared."""

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import jsonschema
import pytest

from shufflectl.benchmarks.compare import (
    compare_suites,
    comparisons_to_json,
    paired,
    raise_for_verdicts,
    unpaired,
)
from shufflectl.benchmarks.results import Benchmark, ModelFile, Round, Suite, Target
from shufflectl.errors import GateError, InputError, UnstableError, UsageError
from support.fake_executor import CONFIG, RUNNER

TARGET = Target("local", cpu="fake", cores=2)


def benchmark(name: str, medians: list[float], **changes: Any) -> Benchmark:
    found = tuple(Round(i, i, i, 0, True, median_ns=m) for i, m in enumerate(medians))
    made = Benchmark(
        name, "ok", (), ModelFile(name, "0" * 64, "tflite", 1), TARGET, RUNNER, CONFIG, found, None
    )
    return replace(made, **changes)


def suite(*benchmarks: Benchmark) -> Suite:
    return Suite("2026-01-31T12:00:00Z", "x", benchmarks)


BASE = [100.0 + i for i in range(10)]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "pass"), (0.5, "pass"), (1.09, "inconclusive"), (1.5, "fail")]
)
def test_verdicts(factor: float, verdict: str) -> None:
    found = unpaired(benchmark("a", BASE), benchmark("a", [v * factor for v in BASE]), 0.1)
    assert (verdict, "unpaired") == (found.verdict, found.mode)
    assert found.reason
    assert found.ratio == pytest.approx(factor, rel=0.001)


def test_without_a_tolerance_there_is_no_verdict() -> None:
    for factor, reason in ((1.5, "slower"), (0.5, "faster"), (1.0, "no difference seen")):
        found = unpaired(benchmark("a", BASE), benchmark("a", [v * factor for v in BASE]), None)
        assert (None, reason) == (found.verdict, found.reason)


def test_too_few_rounds_never_pass() -> None:
    found = unpaired(benchmark("a", BASE[:3]), benchmark("a", BASE[:3]), 0.5)
    assert ("inconclusive", None) == (found.verdict, found.interval)


def test_an_unstable_measurement_never_passes_but_may_fail() -> None:
    shaky = benchmark("a", BASE, status="unstable")
    assert "inconclusive" == unpaired(benchmark("a", BASE), shaky, 0.5).verdict
    assert "fail" == unpaired(benchmark("a", [v / 3 for v in BASE]), shaky, 0.5).verdict


def test_pairs_with_missing_rounds_never_pass() -> None:
    base, new = (
        replace(b, rounds=tuple(replace(r, partner=p) for r in b.rounds))
        for b, p in ((benchmark("a", BASE), 1), (benchmark("b", BASE), 0))
    )
    complete = paired(base, new, (0, 1), 0.1)
    assert complete is not None
    assert "pass" == complete.verdict
    short = paired(base, replace(new, rounds=new.rounds[:-1]), (0, 1), 0.1)
    assert short is not None
    assert ("inconclusive", 9) == (short.verdict, short.rounds)
    assert paired(base, replace(new, rounds=()), (0, 1), 0.1) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": replace(TARGET, cpu="other")}, "devices: local fake 2 and local other 2"),
        ({"runner": replace(RUNNER, name="other")}, "runners: fake and other"),
        ({"runner": replace(RUNNER, version="2")}, "versions of the runner: 1 and 2"),
        ({"config": replace(CONFIG, threads=2)}, "threads: 1 and 2"),
        ({"config": replace(CONFIG, accelerator="gpu")}, "accelerators: cpu and gpu"),
        ({"config": replace(CONFIG, affinity="0")}, "cores: none and 0"),
        ({"config": replace(CONFIG, mode="paired")}, "modes: absolute and paired"),
    ],
)
def test_other_conditions_are_refused(change: dict[str, Any], says: str) -> None:
    first, second = benchmark("a", BASE), benchmark("a", BASE, **change)
    with pytest.raises(InputError) as caught:
        compare_suites(suite(first), suite(second), None)
    assert says in caught.value.message
    with pytest.raises(InputError):
        compare_suites(suite(first, benchmark("b", BASE)), suite(second, benchmark("c", BASE)), None)


def test_another_binary_on_a_phone_is_another_runner() -> None:
    phone = Target("android", model="x")
    sides = [benchmark("a", BASE, target=phone, runner=replace(RUNNER, sha256=s * 64)) for s in "01"]
    with pytest.raises(InputError, match="binaries"):
        unpaired(sides[0], sides[1], None)


def test_results_are_matched_by_name_or_by_being_alone() -> None:
    a, b, c = (benchmark(name, BASE) for name in "abc")
    assert ["b"] == [found.candidate for found in compare_suites(suite(a, b), suite(b, c), None)]
    assert [("a", "c")] == [(f.baseline, f.candidate) for f in compare_suites(suite(a), suite(c), None)]
    with pytest.raises(UsageError, match="in common"):
        compare_suites(suite(a, b), suite(c), None)


def test_a_side_without_figures_is_refused() -> None:
    empty = benchmark("a", [], status="failed", reasons=("crashed",))
    with pytest.raises(InputError, match="crashed"):
        unpaired(benchmark("a", BASE), empty, None)


def test_failing_comes_before_inconclusive() -> None:
    found = [
        unpaired(benchmark("a", BASE), benchmark(name, [v * f for v in BASE]), 0.1)
        for name, f in (("b", 1.0), ("c", 1.09), ("d", 2.0))
    ]
    raise_for_verdicts(found[:1])
    with pytest.raises(UnstableError, match="c takes"):
        raise_for_verdicts(found[:2])
    with pytest.raises(GateError, match="d takes"):
        raise_for_verdicts(found)


def schema(name: str) -> Any:
    folder = resources.files("shufflectl.benchmarks")
    return json.loads(folder.joinpath(f"schemas/{name}.schema.json").read_text("utf-8"))


@pytest.mark.parametrize(("rounds", "tolerance"), [(10, 0.1), (10, None), (3, 0.1)])
def test_the_document_of_compare_satisfies_its_schema(rounds: int, tolerance: float | None) -> None:
    sides = suite(benchmark("a", BASE[:rounds])), suite(benchmark("b", BASE[:rounds]))
    document = json.loads(json.dumps(comparisons_to_json(compare_suites(*sides, tolerance))))
    rules = jsonschema.Draft202012Validator(schema("compare-1"))
    rules.check_schema(rules.schema)
    rules.validate(document)
    for key in document["comparisons"][0]:
        short = {k: v for k, v in document["comparisons"][0].items() if k != key}
        assert not rules.is_valid({**document, "comparisons": [short]})
    assert not rules.is_valid({**document, "schema": "shufflectl.compare/2"})


def test_a_comparison_is_the_same_in_both_documents() -> None:
    assert schema("bench-1")["$defs"]["comparison"] == schema("compare-1")["$defs"]["comparison"]
