"""The main job: a trained model, an ONNX file or a user's own network becomes files that are proved equal.

A manifest says what they are.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from shufflectl.converters.capture import capture
from shufflectl.converters.capture.codes import holds_codes
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.converters.rewrite.choose import NATIVE, Candidate, Choice, lower, settle
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.converters.worker import EmitterProcess
from shufflectl.deploy import runtimes
from shufflectl.deploy.artifacts import Artifact
from shufflectl.deploy.codes import calibrated
from shufflectl.deploy.factory_model import open_factory
from shufflectl.deploy.images import Inputs, gather
from shufflectl.deploy.manifest import MANIFEST, ArtifactRecord, Manifest, merge_into
from shufflectl.deploy.onnx_model import UNPREPARED, is_file, open_model, reading
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.pixels import give_pixels, prepared
from shufflectl.deploy.publish import Staging
from shufflectl.deploy.quantization import Quantized
from shufflectl.deploy.tuning import Source, Tuning
from shufflectl.deploy.verify import CALIBRATION, Notify, Reference, Result, Verification, verify
from shufflectl.errors import GraphError, UsageError
from shufflectl.models import LoadedModel, dense, load
from shufflectl.models.factory import Factory
from shufflectl.models.zoo import LOGITS

__all__ = [
    "REFERENCE",
    "Subject",
    "captured",
    "describe",
    "export",
    "fix_layout",
    "open_subject",
    "reference",
    "source_of",
]

REFERENCE = "torch"
"""What the torch module is called in reports."""

_Emit = Callable[[Graph, ModelInfo, EmitOptions, Path], None]


def export(request: ExportRequest, notify: Notify = lambda _what, _done, _total: None) -> Verification:
    """Export a model, an ONNX file or a user's own network, compare all files, publish those that pass.

    Files appear in the output folder atomically, the manifest last. Where any comparison fails nothing is
    published, unless the request says so.

    Args:
        request: What to export.
        notify: Told about progress.

    Returns:
        The comparison of the files, whether or not they pass.

    Raises:
        UsageError: An unknown model, a weights specification that does not exist, or an option that does not
            fit a file.
        CheckpointError: The checkpoint cannot be loaded or does not fit.
        FactoryError: A user's own function fails, or gives no network that can be exported.
        GraphError: The model cannot be captured.
        UnsupportedOperatorError: A target cannot express an operator.
        OutputError: The output folder cannot be written.
        ArtifactError: The manifest that is in the output folder cannot be read; or the ONNX file.
        UnavailableError: No runtime here executes a format.
        MissingDependencyError: A target's package is not installed.
    """
    for target in request.targets:  # before any work, so that what is missing is known at once
        runtimes.choose(target, request.parity.runtimes, python=request.parity.runtime_python)
    if (request.out / MANIFEST).exists():
        Manifest.load(request.out)  # one that cannot be added to is refused now, not after the work
    with Staging(request.out) as staging:
        artifacts: list[Artifact] = []
        with ExitStack() as stack:
            emitters = _emitters(request, stack)
            if request.factory is not None:  # what a user's code prints is no result
                stack.enter_context(redirect_stdout(sys.stderr))
            subject = open_subject(request, notify)
            request = fix_layout(request, subject)
            for tuning in request.tunings:  # before the work of a calibration
                tuning.check(_measured(request, subject, tuning, tuning.source.calibration))
            with nullcontext() if subject.path is None else reading(subject.path):
                given = give_pixels(request, subject.graph, subject.info.preprocess)
            subject = replace(subject, notes=(*subject.notes, *given.notes))
            info = subject.info
            forms = _Forms(given.graph)
            codes, coded = None, forms
            if "int8" in request.precisions:
                codes = calibrated(request, given, info, notify)
                staging.path(codes.record.calibration).write_bytes(codes.data)
                coded = _Forms(given.graph, codes.quantized)
                for tuning in request.tunings:
                    tuning.check(_measured(request, subject, tuning, codes.record.sha256))
            for precision in request.precisions:
                for target in request.targets:
                    file = f"{info.stem}-{precision}{TARGETS[target].extension}"
                    notify(f"writing {file}", len(artifacts), len(request.precisions) * len(request.targets))
                    path = staging.path(file)
                    # A rewrite takes for granted that weights fit shapes, and onnx does not check all.
                    about = replace(info, precision=precision, input=given.input(target, precision))
                    with nullcontext() if subject.path is None else reading(subject.path):
                        choice = request.choice(target, precision)
                        if precision == "int8" and codes is not None:
                            form, lowered = coded.get(choice)
                            about = codes.describe(about, request, target)
                        else:
                            form, lowered = forms.get(choice)
                        emitters[target](lowered, about, request.emit_options(precision, target), path)
                    artifacts.append(Artifact(path, file, target, precision, form))
        reference, inputs = subject.reference, subject.inputs
        if codes is not None:
            if codes.images is not None:
                inputs = replace(inputs, by_kind={**inputs.by_kind, CALIBRATION: codes.images})
            reference = replace(reference, quantized=lambda _: codes.quantized)
        verification = verify(info.name, artifacts, reference, inputs, request.parity, notify)
        verification = replace(verification, notes=(*subject.notes, *_on_tunings(request, verification)))
        if verification.passed or request.keep_failing:
            notify("publishing", 0, 0)
            calibration = None if codes is None else codes.quantized.calibration
            _publish(request, staging, subject, verification, calibration)
    return verification


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        graph: The captured graph.
        info: What every file says about itself.
        num_classes: Width of the logits.
        reference: What the files are held against.
        inputs: What they run on.
        notes: What the user should know, a sentence each.
        path: The file that it comes from, where it is one.
        interface: Further options of the manifest: the names of inputs and outputs where there are several.
    """

    graph: Graph
    info: ModelInfo
    num_classes: int
    reference: Reference
    inputs: Inputs
    notes: tuple[str, ...]
    path: Path | None = None
    interface: Mapping[str, Any] = field(default_factory=dict)


