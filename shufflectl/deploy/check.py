"""Check exported files again: on any machine, from a manifest or from the files alone."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from shufflectl.converters.graph import Graph
from shufflectl.converters.targets import TARGETS
from shufflectl.converters.trace import NHWC, TensorView, captured_of
from shufflectl.deploy import runtimes
from shufflectl.deploy.artifacts import Artifact, Group, find_groups
from shufflectl.deploy.export import REFERENCE, captured
from shufflectl.deploy.export import reference as reference_of
from shufflectl.deploy.factory_model import FactoryModel, call_of, open_factory
from shufflectl.deploy.files import own_metadata
from shufflectl.deploy.images import gather_shapes
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.onnx_model import OnnxModel, is_file, open_model
from shufflectl.deploy.options import ParityOptions, parse_factory
from shufflectl.deploy.quantization import quantized_file
from shufflectl.deploy.verify import TIP, Notify, Reference, Verification, verify
from shufflectl.errors import ArtifactError, CheckpointError, ParityError, UsageError
from shufflectl.models import LoadedModel, dense, load, zoo
from shufflectl.models.custom import BUILT
from shufflectl.models.download import cached
from shufflectl.models.factory import Factory
from shufflectl.models.preprocess import IMAGENET, Preprocess
from shufflectl.models.zoo import variants

__all__ = [
    "CheckResult",
    "built_of",
    "check",
    "image_input",
    "original_of",
    "reference_model",
]


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        verifications: One for each model among the files.
    """

    verifications: tuple[Verification, ...]

    @property
    def passed(self) -> bool:
        """Whether all files agree and none differs from its manifest."""
        return not self.changed and all(v.passed for v in self.verifications)

    @property
    def changed(self) -> tuple[str, ...]:
        """Files that differ from what their manifest says."""
        return tuple(r.artifact.file for v in self.verifications for r in v.results if r.changed)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "schema": "shufflectl.check/1",
            "passed": self.passed,
            "changed": list(self.changed),
            "verifications": [v.to_json() for v in self.verifications],
        }

    def raise_for_failure(self) -> None:
        """Raise what the exit code is made of.

        Raises:
            ParityError: A file disagrees.
            ArtifactError: All agree, but a file is not the one of its manifest.
        """
        failures = [v.failure for v in self.verifications if not v.passed]
        if failures:
            raise ParityError("; ".join(failures), hint=TIP)
        if self.changed:
            raise ArtifactError(
                f"{', '.join(self.changed)} changed after the export: SHA-256 is not that of the manifest",
                hint="export again, or check the file by its own name if the change was meant",
            )


def check(
    paths: Sequence[Path],
    *,
    model: str | None = None,
    weights: str | None = None,
    arguments: Sequence[str] = (),
    parity: ParityOptions | None = None,
    notify: Notify = lambda _what, _done, _total: None,
) -> CheckResult:
    """Compare exported files with torch, where their weights can be had, and with one another.

    Args:
        paths: Export folders, or single artifacts; single ones belong to one model.
        model: The model to compare with: a name of the registry, the ONNX file that the files were made
            from, or the user's function that built it (``package.module:factory``), whose code then runs;
            None for what the files say, which is never a function.
        weights: The weights to compare with; None for what the files say.
        arguments: Of that function, as ``key=value``.
        parity: What to run on.
        notify: Told about progress.

    Raises:
        ArtifactError: A file is missing, damaged, of another kind, or of another model than its neighbours.
        CheckpointError: The given weights are not those of the files.
        UsageError: No file is given, one file alone with nothing to compare it with, or weights for a file.
        FactoryError: The user's function fails.
        UnavailableError: No runtime here executes a format.
    """
    options = parity or ParityOptions()
    factory = parse_factory(model, arguments, ())
    groups = find_groups(paths, notify)
    if factory is not None:
        with redirect_stdout(sys.stderr):  # what a user's code prints is no result
            return CheckResult(
                tuple(_check_built(group, factory, weights, options, notify) for group in groups)
            )
    return CheckResult(tuple(_check(group, model, weights, options, notify) for group in groups))


