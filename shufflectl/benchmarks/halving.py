"""Successive halving: many candidates in few rounds, few candidates in many, and the winner once more.

In each *rung* every candidate that is left runs in the same number of blocks; then the better part goes on.
(K. Jamieson and A. Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, 2016.)
The estimate of the one that wins is too good, as the luckiest of many is chosen. Its figures are therefore
measured again: *proofs* are ratios from fresh rounds that had no part in the selection, so their intervals
hold as they stand.

Time is limited: a rung takes its share of what is left after the proofs, and nothing begins that would not
end in time, as far as earlier rounds tell.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from shufflectl.benchmarks.statistics import MIN_FOR_INTERVAL, median, median_interval

__all__ = ["NATIVE", "Contender", "Limits", "Outcome", "Proof", "Rounds", "Rung", "race"]

NATIVE: Final = 0
"""The contender that all others are held against."""


@dataclass(frozen=True)
class Limits:
    """How far a race goes.

    Attributes:
        keep: Of how many contenders one goes on to the next rung.
        blocks: The most blocks of each rung; further rungs have the last number.
        proof: Rounds of each proof.
        reserve: The share of the time that is kept for proofs, at most.
    """

    keep: int = 3
    blocks: tuple[int, ...] = (3, 6, 10)
    proof: int = 12
    reserve: float = 0.5


@dataclass
class Contender:
    """What is known of a contender.

    Attributes:
        ratios: Its time over that of the native one, a list a rung.
        dropped: Why it did not go on; empty while it is in the race.
        failed: Whether it cannot run, or may not.
    """

    ratios: list[list[float]] = field(default_factory=list)
    dropped: str = ""
    failed: bool = False

    @property
    def all(self) -> list[float]:
        """All ratios."""
        return [ratio for rung in self.ratios for ratio in rung]

    @property
    def ratio(self) -> float:
        """The median of all ratios; infinite without any."""
        found = self.all
        return median(found) if found else math.inf


@dataclass(frozen=True)
class Rung:
    """What a rung took."""

    candidates: int
    rounds: int
    seconds: float


@dataclass(frozen=True)
class Proof:
    """A comparison in rounds that had no part in the selection.

    Attributes:
        baseline: The contender that is the measure.
        candidate: The contender that is held against it: the winner, or the default.
        ratios: One a round.
    """

    baseline: int
    candidate: int
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval; None with too few rounds."""
        return median_interval(self.ratios)

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.interval is not None and self.interval[1] < 1


@dataclass(frozen=True)
class Outcome:
    """How a race ended.

    Attributes:
        contenders: What is known of each.
        rungs: What was measured.
        winner: The contender with the lowest ratio; `NATIVE` where none is below 1. None where nothing could
            be measured.
        proofs: The winner against the native contender and against the default, and the default against the
            native one, as far as they differ.
    """

    contenders: tuple[Contender, ...]
    rungs: tuple[Rung, ...]
    winner: int | None
    proofs: tuple[Proof, ...]

    def proof(self, baseline: int, candidate: int) -> Proof | None:
        """Return the proof of a contender against another."""
        wanted = (baseline, candidate)
        return next((proof for proof in self.proofs if (proof.baseline, proof.candidate) == wanted), None)


class Rounds(Protocol):
    """Measures pairs of contenders, each once, in fresh processes and in an order of its own."""

    def __call__(
        self, pairs: Sequence[tuple[int, int]], blocks: Callable[[], bool], what: str
    ) -> Iterator[Mapping[tuple[int, int], float | str]]:
        """Yield for each pair the second's time over the first's, or why there is none, a block at a time.

        Before each block ``blocks`` says whether there is to be another one.

        Text is a failure of the artifact, which leaves the race; a pair that is missing from the answer is a
        spoiled round, which does not count.
        """


def race(
    count: int,
    default: int,
    rounds: Rounds,
    *,
    admit: Callable[[int], str],
    siblings: Mapping[int, Sequence[int]],
    left: Callable[[], float],
    now: Callable[[], float],
    limits: Limits | None = None,
) -> Outcome:
    """Find the fastest of some contenders, of which the first is the native one.

    Args:
        count: How many there are.
        default: The one that is used without a race.
        rounds: Measures.
        admit: Makes a contender ready; returns why it cannot take part, or nothing.
        siblings: Contenders that join when another one has survived the first rung.
        left: Seconds until everything must be done.
        now: A clock, in seconds.
        limits: How far it goes.
    """
    limits = limits or Limits()
    contenders = [Contender() for _ in range(count)]
    late = {index for others in siblings.values() for index in others}
    alive = [index for index in range(1, count) if index not in late and _admitted(index, contenders, admit)]
    rungs: list[Rung] = []
    pace = _Pace()
    expected = max(1, math.ceil(math.log(max(len(alive), 2), limits.keep)))
    while alive:
        place = len(rungs)
        share = (left() - _reserve(left(), limits, pace)) / max(1, expected - place)
        begun, entered = now(), len(alive)
        done = _rung(contenders, alive, rounds, pace, limits, place, share, left, now)
        rungs.append(Rung(entered, done, now() - begun))
        last = not done or (place > 0 and len(alive) <= limits.keep + 1)
        alive.sort(key=lambda index: contenders[index].ratio)
        going = 1 if last else _going(len(alive), limits.keep)
        for index in alive[going:]:
            contenders[index].dropped = _why(contenders[index], len(rungs), going, len(alive))
        alive = alive[:going]
        if last:
            break
        if not place:
            joining = [other for index in alive[: limits.keep] for other in siblings.get(index, ())]
            alive += [other for other in joining if _admitted(other, contenders, admit)]
    for index in late:
        if not contenders[index].ratios and not contenders[index].dropped:
            contenders[index].dropped = "not measured: its form was not among the best in the first layout"
    return _proved(contenders, rungs, alive, default, rounds, left, pace, limits)


