"""Run one model in several formats over the same images and compare every two of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.trace import NCHW
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.parity.figures import figure
from shufflectl.deploy.parity.limits import ANY, Limits, default_limits
from shufflectl.deploy.parity.metrics import Accumulator, Comparison
from shufflectl.deploy.parity.ports import Ports, nhwc_shape
from shufflectl.deploy.runtimes.base import Session
from shufflectl.errors import ArtifactError, DataError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["SCHEMA", "Accuracy", "Member", "Outputs", "ParityReport", "Row", "check_parity"]

SCHEMA: Final = "shufflectl.parity/1"

BATCH: Final = 16
"""Images handed to each member at once."""

Images = NDArray[np.float32] | Feeds
Outputs = tuple[NDArray[Any], ...]
"""A model's outputs in its order, each with the images along its first axis."""


@dataclass(frozen=True)
class Member:
    """One way to run the model.

    Attributes:
        name: What reports call it; the file's name for an artifact.
        precision: Which limits it is held to.
        run: Images ``[N, C, H, W]`` (fp32, already preprocessed), or `Feeds` of several inputs, to the
            outputs, in the model's order, each with the images along its first axis and images as NCHW.
        foreign: Whether outputs of rank 4 may come as NHWC, since the file does not say.
        familiar: Kinds of input that lie in the ranges that its codes were made for; on others it need not be
            near members in floating point. None for all kinds.
    """

    name: str
    precision: str
    run: Callable[[Images], Outputs]
    foreign: bool = False
    familiar: frozenset[str] | None = None

    def comparable(self, other: "Member", kind: str) -> bool:
        """Whether two members must be near each other on a kind of input."""
        if self.familiar == other.familiar:
            return True
        return all(member.familiar is None or kind in member.familiar for member in (self, other))

    @classmethod
    def from_session(
        cls,
        name: str,
        precision: str,
        session: Session,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        batch: int | None = None,
    ) -> Self:
        """Return a loaded file as a member.

        Names, layout, channel order and type go through the file's trace. A file without one is matched by
        position, its layout read from its shape. A file whose batch is fixed takes that many images at a time
        (the last group is filled up with copies, whose outputs are dropped).

        Args:
            name: What reports call it.
            precision: Which limits it is held to.
            session: The loaded file; it stays open as long as the member is used.
            inputs: The graph's input names, where the file's order may differ from the graph's.
            outputs: The graph's output names, likewise.
            batch: How many images a file whose batch is free is handed at once; None for as many as come.

        Raises:
            ArtifactError: The file has several inputs and their names are not given, takes no floating point,
                or its trace does not fit it.
        """
        ports = Ports(session, name, inputs, outputs)
        if len(ports.inputs) != 1 and inputs is None:
            raise ArtifactError(
                f"{name} has {len(ports.inputs)} inputs; parity runs models with one image input",
                hint="export a model that takes one image",
            )
        image = ports.inputs[0][0]

        def run(images: Images) -> Outputs:
            feeds = images if isinstance(images, Feeds) else Feeds({image: images})
            size = ports.batch or batch or len(feeds)
            return _grouped(feeds, size, lambda group: tuple(ports.run(group)[0].values()))

        return cls(name, precision, run, ports.foreign)

    @classmethod
    def from_module(
        cls, name: str, module: "torch.nn.Module", *, precision: str = "fp32", batch: int | None = None
    ) -> Self:
        """Return a torch module as a member; it runs in evaluation mode on the processor.

        Args:
            name: What reports call it.
            module: Gives a tensor, or several in a tuple, list or mapping.
            precision: Which limits it is held to.
            batch: How many images it takes at once, as `from_session`; None for any number.
        """
        import torch  # the only place of this package that needs it

        def once(feeds: Feeds) -> Outputs:
            arrays = feeds.arrays.values()
            with torch.inference_mode():
                results = module(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
            if isinstance(results, Mapping):
                results = tuple(results.values())
            tensors = results if isinstance(results, (tuple, list)) else (results,)
            return tuple(tensor.numpy() for tensor in tensors)

        def run(images: Images) -> Outputs:
            feeds = images if isinstance(images, Feeds) else Feeds({"": images})
            training = module.training
            module.eval()
            try:
                return once(feeds) if batch is None else _grouped(feeds, batch, once)
            finally:
                module.train(training)

        return cls(name, precision, run)

    def recorded(
        self,
        inputs: Mapping[str, Images],
        *,
        batch: int = BATCH,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Run everything now, and return a member that gives these outputs to one `check_parity`.

        A file then need not stay loaded while the others run.

        Args:
            inputs: What `check_parity` will be given.
            batch: Likewise.
            progress: Called with the images done and in all.
        """
        total = sum(len(images) for images in inputs.values())
        results = []
        done = 0
        for images in inputs.values():
            for start in range(0, len(images), batch):
                chunk = images[start : start + batch]
                results.append(self.run(chunk))
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        answers = iter(results)
        return replace(self, run=lambda _images: next(answers))


@dataclass(frozen=True)
class Row:
    """One comparison of two members.

    Attributes:
        reference: The member that is taken as right.
        candidate: The member that is judged.
        kind: The kind of input, as ``real`` or ``random``.
        output: The output's name.
        comparison: The figures and the verdict.
    """

    reference: str
    candidate: str
    kind: str
    output: str
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "kind": self.kind,
            "output": self.output,
            **self.comparison.to_json(),
        }


@dataclass(frozen=True)
class Accuracy:
    """How many labelled images a member names right.

    Attributes:
        member: The member.
        kind: The kind of input.
        correct: Images whose most likely class is their label.
        total: Labelled images.
    """

    member: str
    kind: str
    correct: int
    total: int

    @property
    def share(self) -> float:
        """The share of correct answers, 0 to 1."""
        return self.correct / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the accuracy as JSON values."""
        return {
            "member": self.member,
            "kind": self.kind,
            "correct": self.correct,
            "total": self.total,
            "share": figure(self.share),
        }


@dataclass(frozen=True)
class ParityReport:
    """What an n-way comparison found. Its truth value is the verdict over all of it.

    Attributes:
        reference: The name of the member that the others are held against.
        members: Name and precision of each member, the reference first.
        rows: Every comparison: first each candidate against the reference, then the candidates pairwise.
        accuracy: One record for each member and labelled kind of input.
    """

    reference: str
    members: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    accuracy: tuple[Accuracy, ...] = ()

    def __bool__(self) -> bool:
        return all(row.comparison for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether every comparison is within its limits."""
        return bool(self)

    @property
    def against_reference(self) -> tuple[Row, ...]:
        """The comparisons with the reference."""
        return tuple(row for row in self.rows if row.reference == self.reference)

    @property
    def pairwise(self) -> tuple[Row, ...]:
        """The comparisons of two candidates."""
        return tuple(row for row in self.rows if row.reference != self.reference)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The comparisons beyond their limits."""
        return tuple(row for row in self.rows if not row.comparison)

    def of(self, candidate: str) -> tuple[Row, ...]:
        """Return a candidate's comparisons with the reference."""
        return tuple(row for row in self.against_reference if row.candidate == candidate)

    def worst(self, candidate: str) -> Row:
        """Return a candidate's comparison with the reference that a table of one line shows.

        A comparison that fails comes before one that passes, a lower SQNR before a higher.

        Raises:
            KeyError: No member has that name.
        """
        rows = self.of(candidate)
        if not rows:
            raise KeyError(candidate)
        return min(
            rows, key=lambda row: (bool(row.comparison), -row.comparison.nonfinite, row.comparison.sqnr)
        )

    def verdict(self, candidate: str) -> bool:
        """Say whether a candidate agrees with the reference."""
        return all(row.comparison for row in self.of(candidate))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, the same for the same outputs."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "reference": self.reference,
            "members": [{"name": name, "precision": precision} for name, precision in self.members],
            "against_reference": [row.to_json() for row in self.against_reference],
            "pairwise": [row.to_json() for row in self.pairwise],
            "accuracy": [record.to_json() for record in self.accuracy],
        }


def check_parity(
    reference: Member,
    candidates: Sequence[Member],
    inputs: Mapping[str, Images],
    *,
    labels: Mapping[str, NDArray[np.integer[Any]]] | None = None,
    limits: Callable[[str], Limits] = default_limits,
    output_names: Sequence[str] | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare each candidate with the reference, and the candidates with one another.

    One batch of outputs is held at a time.

    Args:
        reference: What is taken as right, usually torch.
        candidates: What is judged.
        inputs: Preprocessed images ``[N, C, H, W]`` by kind, as ``{"real": ..., "random": ...}``.
        labels: By kind, the class of each image, where known.
        limits: The limits for a precision. A pair of candidates is held to `Limits.between` of both.
        output_names: Names of the outputs; ``output 0`` and so on where not given.
        batch: Images handed to each member at once.
        progress: Called with the images done and in all, counted once for each member.

    A member in codes is not compared with one in floating point on inputs that its ranges were not made for;
    where there are no others, it is, without limits.

    Raises:
        UsageError: Two members have one name.
        DataError: There are no images, or labels do not fit them.
        ParityError: Outputs differ in number or shape.
    """
    members = [reference, *candidates]
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise UsageError(f"two members of the comparison have one name: {', '.join(names)}")
    total = sum(len(images) for images in inputs.values()) * len(members)
    if total == 0:
        raise DataError("there are no images to compare on", hint="give at least one image")
    answers = dict(labels or {})
    for kind, classes in answers.items():
        if kind not in inputs or len(classes) != len(inputs[kind]):
            count = len(inputs.get(kind, ()))
            raise DataError(f"{len(classes)} labels are given for {count} {kind} images")

    pairs = [(0, index) for index in range(1, len(members))]
    pairs += list(combinations(range(1, len(members)), 2))
    gathered: dict[tuple[int, int, str, str], Accumulator] = {}
    correct = {(name, kind): 0 for kind in answers for name in names}
    done = 0
    for kind, images in inputs.items():
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            results: list[Outputs] = []
            for member in members:
                outputs = member.run(chunk)
                results.append(_aligned(outputs, results[0], member) if results else outputs)
                if kind in answers:
                    hits = _top1(outputs) == answers[kind][start : start + batch]
                    correct[member.name, kind] += int(np.count_nonzero(hits))
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            named = _names(output_names, len(results[0]))
            for first, second in pairs:
                for output, expected, actual in zip(named, results[first], results[second], strict=True):
                    key = (first, second, kind, output)
                    what = f"output {output!r} of {members[second].name}"
                    gathered.setdefault(key, Accumulator(what)).add(expected, actual)

    rows = []
    told = {(a, b) for a, b, kind, _ in gathered if members[a].comparable(members[b], kind)}
    for (first, second, kind, output), accumulator in gathered.items():
        if not members[first].comparable(members[second], kind):
            if (first, second) not in told:  # figures without a verdict are better than none
                rows.append(
                    Row(members[first].name, members[second].name, kind, output, accumulator.result(ANY))
                )
            continue
        allowed = limits(members[second].precision)
        # A reference in half precision has rounding errors of its own, which a file in fp32 does not share.
        if first or (members[0].precision == "fp16" and members[second].precision == "fp32"):
            allowed = limits(members[first].precision).between(allowed)
        comparison = accumulator.result(allowed)
        rows.append(Row(members[first].name, members[second].name, kind, output, comparison))
    order = {pair: index for index, pair in enumerate((names[a], names[b]) for a, b in pairs)}
    rows.sort(
        key=lambda row: order[row.reference, row.candidate]
    )  # stable: kinds and outputs keep their order
    return ParityReport(
        reference=reference.name,
        members=tuple((member.name, member.precision) for member in members),
        rows=tuple(rows),
        accuracy=tuple(
            Accuracy(name, kind, correct[name, kind], len(answers[kind]))
            for kind in answers
            for name in names
        ),
    )


def _grouped(feeds: Feeds, size: int, once: Callable[[Feeds], Outputs]) -> Outputs:
    """Run ``size`` images at a time; the last group is filled up with copies, whose outputs are dropped."""
    groups = []
    for start in range(0, len(feeds), size):
        group = feeds[start : start + size]
        results = once(group.filled(size))
        groups.append(tuple(_rows(array, len(group), size) for array in results))
    return tuple(np.concatenate(parts) for parts in zip(*groups, strict=True))


def _rows(array: NDArray[Any], count: int, size: int) -> NDArray[Any]:
    """Return what an output holds of the first images of a batch; it may have several rows an image."""
    rows = np.atleast_1d(array)
    return rows[: len(rows) * count // size]


def _names(given: Sequence[str] | None, count: int) -> list[str]:
    names = list(given or ())[:count]
    return names + [f"output {index}" for index in range(len(names), count)]


def _aligned(outputs: Outputs, reference: Outputs, member: Member) -> Outputs:
    """Return a member's outputs as NCHW where it is a foreign file whose shapes say that they are NHWC."""
    if len(outputs) != len(reference):
        raise ArtifactError(
            f"{member.name} has {len(outputs)} outputs where the reference has {len(reference)}",
            hint="compare files of the same model",
        )
    if not member.foreign:
        return outputs
    aligned = []
    for array, expected in zip(outputs, reference, strict=True):
        turned = nhwc_shape(expected.shape) if expected.ndim == 4 else ()
        if array.shape == turned and array.shape == expected.shape and max(turned[1:]) > 1:
            raise ArtifactError(
                f"the shape {list(array.shape)} of an output of {member.name} fits both NCHW and NHWC",
                hint="use a file that shufflectl exported, or one whose shape tells its layout",
            )
        aligned.append(array.transpose(NCHW) if array.shape == turned else array)
    return tuple(aligned)


def _top1(outputs: Outputs) -> NDArray[np.intp]:
    logits = next((array for array in outputs if array.ndim == 2), None)
    if logits is None:
        raise DataError(
            "labels are given, but no output holds one row of class scores for each image",
            hint="leave the labels out for a model that does not classify",
        )
    return np.asarray(logits.argmax(axis=1))
