"""All that `inspect` says about a file, and the limits that it is held against."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.inspect.calibrated import Calibrated, read_calibrated
from shufflectl.deploy.inspect.facts import Facts, read_facts
from shufflectl.deploy.inspect.gates import Gate, check_delegate, failure, fallback_gate, rank_gate
from shufflectl.deploy.inspect.summary import Summary
from shufflectl.errors import UsageError

__all__ = ["Inspection", "Limits", "inspect_file"]


@dataclass(frozen=True)
class Limits:
    """What a file may have at most.

    Attributes:
        max_fallback_ops: Operators that the delegate leaves to other kernels; None for any number.
        delegate: Whose fallbacks count; None for the format's default.
        max_rank: The largest rank of an activation tensor; None for any.
    """

    max_fallback_ops: int | None = None
    delegate: str | None = None
    max_rank: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        summary: What the file holds and what a run costs.
        facts: What runtimes and delegates make of it.
        gates: The limits, and whether they hold.
        calibration: On what an int8 file of shufflectl was calibrated; None for any other file.
    """

    summary: Summary
    facts: Facts
    gates: tuple[Gate, ...]
    calibration: Calibrated | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        return {
            **self.summary.to_json(),
            "calibration": None
            if self.calibration is None
            else {**asdict(self.calibration), "floats": list(self.calibration.floats)},
            "runtime": self.facts.to_json(),
            "gates": [gate.to_json() for gate in self.gates],
        }

    def raise_for_failure(self) -> None:
        """Raise where a limit does not hold.

        Raises:
            GateError: The sentence names the operators and tensors that break it.
        """
        error = failure(self.summary.name, self.gates)
        if error is not None:
            raise error


def inspect_file(path: Path, *, measured: bool = True, limits: Limits | None = None) -> Inspection:
    """Inspect an exported file, of whoever wrote it.

    Args:
        path: An ``.onnx`` file, a ``.tflite`` file or an ``.mlpackage`` folder.
        measured: Whether to load the file in its runtime, in another process; otherwise nothing of it runs.
        limits: What it may have at most.

    Raises:
        ArtifactError: It is missing, damaged, or none of these.
        MissingDependencyError: The package that knows the format is not installed.
        UnavailableError: A limit is on something that could not be measured here.
        UsageError: The format has no such delegate.
    """
    limits = limits or Limits()
    if limits.delegate is not None and limits.max_fallback_ops is None:
        raise UsageError(
            "--delegate says whose fallbacks --max-fallback-ops counts, which is not given",
            hint="add --max-fallback-ops N",
        )
    summary = summarize(path)
    delegate = check_delegate(summary.format, limits.delegate)
    facts = read_facts(path, measured=measured)
    gates = []
    if limits.max_fallback_ops is not None:
        gates.append(fallback_gate(facts, delegate, limits.max_fallback_ops))
    if limits.max_rank is not None:
        gates.append(rank_gate(summary, limits.max_rank))
    record = None if summary.metadata is None else summary.metadata.quantization
    calibrated = None if record is None else read_calibrated(path, record)
    return Inspection(summary, facts, tuple(gates), calibrated)
