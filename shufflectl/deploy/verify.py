"""Load artifacts in their runtimes, compare them with the reference and one another, name what is wrong."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.deploy import runtimes
from shufflectl.deploy.images import Inputs
from shufflectl.deploy.inspect import Summary, summarize
from shufflectl.deploy.options import ParityOptions
from shufflectl.deploy.parity.locate import Divergence, Examination, Layer, examine
from shufflectl.deploy.parity.metrics import Comparison
from shufflectl.deploy.parity.nway import Accuracy, Member, ParityReport, check_parity
from shufflectl.deploy.publish import digest
from shufflectl.deploy.runtimes.base import Session

if TYPE_CHECKING:
    import torch

__all__ = ["TIP", "Artifact", "Notify", "Reference", "Result", "Verification", "verify"]

Notify = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""

TIP: Final = "see every inner tensor with --per-layer; set limits with --max-rel, --min-sqnr and --min-top1"
"""What to do about files that disagree."""

_EXAMINED: Final = 2
"""Images of each kind in the comparison layer by layer."""


@dataclass(frozen=True)
class Artifact:
    """One exported file.

    Attributes:
        path: Where it is now.
        file: Its name in the output folder.
        target: The name of its format.
        precision: ``fp32`` or ``fp16``.
    """

    path: Path
    file: str
    target: str
    precision: str


@dataclass(frozen=True)
class Reference:
    """What is taken as right.

    Attributes:
        name: What reports call it.
        module: The torch module; None where one of the files is the reference.
        graph: Returns the captured graph; called only when a layer must be found.
    """

    name: str
    module: "torch.nn.Module | None"
    graph: Callable[[], Graph | None]


@dataclass(frozen=True)
class Result:
    """What is known of one artifact after the comparison.

    Attributes:
        artifact: The file.
        sha256: Its digest.
        summary: Its operators, sizes and ranks.
        runtime: Name and version of the runtime that ran it.
        comparison: Its worst comparison with the reference; None for the reference itself.
        accuracy: On labelled images; None without labels.
        passed: Whether it agrees with the reference.
        examination: The comparison layer by layer; None where there was no reason for one.
        changed: Whether it differs from what its manifest says.
        per_layer: Whether the user asked for the table of inner tensors.
    """

    artifact: Artifact
    sha256: str
    summary: Summary
    runtime: str
    comparison: Comparison | None
    accuracy: Accuracy | None
    passed: bool
    examination: Examination | None = None
    changed: bool = False
    per_layer: bool = False

    @property
    def layers(self) -> tuple[Layer, ...] | None:
        """The table of inner tensors of a failing file, where it was asked for."""
        return self.examination.layers if self.per_layer and self.examination and not self.passed else None

    @property
    def divergence(self) -> Divergence | None:
        """The first layer that disagrees, and the cause; None where all agree."""
        return None if self.examination is None else self.examination.divergence

    @property
    def failure(self) -> str:
        """Why the file fails, in one sentence; empty when it passes."""
        if self.passed:
            return ""
        reasons = [] if self.comparison is None else list(self.comparison.failures)
        if self.divergence is not None:
            reasons.append(self.divergence.sentence)
        return f"{self.artifact.file}: " + "; ".join(reasons)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        rank = self.summary.largest_rank
        return {
            "file": self.artifact.file,
            "target": self.artifact.target,
            "precision": self.artifact.precision,
            "sha256": self.sha256,
            "changed": self.changed,
            "bytes": self.summary.bytes,
            "operators": len(self.summary.operators),
            "largest_rank": None if rank is None else rank.rank,
            "runtime": self.runtime,
            "passed": self.passed,
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "divergence": None if self.divergence is None else self.divergence.to_json(),
            "layers": None if self.layers is None else [layer.to_json() for layer in self.layers],
        }


@dataclass(frozen=True)
class Verification:
    """The comparison of one model's artifacts.

    Attributes:
        model: The model's name.
        reference: What the artifacts are held against.
        reference_accuracy: On labelled images; None without labels.
        results: One for each artifact.
        report: Every comparison.
    """

    model: str
    reference: str
    reference_accuracy: Accuracy | None
    results: tuple[Result, ...]
    report: ParityReport

    @property
    def passed(self) -> bool:
        """Whether all artifacts agree with the reference and with one another."""
        return self.report.passed and all(result.passed for result in self.results)

    @property
    def failure(self) -> str:
        """Why not, in one sentence; empty when they pass."""
        found = [result.failure for result in self.results if not result.passed]
        if not found:
            found = [
                f"{row.candidate} and {row.reference} disagree: {'; '.join(row.comparison.failures)}"
                for row in self.report.pairwise
                if not row.comparison.passed
            ]
        return " | ".join(found)

    def to_json(self) -> dict[str, Any]:
        """Return the verification as JSON values."""
        return {
            "model": self.model,
            "passed": self.passed,
            "reference": self.reference,
            "reference_accuracy": None
            if self.reference_accuracy is None
            else self.reference_accuracy.to_json(),
            "artifacts": [result.to_json() for result in self.results],
            "parity": self.report.to_json(),
        }


def verify(
    model: str,
    artifacts: Sequence[Artifact],
    reference: Reference,
    inputs: Inputs,
    options: ParityOptions,
    notify: Notify,
) -> Verification:
    """Compare artifacts of one model.

    Where the outputs disagree, the first layer that does is looked for. A half-precision file is examined
    layer by layer in any case: its limits at the output leave room in which a small defect could hide.

    Raises:
        ArtifactError: A file is missing, damaged or of another kind.
        UnavailableError: No runtime here executes a format.
        MissingDependencyError: A runtime's package is not installed.
    """
    with ExitStack() as stack:
        sessions: list[tuple[Artifact, Session, str]] = []
        for artifact in artifacts:
            notify(f"loading {artifact.file}", len(sessions), len(artifacts))
            runtime = runtimes.choose(artifact.target, options.runtimes, python=options.runtime_python)
            session = stack.enter_context(runtime.load(artifact.path, threads=options.threads))
            sessions.append((artifact, session, f"{runtime.name} {runtime.available().version}".strip()))
        members = [Member.from_session(a.file, a.precision, session) for a, session, _ in sessions]
        if reference.module is not None:
            first = Member.from_module(reference.name, reference.module)
        else:
            first = next(member for member in members if member.name == reference.name)
            members.remove(first)
        report = check_parity(
            first,
            members,
            inputs.by_kind,
            labels=inputs.labels,
            limits=options.limits,
            progress=lambda done, total: notify("comparing", done, total),
        )
        accuracy = {record.member: record for record in report.accuracy}
        suspects = {name for row in report.failures for name in (row.reference, row.candidate)}
        results = []
        for artifact, session, version in sessions:
            judged = artifact.file != first.name
            examination = None
            if artifact.file in suspects or artifact.precision != "fp32":
                notify(f"looking into {artifact.file}", 0, 0)
                graph = reference.graph()
                if graph is not None:
                    limits = options.limits(artifact.precision)
                    examination = examine(graph, session, _few(graph, inputs), limits, file=artifact.file)
            agrees = not judged or report.verdict(artifact.file)
            diverges = examination is not None and examination.divergence is not None
            results.append(
                Result(
                    artifact=artifact,
                    sha256=digest(artifact.path),
                    summary=summarize(artifact.path),
                    runtime=version,
                    comparison=report.worst(artifact.file).comparison if judged else None,
                    accuracy=accuracy.get(artifact.file),
                    passed=agrees and not diverges,
                    examination=examination,
                    per_layer=options.per_layer,
                )
            )
    return Verification(model, first.name, accuracy.get(first.name), tuple(results), report)


def _few(graph: Graph, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
    """Return a few images of each kind for the comparison layer by layer, by the graph's input name."""
    images = np.concatenate([images[:_EXAMINED] for images in inputs.by_kind.values()])
    return {graph.inputs[0].name or "": images}
