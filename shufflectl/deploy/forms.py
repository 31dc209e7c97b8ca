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
from typing import Final

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.choose import AUTO, NATIVE, Candidate, candidates, choose, lower, settle
from shufflectl.converters.targets import TARGETS, Emitter, Layout
from shufflectl.deploy.artifacts import Artifact
from shufflectl.deploy.codes import calibrated
from shufflectl.deploy.digests import size
from shufflectl.deploy.export import Subject
from shufflectl.deploy.onnx_model import reading
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.pixels import give_pixels
from shufflectl.deploy.verify import CALIBRATION, Notify, verify
from shufflectl.errors import GraphError, ShufflectlError

__all__ = ["Form", "Forms", "Written"]

_SHOWN: Final = 8
"""Images of the calibration that an int8 file is compared on."""


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
        notify: Told about the calibration of int8 files, which is made here, once for all of them.

    Raises:
        DataError: The images to calibrate on cannot be used.
    """

    def __init__(
        self, request: ExportRequest, subject: Subject, emit: Emitter, folder: Path, notify: Notify
    ) -> None:
        self._request, self._subject, self._emit, self._folder = request, subject, emit, folder
        (self._target,), (self._precision,) = request.targets, request.precisions
        with nullcontext() if subject.path is None else reading(subject.path):
            self._given = give_pixels(request, subject.graph, subject.info.preprocess)
        self.codes = (
            calibrated(request, self._given, subject.info, notify) if self._precision == "int8" else None
        )
        self._number = 0
        self._graphs: dict[Candidate, Graph] = {}
        self._refused: dict[Candidate, str] = {}

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
                key = self._make(candidate)
                found.setdefault(key, []).append(candidate)
        distinct = [(same[0], tuple(other.label for other in same[1:])) for same in found.values()]
        return tuple(Form(candidate, layout, others) for layout in layouts for candidate, others in distinct)

    def _make(self, candidate: Candidate) -> str:
        """Make the graph in a form; return what is the same for forms that leave the same graph."""
        try:
            if self.codes is not None:
                graph, changed = self.codes.quantized.form(candidate)
            else:
                graph, report = lower(self._given.graph, candidate)
                changed = report.changed
        except GraphError as error:
            if self.codes is None:
                raise
            self._refused[candidate] = error.message  # a tensor would hold channels of several scales
            return candidate.label
        self._graphs[candidate] = graph
        return _outline(graph) if changed else ""

    @property
    def calibration(self) -> str:
        """The digest of the calibration of int8 files; empty for others."""
        return "" if self.codes is None else self.codes.record.sha256

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
        if form.candidate in self._refused:
            return Written(self._folder, "", 0, None, None, self._refused[form.candidate])
        self._number += 1
        path = self._folder / f"form{self._number:03d}{TARGETS[self._target].extension}"
        request = replace(self._request, layout=form.layout)
        options = request.emit_options(self._precision)
        image = replace(self._given, request=request).input(self._target, self._precision)
        info = replace(self._subject.info, precision=self._precision, input=image)
        if self.codes is not None:
            info = self.codes.describe(info, request, self._target)
        try:
            with nullcontext() if self._subject.path is None else reading(self._subject.path):
                self._emit(self._graphs[form.candidate], info, options, path)
            return self._compare(path, form)
        except ShufflectlError as error:
            return Written(path, "", 0, None, None, error.message)

    def _compare(self, path: Path, form: Form) -> Written:
        artifact = Artifact(path, path.name, self._target, self._precision, form.candidate)
        name, reference, inputs = self._subject.info.name, self._subject.reference, self._subject.inputs
        codes = self.codes
        if codes is not None:
            reference = replace(reference, quantized=lambda _: codes.quantized)
            if codes.images is not None:
                shown = {CALIBRATION: codes.images[:_SHOWN]}
                inputs = replace(inputs, by_kind={**inputs.by_kind, **shown})
        found = verify(name, [artifact], reference, inputs, self._request.parity, _quietly)
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
