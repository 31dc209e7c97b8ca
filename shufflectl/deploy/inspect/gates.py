"""Limits on a file that a pipeline can fail on: how many operators fall back, and how high tensors rank."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from shufflectl.deploy.inspect.facts import DELEGATES, Facts, Fallback
from shufflectl.deploy.inspect.summary import Summary
from shufflectl.errors import GateError, UsageError, nearest

__all__ = ["Gate", "check_delegate", "failure", "fallback_gate", "rank_gate"]

_NAMED: Final = 5
"""Operators that a message names before it counts the rest."""

_SHUFFLE: Final = "export with another form of the channel shuffle (--shuffle), or raise the limit"
_LOOK: Final = "see the reasons with shufflectl inspect --operators, or raise the limit"


@dataclass(frozen=True)
class Gate:
    """A limit and what was found.

    Attributes:
        gate: ``max_fallback_ops`` or ``max_rank``.
        limit: The most that passes.
        found: What the file has.
        subject: What is counted, in a few words.
        failing: The operators (and inputs of the model) that break the limit; empty where it holds.
    """

    gate: str
    limit: int
    found: int
    subject: str
    failing: tuple[Fallback, ...]

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.found <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return the gate as JSON values."""
        return {**asdict(self), "passed": self.passed}


def check_delegate(format_name: str, delegate: str | None) -> str:
    """Return the delegate whose fallbacks count: the one named, or the format's default.

    Raises:
        UsageError: The format has no such delegate.
    """
    known = DELEGATES[format_name]
    if delegate is None:
        return known[0]
    if delegate not in known:
        raise UsageError(
            f"there is no delegate {delegate!r} for {format_name}", hint=nearest(delegate, known)
        )
    return delegate


def fallback_gate(facts: Facts, delegate: str, limit: int) -> Gate:
    """Return the gate on operators that a delegate leaves to other kernels.

    Args:
        facts: What is known of the file.
        delegate: One that `check_delegate` gave.
        limit: The most operators that may be left.

    Raises:
        UnavailableError: What the delegate leaves is not known.
    """
    left = facts.fallback(delegate)
    failing = left if len(left) > limit else ()
    return Gate("max_fallback_ops", limit, len(left), f"operators left by {delegate}", failing)


def rank_gate(summary: Summary, limit: int) -> Gate:
    """Return the gate on the largest rank of an activation tensor.

    Args:
        summary: The file's summary.
        limit: The largest rank that passes.
    """
    ranked = [("input", t.name, len(t.shape)) for t in summary.inputs if t.shape is not None]
    for operator in summary.operators:
        if operator.role != "weights":
            ranks = [len(shape) for shape in operator.output_shapes if shape is not None]
            ranked.append((operator.type, operator.name, max(ranks, default=0)))
    failing = tuple(Fallback(name, kind, f"rank {rank}") for kind, name, rank in ranked if rank > limit)
    return Gate("max_rank", limit, max((rank for *_, rank in ranked), default=0), "largest rank", failing)


def failure(file: str, gates: Sequence[Gate]) -> GateError | None:
    """Return the error for gates that fail, in one sentence; None where all pass.

    Args:
        file: The file's name.
        gates: All gates.
    """
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return None
    parts = [
        f"{gate.subject}: {gate.found}, allowed {gate.limit} ({_names(gate.failing)})" for gate in failed
    ]
    ranked = any("rank" in left.why for gate in failed for left in gate.failing)
    return GateError(f"{file} fails its limits: {'; '.join(parts)}", hint=_SHUFFLE if ranked else _LOOK)


def _names(failing: Sequence[Fallback]) -> str:
    rest = f" and {len(failing) - _NAMED} more" if len(failing) > _NAMED else ""
    return ", ".join(f"{left.type} {left.name}" for left in failing[:_NAMED]) + rest
