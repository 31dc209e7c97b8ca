"""Successive halving against contenders whose true times are known."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from shufflectl.benchmarks.halving import NATIVE, Limits, Outcome, race


class Simulated:
    """A clock, and rounds of contenders with known times; each process takes a second."""

    def __init__(
        self, times: Sequence[float], *, noise: float = 0.01, seed: int = 0, seconds: float = 1.0
    ) -> None:
        self.times, self.noise, self.seconds = times, noise, seconds
        self.clock = 0.0
        self.rng = random.Random(seed)
        self.measured: list[list[tuple[int, int]]] = []
        self.broken: set[int] = set()
        self.spoiled: set[int] = set()

    def __call__(
        self, pairs: Sequence[tuple[int, int]], blocks: Callable[[], bool], _what: str
    ) -> Iterator[Mapping[tuple[int, int], float | str]]:
        while blocks():
            self.clock += self.seconds * len(pairs)
            self.measured.append(list(pairs))
            found: dict[tuple[int, int], float | str] = {}
            for first, second in pairs:
                if second in self.broken:
                    found[first, second] = "the runtime refuses it"
                elif second not in self.spoiled:
                    ratio = self.times[second] / self.times[first]
                    found[first, second] = ratio * self.rng.lognormvariate(0, self.noise)
            yield found

    def race(
        self,
        budget: float = 1e9,
        *,
        default: int = NATIVE,
        admit: Callable[[int], str] = lambda _: "",
        siblings: Mapping[int, Sequence[int]] | None = None,
        limits: Limits | None = None,
    ) -> Outcome:
        return race(
            len(self.times),
            default,
            self,
            admit=admit,
            siblings=siblings or {},
            left=lambda: budget - self.clock,
            now=lambda: self.clock,
            limits=limits,
        )


def times(count: int, best: int, by: float) -> list[float]:
    """Return the times of a native form, of many that are slower, and of one that is faster by a share."""
    found = [1.0] + [1.02 + 0.01 * index for index in range(count - 1)]
    found[best] = 1 - by
    return found


@pytest.mark.parametrize("best", [1, 7, 24])
def test_the_best_of_many_is_found_and_proved(best: int) -> None:
    found = sum(Simulated(times(25, best, 0.1), seed=seed).race().winner == best for seed in range(20))
    assert 20 == found
    outcome = Simulated(times(25, best, 0.1)).race()
    proof = outcome.proof(NATIVE, best)
    assert proof is not None
    assert proof.faster
    assert proof.interval is not None
    assert proof.interval[0] <= 0.9 <= proof.interval[1]


def test_few_contenders_get_many_rounds_and_many_few() -> None:
    rungs = Simulated(times(25, 3, 0.2)).race().rungs
    assert [24, 8, 3] == [rung.candidates for rung in rungs]
    assert sorted(rung.rounds for rung in rungs) == [rung.rounds for rung in rungs]


def test_a_proof_takes_no_round_of_the_selection() -> None:
    """The luckiest of equal forms looks faster than it is; its proof does not."""
    selected, proved, wrong = [], [], 0
    for seed in range(60):
        outcome = Simulated([1.0] * 25, noise=0.03, seed=seed).race()
        if outcome.winner:
            selected.append(outcome.contenders[outcome.winner].ratio)
            proof = outcome.proof(NATIVE, outcome.winner)
            assert proof is not None
            proved.append(proof.ratio)
            wrong += proof.faster
    assert len(selected) > 40
    assert sum(selected) / len(selected) < 0.99
    assert abs(sum(proved) / len(proved) - 1) < 0.005
    assert wrong / len(selected) <= 0.05  # 2.5 % are expected


@pytest.mark.parametrize("budget", [30, 60, 90, 200])
def test_the_budget_is_kept_and_spent_on_proofs_too(budget: float) -> None:
    simulated = Simulated(times(25, 3, 0.2))
    outcome = simulated.race(budget)
    assert simulated.clock <= budget
    assert outcome.winner == 3
    if budget >= 60:
        proof = outcome.proof(NATIVE, 3)
        assert proof is not None
        assert len(proof.ratios) >= 6


def test_a_budget_that_is_over_before_the_first_round_finds_nothing() -> None:
    outcome = Simulated(times(5, 3, 0.2)).race(-1)
    assert outcome.winner is None
    assert () == outcome.proofs
    assert all("the time was over" in contender.dropped for contender in outcome.contenders[1:])


def test_where_nothing_is_faster_native_wins_and_is_proved_against_the_default() -> None:
    outcome = Simulated([1.0, 1.2, 1.3, 1.4]).race(default=2)
    assert NATIVE == outcome.winner
    proof = outcome.proof(2, NATIVE)
    assert proof is not None
    assert proof.faster


def test_the_winner_is_proved_against_the_default_and_the_default_against_native() -> None:
    outcome = Simulated([1.0, 0.9, 0.8, 1.1]).race(default=1)
    assert {(0, 2), (1, 2), (0, 1)} == {(proof.baseline, proof.candidate) for proof in outcome.proofs}


def test_one_that_fails_leaves_and_says_why() -> None:
    simulated = Simulated(times(10, 4, 0.3))
    simulated.broken = {4}
    outcome = simulated.race(default=4)
    assert "the runtime refuses it" == outcome.contenders[4].dropped
    assert 4 != outcome.winner
    assert all(4 not in (proof.baseline, proof.candidate) for proof in outcome.proofs)


def test_one_that_is_not_admitted_is_never_measured() -> None:
    simulated = Simulated(times(10, 4, 0.3))
    outcome = simulated.race(admit=lambda index: "it is wrong" if index == 4 else "")
    assert "it is wrong" == outcome.contenders[4].dropped
    assert not any(4 in pair for block in simulated.measured for pair in block)


def test_a_spoiled_round_does_not_count_and_is_no_failure() -> None:
    simulated = Simulated(times(4, 2, 0.3))
    simulated.spoiled = {2}
    outcome = simulated.race()
    assert 2 != outcome.winner
    assert [] == outcome.contenders[2].all


def test_a_sibling_joins_only_those_that_survive() -> None:
    simulated = Simulated([*times(10, 4, 0.3), 0.5, 0.6])
    outcome = simulated.race(siblings={4: [10], 9: [11]})
    assert 10 == outcome.winner
    assert not any(11 in pair for block in simulated.measured for pair in block)
    assert "not among the best" in outcome.contenders[11].dropped


def test_every_loser_says_why() -> None:
    outcome = Simulated(times(25, 3, 0.2)).race()
    for index, contender in enumerate(outcome.contenders[1:], 1):
        assert (index == 3) == (contender.dropped == ""), index