def _check(
    group: Group, name: str | None, weights: str | None, options: ParityOptions, notify: Notify
) -> Verification:
    if name is not None and is_file(name):
        return _check_original(group, Path(name), weights, options, notify)
    notify("loading weights", 0, 0)
    loaded = reference_model(group, name, weights, notify)
    ports = _ports(group.artifacts[0], options)
    if loaded is not None:
        size, batch = image_input(group.artifacts[0], options)
        model = loaded

        @cache
        def graph() -> Graph | None:
            notify("capturing the graph", 0, 0)
            return captured(model, size, batch)

        reference = reference_of(model, graph)
        title, labels = loaded.variant.name, loaded.labels
        preprocess = _trained_with(group, loaded.preprocess)
    else:
        first = _file_as_reference(group)
        reference = Reference(
            first.file,
            None,
            cache(lambda: _graph_of(first)),
            inputs=tuple(ports.shapes) if len(ports.shapes) > 1 else None,
            outputs=ports.outputs if len(ports.outputs) > 1 else None,
        )
        info = group.info
        title = info.name if info else first.path.stem
        preprocess, labels = (info.preprocess, info.labels) if info else (IMAGENET, ())
    inputs = gather_shapes(ports.shapes, preprocess, labels, options)
    verification = verify(title, group.artifacts, _in_codes(reference), inputs, options, notify)
    return _judged(group, replace(verification, notes=_not_run(group)))


def _in_codes(reference: Reference) -> Reference:
    """Return a reference that knows what int8 files were made of, where their calibration is beside them."""
    return replace(
        reference,
        quantized=lambda a: quantized_file(a.path, summarize(a.path).metadata, reference.graph),
    )


def _not_run(group: Group) -> tuple[str, ...]:
    """Return what to say of files that a user's own function made: it runs only where it is named."""
    record = None if group.info is None else group.info.factory
    if record is None:
        return ()
    said = f"the files say that {record.name} built the model, and none of its code was run"
    return (f"{said}; to compare with it, where you trust it, add {call_of(record)}",)


def _check_built(
    group: Group, factory: Factory, weights: str | None, options: ParityOptions, notify: Notify
) -> Verification:
    """Compare files with the network that a user's own function builds. That code runs."""
    found = built_of(group, factory, weights, options, notify)
    info = group.info
    inputs = found.inputs(options)
    if info is not None:
        inputs = gather_shapes(found.shapes, found.info.preprocess, info.labels, options)
    title = info.name if info else found.info.name
    verification = verify(
        title, group.artifacts, _in_codes(found.reference(REFERENCE)), inputs, options, notify
    )
    return _judged(group, verification)


def built_of(
    group: Group, factory: Factory, weights: str | None, options: ParityOptions, notify: Notify
) -> FactoryModel:
    """Return the network that a user's own function builds, for files that it made. That code runs.

    Args:
        group: The files.
        factory: The function.
        weights: As for the export; None for what the files say, where that is no checkpoint.
        options: Which runtime tells the inputs of the files.
        notify: Told about progress.

    Raises:
        UsageError: The files were made with a checkpoint, and none is given; or see `open_factory`.
        FactoryError: The code fails.
        CheckpointError: The files say that they were made from another network.
    """
    ports = _ports(group.artifacts[0], options)
    info = group.info
    record = None if info is None else info.factory
    shapes: dict[str, tuple[int, ...]] = {}
    known = ports.shapes
    if record is not None and set(record.inputs) == set(known):
        known = {name: known[name] for name in record.inputs}
        factory = replace(factory, outputs=record.outputs)
    for name, shape in known.items():
        shapes[name] = tuple(1 if size is None else size for size in shape)
    if weights is None and info is not None and info.weights:
        if info.weights != BUILT and not info.weights.startswith("random:"):
            raise UsageError(
                f"the files were made with the weights {info.weights}",
                hint="pass --weights with that checkpoint",
            )
        weights = info.weights
    dynamic = ports.batch == "dynamic"
    found = open_factory(
        replace(factory, inputs=shapes), weights=weights, batch="dynamic" if dynamic else 1, notify=notify
    )
    if info is not None and info.weights_sha256 != found.info.weights_sha256:
        raise CheckpointError(
            f"{factory.name} with {found.info.weights} is not what the files were made from: SHA-256 "
            f"{found.info.weights_sha256[:12]}, the files say {info.weights_sha256[:12]} ({info.weights})",
            hint="pass its --arg and --weights as for the export"
            + ("" if record is None else f": {call_of(record)}"),
        )
    preprocess = _trained_with(group, found.info.preprocess)
    return replace(found, info=replace(found.info, preprocess=preprocess))


def _check_original(
    group: Group, path: Path, weights: str | None, options: ParityOptions, notify: Notify
) -> Verification:
    """Compare files with the ONNX file that they were made from."""
    notify(f"reading {path.name}", 0, 0)
    ports = _ports(group.artifacts[0], options)
    found = original_of(group, path, weights, ports.height, ports.batch)
    reference = found.reference()
    if any(a.file == reference.name for a in group.artifacts):
        reference = replace(reference, name=f"{reference.name} (the original)")
    title = group.info.name if group.info else found.info.name
    verification = verify(
        title, group.artifacts, _in_codes(reference), found.inputs(options), options, notify
    )
    return _judged(group, verification)


