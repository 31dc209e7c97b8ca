"""Every form of a model that is worth measuring, as files that are proved equal to the model.

Two forms that leave the same graph are one; each is written only when it is asked for, and run and compared
with the reference before anybody may time it.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.choose import AUTO, NATIVE, Candidate, candidates, choose, lower, settle
from shufflectl.converters.targets import TARGETS, Emitter, Layout
from shufflectl.deploy.artifacts import Artifact
from shufflectl.deploy.export import Subject
from shufflectl.deploy.onnx_model import reading
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.pixels import give_pixels
from shufflectl.deploy.publish import size
from shufflectl.deploy.verify import Notify, verify
from shufflectl.errors import ShufflectlError

__all__ = ["Form", "Forms", "Written"]


@dataclass(frozen=True)
class Form:
    """One way to write the model.

    Attributes:
        candidate: The form of channel shuffles.
        layout: Of the image input.
        same_as: Further forms that leave the same graph.
    """

    candidate: Candidate
    layout: Layout
    same_as: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.candidate.label}, {self.layout}"


@dataclass(frozen=True)
class Written:
    """A form as a file.

    Attributes:
        path: The file.
        sha256: Its digest.
        bytes: Its size.
        max_rel: How far its outputs are from the reference's, relative to the largest.
        sqnr: The same in dB.
        problem: Why it may not be used; empty where it agrees with the reference.
    """

    path: Path
    sha256: str
    bytes: int
    max_rel: float | None
    sqnr: float | None
    problem: str = ""


class Forms:
    """The forms of a subject for one target and precision.

    Args:
        request: What is exported; one target and one precision.
        subject: The model.
        emit: How the target is written.
        folder: Where the files go.
    """

    def __init__(self, request: ExportRequest, subject: Subject, emit: Emitter, folder: Path) -> None:
        self._request, self._subject, self._emit, self._folder = request, subject, emit, folder
        (self._target,), (self._precision,) = request.targets, request.precisions
        with nullcontext() if subject.path is None else reading(subject.path):
            self._given = give_pixels(request, subject.graph, subject.info.preprocess)
        self._number = 0
        self._graphs: dict[Candidate, Graph] = {}

    def enumerate(self, layouts: Sequence[Layout], notify: Notify) -> tuple[Form, ...]:
        """Return the forms that differ, `native` first, in each layout; the first layout's come first.

        What `export` takes by default is among them, under that name where several leave the same graph.
        """
        auto = self.automatic
        wanted = list(dict.fromkeys([NATIVE, auto, *candidates(self._target, self._precision)]))
        found: dict[str, list[Candidate]] = {}
        with nullcontext() if self._subject.path is None else reading(self._subject.path):
            for done, candidate in enumerate(wanted):
                notify(f"rewriting: {candidate.label}", done, len(wanted))
                graph, report = lower(self._given.graph, candidate)
                key = _outline(graph) if report.changed else ""
                found.setdefault(key, []).append(candidate)
                self._graphs[candidate] = graph if report.changed else self._given.graph
        distinct = [(same[0], tuple(other.label for other in same[1:])) for same in found.values()]
        return tuple(Form(candidate, layout, others) for layout in layouts for candidate, others in distinct)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the files' inputs, a sentence each."""
        return self._given.notes

    @property
    def automatic(self) -> Candidate:
        """What `export` takes without a tuning."""
        choice = choose(self._target, self._precision, shuffle=AUTO)
        return settle(self._given.graph, choice).candidate

    def write(self, form: Form) -> Written:
        """Write a form as a file, run it, and compare it with the reference."""
        self._number += 1
        path = self._folder / f"form{self._number:03d}{TARGETS[self._target].extension}"
        request = replace(self._request, layout=form.layout)
        options = request.emit_options(self._precision)
        image = replace(self._given, request=request).input(self._target, self._precision)
        info = replace(self._subject.info, precision=self._precision, input=image)
        try:
            with nullcontext() if self._subject.path is None else reading(self._subject.path):
                self._emit(self._graphs[form.candidate], info, options, path)
            return self._compare(path, form)
        except ShufflectlError as error:
            return Written(path, "", 0, None, None, error.message)

    def _compare(self, path: Path, form: Form) -> Written:
        artifact = Artifact(path, path.name, self._target, self._precision, form.candidate)
        subject = self._subject
        found = verify(
            subject.info.name, [artifact], subject.reference, subject.inputs, self._request.parity, _quietly
        )
        (result,) = found.results
        comparison = result.comparison
        return Written(
            path,
            result.sha256,
            size(path),
            None if comparison is None else _finite(comparison.max_rel),
            None if comparison is None else _finite(comparison.sqnr),
            found.failure,
        )


def _quietly(_what: str, _done: int, _total: int) -> None:
    pass


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _outline(graph: Graph) -> str:
    """Return a digest of nodes, names, shapes and weights."""
    data = graph.to_proto().graph.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest()