def open_subject(request: ExportRequest, notify: Notify) -> Subject:
    """Return what an export is of: a model of the registry, an ONNX file, or a user's own network.

    Raises:
        ShufflectlError: As `export`.
    """
    if request.factory is not None:
        return _built(request, request.factory, notify)
    if request.model is not None and is_file(request.model):
        return _file(request, notify)
    return _model(request, notify)


def source_of(request: ExportRequest, subject: Subject, calibration: str = "") -> Source:
    """Return what forms of a subject are forms of, as a tuning holds it.

    Args:
        request: What is exported.
        subject: What it is an export of.
        calibration: Digest of the calibration of int8 files; empty for others.
    """
    info = subject.info
    return Source(
        info.name,
        info.weights_sha256,
        tuple((str(value.name), Graph.shape(value)) for value in subject.graph.inputs),
        request.fold_preprocess,
        request.input_type,
        request.output_stride,
        tuple(str(value.name) for value in subject.graph.outputs) if request.features else (),
        request.io,
        calibration,
    )


def _measured(request: ExportRequest, subject: Subject, tuning: Tuning, calibration: str) -> Source:
    """Return what a tuning of one of the files must have measured."""
    source = source_of(request, subject)
    if tuning.precision != "int8":
        return replace(source, io="float")
    return replace(source, io=request.io if tuning.target == "tflite" else "float", calibration=calibration)


def _built(request: ExportRequest, factory: Factory, notify: Notify) -> Subject:
    """Return a network that a user's own function builds. That code runs."""
    if request.output_stride is not None or request.features:
        raise UsageError(
            "--output-stride and --features are for models of the registry",
            hint="let the function build what is wanted; see shufflectl.models.dense",
        )
    found = open_factory(
        factory, weights=request.weights, size=request.input_size, batch=request.batch, notify=notify
    )
    found = replace(found, info=prepared(request, found.info))
    notify("capturing the graph", 0, 0)
    return Subject(
        found.graph,
        found.info,
        found.width,
        found.reference(REFERENCE),
        found.inputs(request.parity),
        _still_true(request, found.notes),
        interface=found.interface,
    )


def _model(request: ExportRequest, notify: Notify) -> Subject:
    """Return a model of the registry with its weights."""
    notify("loading weights", 0, 0)
    model = load(request.model, weights=request.weights, num_classes=request.num_classes, notify=notify)
    model = dense(model, request.output_stride, request.features)
    size = request.input_size or model.input_size
    info = prepared(request, describe(model))
    notify("capturing the graph", 0, 0)
    graph = captured(model, size, request.batch)
    return Subject(
        graph,
        info,
        model.num_classes,
        reference(model, lambda: graph),
        gather(str(graph.inputs[0].name), size, info.preprocess, model.labels, request.parity),
        _notes(model, size),
        interface={"outputs": list(model.outputs)} if len(model.outputs) > 1 else {},
    )