def original_of(
    group: Group, path: Path, weights: str | None, size: int | None, batch: int | str
) -> OnnxModel:
    """Return the ONNX file that files were made from.

    Args:
        group: The files.
        path: The ONNX file.
        weights: None: a file has its own.
        size: Height and width of the files' images, where the ONNX file leaves them free.
        batch: Theirs, likewise.

    Raises:
        UsageError: Weights are given.
        ArtifactError: The file is missing, damaged, or no ONNX file.
        GraphError: It cannot be made a graph for the targets.
        CheckpointError: The files say that they were made from another one.
    """
    if weights is not None:
        raise UsageError(
            "--weights is for models of the registry, and a file has its own", hint="leave it out"
        )
    found = open_model(path, size=size, batch=batch, if_free=True)
    info = group.info
    if info is not None and info.weights_sha256 != found.info.weights_sha256:
        raise CheckpointError(
            f"{path} is not what the files were made from: SHA-256 {found.info.weights_sha256[:12]}, "
            f"the files say {info.weights_sha256[:12]} ({info.weights})",
            hint="pass the file that they were exported from, or leave out --model",
        )
    preprocess = _trained_with(group, found.info.preprocess)
    return replace(found, info=replace(found.info, preprocess=preprocess))


def _trained_with(group: Group, own: Preprocess) -> Preprocess:
    """Return what the reference's images go through: what was asked for at the export, else its own."""
    info = group.info
    return info.preprocess if info is not None and info.preprocess_from == "option" else own


def _judged(group: Group, verification: Verification) -> Verification:
    """Say which files differ from what their manifest says."""
    results = tuple(
        replace(result, changed=group.sha256.get(result.artifact.file, result.sha256) != result.sha256)
        for result in verification.results
    )
    return replace(verification, results=results)


def reference_model(
    group: Group, name: str | None, weights: str | None, notify: Notify
) -> LoadedModel | None:
    """Return the torch model that the files say they are, or that the user names; None when out of reach.

    Args:
        group: The files.
        name: The model to compare with; None for what the files say.
        weights: The weights to compare with; None for what the files say.
        notify: Told about progress.

    Raises:
        CheckpointError: The given weights are not those of the files.
        UsageError: There is no such model.
    """
    info = group.info
    wanted = name or (info.name if info else None)
    if wanted is None and weights is None:
        return None
    if name is None and info is not None and info.factory is not None:
        if weights is None:
            return None
        raise UsageError(
            f"{group.artifacts[0].file} says that {info.factory.name} built the model, whose code runs only "
            "where it is named",
            hint=f"where you trust it, add {call_of(info.factory)}",
        )
    if weights is None and wanted not in zoo.names() and name is None:
        return None  # made from a file, whose name is all that is known
    spec = weights or (info.weights if info else None)
    if spec is None or (weights is None and not _reproducible(spec, wanted)):
        return None
    # A classifier of another width than the default is in the files, not in `random:SEED`.
    classes = _classes(group.artifacts[0]) if spec.startswith("random") else None
    loaded = load(wanted, weights=spec, num_classes=classes, notify=notify)
    if info is not None and name in (None, info.name) and info.weights_sha256 != loaded.weights_sha256:
        raise CheckpointError(
            f"{loaded.weights} is not what the files were made from: SHA-256 {loaded.weights_sha256[:12]},"
            f" the files say {info.weights_sha256[:12]} ({info.weights})",
            hint="pass --weights with the checkpoint that they were exported from",
        )
    return loaded if info is None else dense(loaded, info.output_stride, info.features)


def _reproducible(weights: str, model: str | None) -> bool:
    """Whether weights can be had from their name alone, without a download that nobody asked for."""
    published = [
        item
        for row in variants()
        if row.name == model
        for item in row.pretrained
        if item.word == weights and weights not in row.weights
    ]
    if published:
        return cached(published[0]) is not None
    return weights.startswith("random:") or Path(weights).suffix == ""


def _classes(artifact: Artifact) -> int | None:
    shape = summarize(artifact.path).outputs[0].shape
    return shape[-1] if shape else None


def _file_as_reference(group: Group) -> Artifact:
    """Return the file that the others are held against: fp32 before fp16, ONNX before the others."""
    artifacts = group.artifacts
    if len(artifacts) < 2:
        record = None if group.info is None else group.info.factory
        raise UsageError(
            f"{artifacts[0].file} alone has nothing to be compared with",
            hint=f"it says that {record.name} built the model; where you trust that, pass {call_of(record)}"
            if record is not None
            else "pass --weights with its checkpoint (and --model), --model with the ONNX file that it was "
            "made from, or more files of the same model",
        )
    order = list(TARGETS)
    return min(artifacts, key=lambda a: (a.precision != "fp32", order.index(a.target)))


