"""Load artifacts in their runtimes, compare them with the reference and one another, name what is wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.trace import TensorView, Trace, captured_of
from shufflectl.deploy import runtimes
from shufflectl.deploy.artifacts import Artifact
from shufflectl.deploy.digests import digest
from shufflectl.deploy.feeding import other_feed
from shufflectl.deploy.images import Inputs
from shufflectl.deploy.inspect import Summary, summarize
from shufflectl.deploy.labelled import DIGITS
from shufflectl.deploy.options import ParityOptions
from shufflectl.deploy.parity.codes import CodeReference
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.parity.limits import CODE_LIMITS
from shufflectl.deploy.parity.locate import Divergence, Examination, Layer, examine
from shufflectl.deploy.parity.metrics import Comparison
from shufflectl.deploy.parity.nway import Accuracy, Member, ParityReport, check_parity
from shufflectl.deploy.runtimes.base import Arrays, Runtime, Session

if TYPE_CHECKING:
    import torch

    from shufflectl.deploy.quantization import Quantized

__all__ = ["CALIBRATION", "TIP", "Notify", "Reference", "Result", "Verification", "verify"]

Notify = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""

TIP: Final = "see every inner tensor with --per-layer; set limits with --max-rel, --min-sqnr and --min-top1"
"""What to do about files that disagree."""

CALIBRATION: Final = "calibration"
"""The kind of images that a network was calibrated on."""

_EXAMINED: Final = 2
"""Images of each kind in the comparison layer by layer."""


@dataclass(frozen=True)
class Reference:
    """What is taken as right.

    Attributes:
        name: What reports call it.
        module: The torch module; None where a file is the reference.
        graph: Returns the captured graph; called only when a layer must be found.
        original: The ONNX file that everything was made from, where that is the reference. Without one, and
            without a module, it is the artifact of the reference's name.
        precision: What the reference computes in.
        inputs: The names of the inputs, where there may be several; None for one.
        outputs: The names of the outputs, where the files may have them in another order.
        batch: How many images the module or the original is handed at once; None for any number.
        quantized: Returns the graph and the calibration that an int8 file was made of; None where they are
            out of reach.
    """

    name: str
    module: "torch.nn.Module | None"
    graph: Callable[[], Graph | None]
    original: Path | None = None
    precision: str = "fp32"
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    batch: int | None = None
    quantized: "Callable[[Artifact], Quantized | None]" = lambda _: None


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
        feeding: How it would have to be fed to agree, where that is the cause; empty otherwise.
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
    feeding: str = ""

    @property
    def layers(self) -> tuple[Layer, ...] | None:
        """The table of inner tensors of a failing file, where it was asked for."""
        return self.examination.layers if self.per_layer and self.examination and not self.passed else None

    @property
    def divergence(self) -> Divergence | None:
        """The first layer that disagrees, and the cause; None where all agree."""
        return None if self.examination is None else self.examination.divergence

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the file fails, a sentence each: the limits that it breaks, and the layer and cause."""
        found = [] if self.comparison is None or self.passed else list(self.comparison.failures)
        if self.feeding:
            found.append(f"it {self.feeding}")
        if self.divergence is not None:
            found.append(self.divergence.sentence)
        return tuple(found)

    @property
    def failure(self) -> str:
        """Why the file fails, in one sentence; empty when it passes."""
        if self.passed:
            return ""
        if self.feeding:
            return f"{self.artifact.file} {self.feeding}"
        if self.divergence is not None:
            where = self.divergence
            return f"{self.artifact.file} goes wrong at {where.tensor}: {where.diagnosis.sentence}"
        return f"{self.artifact.file}: {'; '.join(self.reasons)}"

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        rank = self.summary.largest_rank
        return {
            "file": self.artifact.file,
            "target": self.artifact.target,
            "precision": self.artifact.precision,
            "shuffle": None if self.artifact.form is None else self.artifact.form.to_json(),
            "sha256": self.sha256,
            "changed": self.changed,
            "bytes": self.summary.bytes,
            "operators": len(self.summary.operators),
            "largest_rank": None if rank is None else rank.rank,
            "runtime": self.runtime,
            "passed": self.passed,
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "feeding": self.feeding or None,
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
        notes: What the user should know besides, a sentence each.
    """

    model: str
    reference: str
    reference_accuracy: Accuracy | None
    results: tuple[Result, ...]
    report: ParityReport
    notes: tuple[str, ...] = ()

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
        return "; ".join(found)

    def to_json(self) -> dict[str, Any]:
        """Return the verification as JSON values."""
        return {
            "model": self.model,
            "passed": self.passed,
            "notes": list(self.notes),
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
    One file is loaded at a time.

    Raises:
        ArtifactError: A file is missing, damaged or of another kind.
        UnavailableError: No runtime here executes a format.
        MissingDependencyError: A runtime's package is not installed.
    """
    chosen = {
        a.target: runtimes.choose(a.target, options.runtimes, python=options.runtime_python)
        for a in artifacts
    }
    members = []
    if reference.module is not None:
        module = Member.from_module(reference.name, reference.module, batch=reference.batch)
        members.append(module.recorded(inputs.by_kind, progress=_telling(notify, reference.name)))
    names: dict[str, Any] = {"inputs": reference.inputs, "outputs": reference.outputs}
    if reference.original is not None:
        onnx = runtimes.choose("onnx", options.runtimes)
        with onnx.load(reference.original, threads=options.threads) as session:
            member = Member.from_session(
                reference.name, reference.precision, _AsItIs(session), batch=reference.batch, **names
            )
            members.append(member.recorded(inputs.by_kind, progress=_telling(notify, reference.name)))
    for artifact in sorted(artifacts, key=lambda a: a.file != reference.name):
        with chosen[artifact.target].load(artifact.path, threads=options.threads) as session:
            member = Member.from_session(artifact.file, artifact.precision, session, **names)
            member = replace(member, familiar=_familiar(artifact, reference, inputs))
            members.append(member.recorded(inputs.by_kind, progress=_telling(notify, artifact.file)))
    report = check_parity(
        members[0],
        members[1:],
        inputs.by_kind,
        labels=inputs.labels,
        limits=options.limits,
        output_names=reference.outputs,
    )
    accuracy = {record.member: record for record in report.accuracy}
    suspects = {name for row in report.failures for name in (row.reference, row.candidate)}
    results = []
    for artifact in artifacts:
        runtime = chosen[artifact.target]
        judged = artifact.file != report.reference
        examination = None
        if artifact.precision == "int8":
            notify(f"looking into {artifact.file}", 0, 0)
            examination = _examine_codes(artifact, runtime, reference, inputs, options)
        elif artifact.file in suspects or artifact.precision != "fp32":
            notify(f"looking into {artifact.file}", 0, 0)
            examination = _examine(artifact, runtime, reference, inputs, options)
        agrees = not judged or report.verdict(artifact.file)
        diverges = examination is not None and examination.divergence is not None
        results.append(
            Result(
                artifact=artifact,
                sha256=digest(artifact.path),
                summary=summarize(artifact.path),
                runtime=f"{runtime.name} {runtime.available().version}".strip(),
                comparison=report.worst(artifact.file).comparison if judged else None,
                accuracy=accuracy.get(artifact.file),
                passed=agrees and not diverges,
                examination=examination,
                per_layer=options.per_layer,
                feeding="" if agrees else _feeding(artifact, runtime, reference, inputs, options),
            )
        )
    return Verification(model, report.reference, accuracy.get(report.reference), tuple(results), report)


def _familiar(artifact: Artifact, reference: Reference, inputs: Inputs) -> frozenset[str] | None:
    """Return the kinds of input that an int8 file's ranges were made for; None for any other file."""
    if artifact.precision != "int8":
        return None
    quantized = reference.quantized(artifact)
    digits = quantized.calibration.source == DIGITS if quantized is not None else "real" in inputs.labels
    return frozenset({CALIBRATION, "real"} if digits else {CALIBRATION})


def _feeding(
    artifact: Artifact, runtime: Runtime, reference: Reference, inputs: Inputs, options: ParityOptions
) -> str:
    """Return how a file that disagrees must be fed to agree; empty where no usual way is the cause."""
    feeds = Feeds.join([images[:_EXAMINED] for images in inputs.by_kind.values()])
    names: dict[str, Any] = {"inputs": reference.inputs, "outputs": reference.outputs}
    if reference.module is not None:
        expected = Member.from_module(reference.name, reference.module, batch=reference.batch).run(feeds)
    elif reference.original is not None:
        with runtimes.choose("onnx", options.runtimes).load(reference.original) as session:
            as_it_is = _AsItIs(session)
            member = Member.from_session(reference.name, "", as_it_is, batch=reference.batch, **names)
            expected = member.run(feeds)
    else:
        return ""
    with runtime.load(artifact.path, threads=options.threads) as session:
        limits = options.limits(artifact.precision)
        return other_feed(session, artifact.file, feeds, expected, limits, **names)


class _AsItIs:
    """A session whose tensors stand for themselves, whatever its file says of the graph that it came from."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.integers = session.integers
        self.info = None  # what it takes is what the caller of this comparison says
        self.trace = Trace({spec.name: TensorView(spec.name) for spec in (*self.inputs, *self.outputs)})

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        return self._session.run(inputs, taps)


def _telling(notify: Notify, name: str) -> Callable[[int, int], None]:
    return lambda done, total: notify(f"running {name}", done, total)


def _examine(
    artifact: Artifact, runtime: Runtime, reference: Reference, inputs: Inputs, options: ParityOptions
) -> Examination | None:
    graph = reference.graph()
    if graph is None:
        return None
    feeds = Feeds.join([images[:_EXAMINED] for images in inputs.by_kind.values()])
    with runtime.load(artifact.path, threads=options.threads) as session:
        return examine(
            graph,
            session,
            feeds,
            options.limits(artifact.precision),
            file=artifact.file,
        )


def _examine_codes(
    artifact: Artifact, runtime: Runtime, reference: Reference, inputs: Inputs, options: ParityOptions
) -> Examination | None:
    """Compare an int8 file with the graph in codes that it was made of; None where that is out of reach."""
    quantized = reference.quantized(artifact)
    if quantized is None:
        return None
    graph = quantized.reference()
    feeds = Feeds.join([images[:_EXAMINED] for images in inputs.by_kind.values()])
    with runtime.load(artifact.path, threads=options.threads) as session:
        expects = None if session.info is None else session.info.expects
        names = [str(value.name) for value in graph.inputs]
        if any(name != captured_of(name) for name in names):  # the graph prepares its images itself
            feeds = Feeds({name: feeds.fed(captured_of(name), expects) for name in names})
        limits = CODE_LIMITS[artifact.target]
        codes = CodeReference(quantized.in_codes, limits)
        return examine(graph, session, feeds, limits.numbers, file=artifact.file, codes=codes)