def reference(model: LoadedModel, graph: Callable[[], Graph | None]) -> Reference:
    """Return a model of the registry as what is right; ``graph`` gives its captured graph."""
    outputs = None if model.outputs == (LOGITS,) else model.outputs
    return Reference(REFERENCE, model.module, graph, outputs=outputs)


def _file(request: ExportRequest, notify: Notify) -> Subject:
    """Return an ONNX file, held against itself as ONNX Runtime runs it.

    Raises:
        UsageError: An option is given that is for models of the registry.
    """
    for given, option in (
        (request.weights, "--weights"),
        (request.num_classes, "--num-classes"),
        (request.output_stride, "--output-stride"),
        (request.features or None, "--features"),
    ):
        if given is not None:
            raise UsageError(
                f"{option} is for models of the registry, and a file has its own", hint="leave it out"
            )
    path = Path(request.model or "")
    notify(f"reading {path.name}", 0, 0)
    found = open_model(path, size=request.input_size, batch=request.batch)
    if holds_codes(found.graph.model):
        raise GraphError(
            f"{path} holds codes of eight bits (QuantizeLinear, DequantizeLinear) already",
            hint="export the float model or file that it was made of, with --precision int8 for codes",
        )
    found = replace(found, info=prepared(request, found.info))
    return Subject(
        found.graph,
        found.info,
        found.width,
        found.reference(),
        found.inputs(request.parity),
        _still_true(request, found.notes),
        path,
        found.interface,
    )