def _graph_of(artifact: Artifact) -> Graph | None:
    """Return the graph of an ONNX file, for the comparison layer by layer; None for other formats.

    Other files speak of the captured graph's tensors, so what this file's trace does not call one of those,
    in the captured order and layout, gets a name that they do not know. None where an input is in another
    layout: the comparison hands out images as the captured graph takes them.
    """
    if artifact.target != "onnx":
        return None
    import onnx
    import onnx_ir as ir

    proto = onnx.shape_inference.infer_shapes(onnx.load(artifact.path), data_prop=True)
    _, trace = own_metadata({p.key: p.value for p in proto.metadata_props}, artifact.path)
    graph = Graph(ir.from_proto(proto))
    if not trace:
        return graph
    captured = {name for name, view in trace.items() if view == TensorView(name)}
    if not captured.issuperset(str(value.name) for value in (*graph.inputs, *graph.outputs)):
        return None
    for value in (out for node in graph.nodes for out in node.outputs):
        if value.name and value.name not in captured:
            value.name = f"{value.name}::rewritten"
    return graph


def image_input(artifact: Artifact, options: ParityOptions) -> tuple[int, int | str]:
    """Return height (and width) and batch size of a file's image input.

    Raises:
        ArtifactError: It has no image input, or leaves its height open.
        UnavailableError: No runtime here executes the file.
    """
    runtime = runtimes.choose(artifact.target, options.runtimes, python=options.runtime_python)
    with runtime.load(artifact.path) as session:
        shape = session.inputs[0].shape
        view = next((v for v in session.trace.values() if v.name == session.inputs[0].name), None)
    if len(shape) != 4:
        raise ArtifactError(
            f"{artifact.file} takes a tensor of shape {list(shape)}, which is not a batch of images",
            hint="check works on models with one image input",
        )
    axes = view.axes if view is not None and view.axes is not None else None
    if axes is None and view is None and shape[3] == 3 and shape[1] != 3:
        axes = NHWC  # a foreign file in NHWC
    height = shape[axes.index(2) if axes else 2]
    batch = shape[axes.index(0) if axes else 0]
    if height is None:
        raise ArtifactError(
            f"{artifact.file} does not fix its input's height", hint="export it with a fixed input size"
        )
    return height, "dynamic" if batch is None else batch


@dataclass(frozen=True)
class _Interface:
    """What a file takes and gives, in the captured graph's names and axis order.

    Attributes:
        shapes: Of the inputs, by name; None for a batch that is not fixed.
        outputs: The names of the outputs.
    """

    shapes: dict[str, tuple[int | None, ...]]
    outputs: tuple[str, ...]

    @property
    def batch(self) -> int | str:
        """The batch size, or ``dynamic``."""
        batch = next(iter(self.shapes.values()))[0]
        return "dynamic" if batch is None else batch

    @property
    def height(self) -> int | None:
        """The height of the first input that may be an image."""
        return next((shape[2] for shape in self.shapes.values() if len(shape) == 4), None)


def _ports(artifact: Artifact, options: ParityOptions) -> _Interface:
    """Return what a file takes and gives.

    Raises:
        ArtifactError: It carries no trace, and does not take one batch of images; or the size is not fixed.
    """
    runtime = runtimes.choose(artifact.target, options.runtimes, python=options.runtime_python)
    with runtime.load(artifact.path) as session:
        views: dict[str, tuple[str, TensorView]] = {}
        for name, view in session.trace.items():
            views.setdefault(view.name, (name, view))
        specs, results = session.inputs, session.outputs
    shapes: dict[str, tuple[int | None, ...]] = {}
    for spec in specs:
        if spec.name not in views:  # a foreign file
            size, batch = image_input(artifact, options)
            shapes[spec.name] = (None if batch == "dynamic" else int(batch), 3, size, size)
            continue
        name, view = views[spec.name]
        axes = view.axes if view.axes is not None else tuple(range(len(spec.shape)))
        if len(axes) != len(spec.shape) or None in (spec.shape[axes.index(a)] for a in axes if a):
            raise ArtifactError(
                f"{artifact.file} does not fix the size of its input {name!r}",
                hint="export it with a fixed input size",
            )
        shapes[captured_of(name)] = tuple(spec.shape[axes.index(axis)] for axis in range(len(axes)))
    return _Interface(shapes, tuple(views[s.name][0] if s.name in views else s.name for s in results))
