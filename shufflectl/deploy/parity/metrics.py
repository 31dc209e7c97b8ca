"""How far a candidate's outputs are from a reference's.

Everything is computed in float64 after casting up, from sums that can be gathered batch by batch, so
a data set of any size is compared in the memory of one batch.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.parity.figures import figure, round_down, round_up
from shufflectl.deploy.parity.limits import LIMITS, Limits
from shufflectl.errors import ParityError

__all__ = ["Accumulator", "Comparison", "Top1", "compare"]


@dataclass(frozen=True)
class Top1:
    """Agreement about the most likely class.

    Attributes:
        rows: Images compared.
        gaps: For every image on which the two name different classes: how far apart the two classes lie
            in the reference's logits, ascending; infinite where the candidate's row is not finite.
    """

    rows: int
    gaps: tuple[float, ...] = ()

    @property
    def flips(self) -> int:
        """Images on which the two name different classes, ties included."""
        return len(self.gaps)

    def ties(self, tolerance: float) -> int:
        """Return the flips between classes that lie no further apart than ``tolerance`` in the reference."""
        return bisect_right(self.gaps, tolerance)

    def agreement(self, tolerance: float = 0.0) -> float:
        """Return the share of images, 0 to 1, on which both name the same class or the classes tie."""
        if self.rows == 0:
            return 1.0
        return (self.rows - self.flips + self.ties(tolerance)) / self.rows


@dataclass(frozen=True)
class Comparison:
    """A candidate's distance from a reference, and whether it is within limits.

    The figures cover the positions at which both are finite; a single other position makes the comparison
    fail. The truth value is the verdict.

    Attributes:
        elements: Positions compared.
        nonfinite: Positions at which the reference or the candidate is NaN or infinite.
        peak: max |reference|.
        max_abs: max |Δ|.
        mean_abs: mean |Δ|.
        max_rel: max |Δ| as a fraction of ``peak``: 0 when equal, infinite when only the reference is zero.
        rmse: Root of the mean of Δ².
        sqnr: 10 log10 of Σ reference² over Σ Δ², in dB; infinite when equal.
        cosine: Of the angle between the two as vectors.
        top1: Agreement about the class, for outputs of rank 2; None otherwise.
        limits: What the verdict is measured against.
    """

    elements: int
    nonfinite: int
    peak: float
    max_abs: float
    mean_abs: float
    max_rel: float
    rmse: float
    sqnr: float
    cosine: float
    top1: Top1 | None
    limits: Limits

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return bool(self)

    @property
    def agreement(self) -> float | None:
        """The share of images on which both name the same class, ties under the limits included."""
        return None if self.top1 is None else self.top1.agreement(self._tolerance)

    @property
    def ties(self) -> int:
        """Images on which the class flipped between logits closer than the limit."""
        return 0 if self.top1 is None else self.top1.ties(self._tolerance)

    @property
    def _tolerance(self) -> float:
        return self.limits.max_rel * self.peak

    @property
    def failures(self) -> tuple[str, ...]:
        """Each limit that is not kept, as a sentence without its full stop; empty when all are."""
        found = []
        if self.nonfinite:
            found.append(f"{self.nonfinite} of {self.elements} values are NaN or infinite")
        if not self.max_rel <= self.limits.max_rel:
            found.append(
                f"max |Δ| is {self.max_rel:.3g} of the largest reference value, "
                f"limit {self.limits.max_rel:.3g}"
            )
        if not self.sqnr >= self.limits.sqnr:
            found.append(f"SQNR is {self.sqnr:.1f} dB, limit {self.limits.sqnr:.1f} dB")
        agreement = self.agreement
        if agreement is not None and not agreement >= self.limits.top1:
            found.append(f"top-1 agreement is {agreement:.4g}, limit {self.limits.top1:.4g}")
        return tuple(found)

    @property
    def needed(self) -> Limits | None:
        """The tightest limits that would have passed, rounded outwards to 4 digits; None where none would."""
        if self.nonfinite or math.isnan(self.max_rel) or math.isnan(self.sqnr):
            return None
        max_rel = round_up(self.max_rel)
        agreement = 1.0 if self.top1 is None else self.top1.agreement(max_rel * self.peak)
        return Limits(max_rel, round_down(self.sqnr), round_down(agreement))

    def against(self, limits: Limits) -> "Comparison":
        """Return the same figures with a verdict against other limits."""
        return replace(self, limits=limits)

    def to_json(self) -> dict[str, Any]:
        """Return figures, limits and verdict as JSON values, to 4 significant digits."""
        data: dict[str, Any] = {
            "passed": self.passed,
            "elements": self.elements,
            "nonfinite": self.nonfinite,
            "max_abs": figure(self.max_abs),
            "mean_abs": figure(self.mean_abs),
            "max_rel": figure(self.max_rel),
            "rmse": figure(self.rmse),
            "sqnr_db": figure(self.sqnr),
            "cosine": figure(self.cosine),
            "limits": self.limits.to_json(),
            "needed": None if self.needed is None else self.needed.to_json(),
        }
        if self.top1 is not None:
            data["top1"] = {
                "rows": self.top1.rows,
                "flips": self.top1.flips,
                "ties": self.ties,
                "agreement": figure(self.agreement or 0.0),
            }
        return data


@dataclass
class Accumulator:
    """Gathers a comparison over many batches, keeping sums and no outputs.

    Args:
        name: What is compared, for error messages.
    """

    name: str = "the output"
    _elements: int = field(default=0, init=False)
    _nonfinite: int = field(default=0, init=False)
    _peak: float = field(default=0.0, init=False)
    _max_abs: float = field(default=0.0, init=False)
    _sum_abs: float = field(default=0.0, init=False)
    _sum_squares: float = field(default=0.0, init=False)
    _sum_reference: float = field(default=0.0, init=False)
    _sum_candidate: float = field(default=0.0, init=False)
    _dot: float = field(default=0.0, init=False)
    _rows: int | None = field(default=None, init=False)
    _gaps: list[float] = field(default_factory=list, init=False)

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> Self:
        """Take in one batch.

        Args:
            reference: Any shape; rank 2 is read as ``[N, classes]`` for the top-1 agreement.
            candidate: The same shape; any real type.

        Raises:
            ParityError: The shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ParityError(
                f"{self.name} has shape {list(candidate.shape)} "
                f"where the reference has {list(reference.shape)}",
                hint="compare files of the same model with the same number of classes and the same layout",
            )
        expected = np.asarray(reference, np.float64)
        actual = np.asarray(candidate, np.float64)
        finite = np.isfinite(expected) & np.isfinite(actual)
        self._elements += expected.size
        if expected.ndim == 2 and expected.shape[1] > 1:
            self._count_flips(expected, actual)
        if not finite.all():
            self._nonfinite += int(expected.size - np.count_nonzero(finite))
            expected, actual = expected[finite], actual[finite]
        if expected.size == 0:
            return self
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            delta = np.abs(actual - expected)
            self._peak = max(self._peak, float(np.abs(expected).max()))
            self._max_abs = max(self._max_abs, float(delta.max()))
            self._sum_abs += float(delta.sum())
            self._sum_squares += float(np.square(delta).sum())
            self._sum_reference += float(np.square(expected).sum())
            self._sum_candidate += float(np.square(actual).sum())
            self._dot += float((expected * actual).sum())
        return self

    def _count_flips(self, expected: NDArray[np.float64], actual: NDArray[np.float64]) -> None:
        self._rows = (self._rows or 0) + expected.shape[0]
        usable = np.isfinite(expected).all(axis=1) & np.isfinite(actual).all(axis=1)
        self._gaps.extend([math.inf] * int(np.count_nonzero(~usable)))
        rows, chosen = expected[usable], actual[usable].argmax(axis=1)
        flipped = np.flatnonzero(rows.argmax(axis=1) != chosen)
        # Equal logits flip by the order of the search alone; their gap is zero, so they always tie.
        self._gaps.extend((rows[flipped].max(axis=1) - rows[flipped, chosen[flipped]]).tolist())

    def result(self, limits: Limits | None = None) -> Comparison:
        """Return the comparison over all batches so far; limits are those of fp32 unless given."""
        count = max(1, self._elements - self._nonfinite)
        # A difference too small for its square is still a difference.
        noise = self._sum_squares or (5e-324 if self._max_abs > 0 else 0.0)
        return Comparison(
            elements=self._elements,
            nonfinite=self._nonfinite,
            peak=self._peak,
            max_abs=self._max_abs,
            mean_abs=self._sum_abs / count,
            max_rel=_ratio(self._max_abs, self._peak),
            rmse=math.sqrt(self._sum_squares / count),
            sqnr=_decibels(self._sum_reference, noise),
            cosine=self._cosine(),
            top1=None if self._rows is None else Top1(self._rows, tuple(sorted(self._gaps))),
            limits=LIMITS["fp32"] if limits is None else limits,
        )

    def _cosine(self) -> float:
        if self._max_abs == 0:
            return 1.0
        length = math.sqrt(self._sum_reference) * math.sqrt(self._sum_candidate)
        return max(-1.0, min(1.0, self._dot / length)) if length > 0 else 0.0


def _ratio(error: float, peak: float) -> float:
    if error == 0:
        return 0.0
    return error / peak if peak > 0 else math.inf


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if signal == 0:
        return -math.inf
    # Logarithms are subtracted, not the ratio taken, so that no extreme over- or underflows.
    return 10 * (math.log10(signal) - math.log10(noise))


def compare(reference: NDArray[Any], candidate: NDArray[Any], limits: Limits | None = None) -> Comparison:
    """Compare two arrays of one shape; see `Comparison`.

    Args:
        reference: What is taken as right.
        candidate: What is judged.
        limits: What the verdict is measured against; those of fp32 unless given.

    Raises:
        ParityError: The shapes differ.
    """
    return Accumulator().add(reference, candidate).result(limits)