def _still_true(request: ExportRequest, notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the notes without the one that nobody says how images are prepared, where the user does."""
    return tuple(note for note in notes if not (request.preprocess.given and note.endswith(UNPREPARED)))


def fix_layout(request: ExportRequest, subject: Subject) -> ExportRequest:
    """Return the request for a file whose images are channels last already: they stay as they are.

    Emitters take a graph's images for NCHW, and ``nchw`` is how they are told to leave them alone.

    Raises:
        UsageError: A layout is asked for.
    """
    if subject.path is None or not any(_channels_last(Graph.shape(v)) for v in subject.graph.inputs):
        return request
    if request.layout is not None:
        raise UsageError(
            f"{subject.path} takes images as [N, H, W, 3], which every format keeps",
            hint="leave out --layout",
        )
    return replace(request, layout="nchw")


def _channels_last(shape: tuple[int | str, ...]) -> bool:
    return len(shape) == 4 and shape[3] == 3 and shape[1] != 3


class _Forms:
    """The forms of one graph, each made once.

    Args:
        graph: The graph.
        quantized: The same in codes, where its forms are to have scales.
    """

    def __init__(self, graph: Graph, quantized: Quantized | None = None) -> None:
        self._graph = graph
        self._quantized = quantized
        self._settled: dict[Choice, Candidate] = {}
        self._made: dict[Candidate, tuple[Candidate, Graph]] = {}

    def get(self, choice: Choice) -> tuple[Candidate, Graph]:
        """Return the graph in a form, and the form: `NATIVE` where nothing was changed."""
        if choice not in self._settled:
            self._settled[choice] = settle(self._graph, choice).candidate
        wanted = self._settled[choice]
        if wanted not in self._made:
            if self._quantized is not None:
                graph, changed = self._quantized.form(wanted)
            else:
                graph, report = lower(self._graph, wanted)
                changed = report.changed
            self._made[wanted] = (wanted, graph) if changed else (NATIVE, graph)
        return self._made[wanted]


def captured(model: LoadedModel, size: int, batch: int | str) -> Graph:
    """Return the graph of a loaded model.

    Args:
        model: The model.
        size: Height and width of its input, in pixels.
        batch: A fixed batch size, or ``dynamic``.

    Raises:
        GraphError: The model cannot be captured, for example because the input is too small for it.
    """
    import torch

    dynamic = batch == "dynamic"
    # A dynamic batch is traced with two images: torch.export takes a dimension of size one for a constant.
    example = torch.zeros(2 if dynamic else int(batch), 3, size, size)
    return capture(
        model.module,
        (example,),
        name=model.variant.name,
        output_names=model.outputs,
        dynamic_batch=dynamic,
    )


def describe(model: LoadedModel) -> ModelInfo:
    """Return what an exported file says about itself."""
    return ModelInfo(
        name=model.variant.name,
        weights=model.weights,
        weights_sha256=model.weights_sha256,
        preprocess=model.preprocess,
        preprocess_from="weights",
        labels=model.labels,
        description=model.description,
        author=model.author,
        version=model.version,
        license=model.license,
        output_stride=model.output_stride,
        features=() if model.outputs == (LOGITS,) else model.outputs,
    )


def _notes(model: LoadedModel, size: int) -> tuple[str, ...]:
    """Return what the user should know of an export that is legal but may not be meant."""
    made_for = model.input_size
    if made_for in (size, model.variant.input_size):
        return model.notes
    asked = f"the weights were made for images of {made_for}x{made_for}, these files take {size}x{size}"
    return (*model.notes, asked)


def _emitters(request: ExportRequest, stack: ExitStack) -> dict[str, _Emit]:
    """Return how each target is written: a slow converter in a process that is started now."""
    return {
        name: stack.enter_context(EmitterProcess(name, verbose=request.verbose)).emit
        if TARGETS[name].preload
        else TARGETS[name].emit
        for name in request.targets
    }


def _publish(
    request: ExportRequest,
    staging: Staging,
    subject: Subject,
    verification: Verification,
    calibration: Calibration | None,
) -> None:
    first = subject.graph.inputs[0]
    manifest = Manifest.build(
        subject.info,
        num_classes=subject.num_classes,
        input_name=first.name or "",
        input_shape=[d if isinstance(d, int) else None for d in Graph.shape(first)],
        artifacts=[_record(request, result, calibration) for result in verification.results],
        report=verification.report,
        options={**request.parity.to_json(), **subject.interface},
    )
    staging.publish(partial(merge_into, manifest=manifest))


def _on_tunings(request: ExportRequest, verification: Verification) -> tuple[str, ...]:
    """Return what the user should know of tunings: what they chose, and whether that is what was measured."""
    said = []
    for result in verification.results:
        tuning = request.tuning(result.artifact.target, result.artifact.precision)
        if tuning is None:
            continue
        said.append(f"{tuning.name}, measured on {tuning.device}: {tuning.choice.why}")
        if result.sha256 != tuning.choice.sha256:
            said.append(
                f"{result.artifact.file} is not byte for byte the file that was measured: another version "
                "or other options wrote it"
            )
    return tuple(said)


def _form(artifact: Artifact) -> dict[str, Any]:
    """Return the form of channel shuffles as options of the manifest."""
    form = artifact.form
    return {} if form is None else {"shuffle": form.form, **form.options.to_json()}


def _integers(result: Result, calibration: Calibration | None) -> dict[str, Any]:
    """Return what an int8 file's scales come from as options of the manifest."""
    metadata = result.summary.metadata
    if metadata is None or metadata.quantization is None or calibration is None:
        return {}
    record = metadata.quantization
    return {
        "calibration": record.calibration,
        "calibration_sha256": record.sha256,
        **{f"calibration_{key}": value for key, value in calibration.summary.items()},
        "float_layers": list(record.floats),
    }


def _record(request: ExportRequest, result: Result, calibration: Calibration | None) -> ArtifactRecord:
    rank = result.summary.largest_rank
    tuning = request.tuning(result.artifact.target, result.artifact.precision)
    tuned = {} if tuning is None else {"layout": tuning.choice.layout, **tuning.to_manifest(result.sha256)}
    return ArtifactRecord.measure(
        result.artifact.path,
        target=result.artifact.target,
        precision=result.artifact.precision,
        operators=len(result.summary.operators),
        largest_rank=0 if rank is None else rank.rank,
        file=result.artifact.file,
        options=request.options_of(result.artifact.target, result.artifact.precision)
        | _form(result.artifact)
        | _integers(result, calibration)
        | tuned,
        runtime=result.runtime,
        input=None if result.summary.metadata is None else result.summary.metadata.input,
    )