def _rung(
    contenders: Sequence[Contender],
    alive: list[int],
    rounds: Rounds,
    pace: "_Pace",
    limits: Limits,
    place: int,
    share: float,
    left: Callable[[], float],
    now: Callable[[], float],
) -> int:
    """Measure the contenders that are left in some blocks; return how many. Those that fail leave."""
    entered, begun, done = len(alive), now(), 0
    most = limits.blocks[min(place, len(limits.blocks) - 1)]
    for index in alive:
        contenders[index].ratios.append([])

    def again() -> bool:
        ahead = pace.of(entered)
        if not alive or done >= most or (done and now() - begun + ahead > share):
            return False
        # The first block of a later rung must not take the time of the proofs.
        return ahead <= left() - (_reserve(left(), limits, pace) if place else 0.0)

    started = begun
    for found in rounds([(NATIVE, index) for index in alive], again, f"{entered} forms"):
        pace.note(now() - started, entered)
        started = now()
        done += 1
        for index in list(alive):
            answer = found.get((NATIVE, index))
            if isinstance(answer, str):
                contenders[index].dropped, contenders[index].failed = answer, True
                alive.remove(index)
            elif answer is not None:
                contenders[index].ratios[-1].append(answer)
    return done


def _proved(
    contenders: list[Contender],
    rungs: list[Rung],
    alive: list[int],
    default: int,
    rounds: Rounds,
    left: Callable[[], float],
    pace: "_Pace",
    limits: Limits,
) -> Outcome:
    """Measure the winner again, in rounds of its own."""
    best = alive[0] if alive and contenders[alive[0]].all else None
    if best is None:
        for index in alive:
            contenders[index].dropped = _why(contenders[index], len(rungs), 0, len(alive))
        return Outcome(tuple(contenders), tuple(rungs), None, ())
    winner = best if contenders[best].ratio < 1 else NATIVE
    if winner != best:
        contenders[best].dropped = f"{_figure(contenders[best])}: no form was faster than native"
    wanted = dict.fromkeys(((NATIVE, winner), (default, winner), (NATIVE, default)))
    pairs = [
        pair for pair in wanted if pair[0] != pair[1] and not any(contenders[place].failed for place in pair)
    ]
    ratios: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    done = 0

    def again() -> bool:
        return done < limits.proof and pace.of(len(pairs)) <= left()

    if pairs:
        for found in rounds(pairs, again, "the winner again"):
            done += 1
            for pair in pairs:
                answer = found.get(pair)
                if isinstance(answer, float):
                    ratios[pair].append(answer)
    proofs = tuple(Proof(*pair, tuple(ratios[pair])) for pair in pairs if ratios[pair])
    return Outcome(tuple(contenders), tuple(rungs), winner, proofs)


def _going(count: int, keep: int) -> int:
    """Return how many of the contenders of a rung go on; few all do."""
    return count if count <= keep else math.ceil(count / keep)


def _admitted(index: int, contenders: Sequence[Contender], admit: Callable[[int], str]) -> bool:
    contenders[index].dropped = admit(index)
    contenders[index].failed = bool(contenders[index].dropped)
    return not contenders[index].dropped


def _why(contender: Contender, rung: int, going: int, of: int) -> str:
    if not contender.all:
        return "not measured: the time was over"
    return f"{_figure(contender)} after rung {rung}: the best {going} of {of} went on"


def _figure(contender: Contender) -> str:
    return f"{contender.ratio:.3f} of native's time in {len(contender.all)} rounds"


def _reserve(left: float, limits: Limits, pace: "_Pace") -> float:
    """Return the seconds that the proofs may take."""
    return min(limits.reserve * left, pace.of(3 * max(limits.proof, MIN_FOR_INTERVAL)))


class _Pace:
    """How long a process takes, learnt from those that ran."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._count = 0

    def of(self, processes: int) -> float:
        """Return the seconds that so many processes are expected to take; 0 before any ran."""
        return self._seconds / self._count * processes if self._count else 0.0

    def note(self, seconds: float, processes: int) -> None:
        """Note what processes took."""
        self._seconds += seconds
        self._count += processes
