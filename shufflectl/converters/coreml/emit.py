"""A captured graph as a Core ML program.

The program is built node by node with coremltools' MIL builder, so that ``ct.convert`` runs the passes that
Apple ships for every source framework: they cast to fp16, fuse, and turn the channel shuffle that
torchvision spells as concat, reshape, transpose, reshape into one ``concat(interleave=True)``.
"""

import csv
import io
import json
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import onnx_ir as ir

from shufflectl.converters.collector import paused_collector
from shufflectl.converters.compose import Located, compose
from shufflectl.converters.coreml.emission import Emission, label
from shufflectl.converters.coreml.names import Namer
from shufflectl.converters.coreml.operators.table import OPERATORS, needed_inputs
from shufflectl.converters.coreml.package import write_package
from shufflectl.converters.coreml.rounding import Rounding
from shufflectl.converters.coreml.slim import shorten, slim_weights
from shufflectl.converters.coreml.toolkit import Toolkit, load
from shufflectl.converters.coreml.weights import HeldWeights, hold
from shufflectl.converters.graph import Graph, Quantization
from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quiet import quiet
from shufflectl.converters.targets import (
    DEPLOYMENT_TARGETS,
    PALETTES,
    TARGETS,
    EmitOptions,
    Precision,
)
from shufflectl.converters.trace import NCHW, NHWC, Trace
from shufflectl.errors import GraphError, OutputError, UnsupportedOperatorError, UsageError, nearest

__all__ = ["MAX_BATCH", "emit"]

MAX_BATCH: Final = 1024
"""The largest batch of a package with a dynamic batch: Core ML programs want a finite bound."""

_MAX_RANK = 5

_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What coremltools raises where it refuses a program; it has no exception of its own."""

_LOCK = threading.Lock()
"""coremltools' builder counts names and symbols in globals: one program at a time."""


def emit(graph: Graph, info: ModelInfo, options: EmitOptions, path: Path) -> None:
    """Write ``graph`` as a ``.mlpackage``.

    An input of 8-bit integers becomes an image, which Core ML reads from a picture, in the order of colours
    that ``info`` says.

    ``options.precision`` is the precision of the arithmetic and the weights; see `weights` and `rounding` for
    what is held in fewer bits, around which arithmetic is fp16. Inputs and outputs are fp32 unless
    ``options.half_io`` asks for fp16 in a package that computes in it (iOS 16 and later). A symbolic batch
    becomes a flexible one of 1 to `MAX_BATCH`.

    Args:
        graph: The captured or rewritten graph.
        info: What the package says about itself.
        options: Precision, layout, deployment target.
        path: The package's folder, which does not exist yet.

    Raises:
        UsageError: The deployment target does not exist, or cannot have what is asked for.
        UnsupportedOperatorError: The graph holds an operator, or a use of one, that MIL cannot express.
        GraphError: coremltools refuses the program; or an image's shape is not ``[1, 3, H, W]``.
        MissingDependencyError: coremltools is not installed.
        OutputError: The package cannot be written.
    """
    target = options.minimum_deployment_target
    if target not in DEPLOYMENT_TARGETS:
        known = {name.lower(): name for name in DEPLOYMENT_TARGETS}
        hint = f"did you mean {known[target.lower()]!r}?" if target.lower() in known else ""
        raise UsageError(
            f"unknown Core ML deployment target {target!r}", hint=hint or nearest(target, DEPLOYMENT_TARGETS)
        )
    _check_precision(graph, options)
    for node in graph.nodes:
        if node.op_type != "Constant" and (
            node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS
        ):
            raise UnsupportedOperatorError(label(node), node.op_type, "coreml")
    toolkit = load()
    with _LOCK, quiet(), paused_collector(), tempfile.TemporaryDirectory() as scratch:
        try:
            spec, weights = _convert(toolkit, graph, info, options, Path(scratch))
            write_package(path, spec.SerializeToString(deterministic=True), weights)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"cannot write {path}: {reason}") from error


_OLDEST: Final[Mapping[Precision, str]] = MappingProxyType(
    {
        "int8": "iOS17",
        "int8-weights": "iOS16",
        **dict.fromkeys(PALETTES, "iOS16"),
    }
)
"""The first system whose Core ML has the operations of a precision."""

_INEXACT: Final = frozenset(
    {
        # Divides the scales of an addition's operands by one another, which fp16 rounds.
        "common::distributive_quantized_binary_op_scale_normalization",
        # Exact, but its results have names of their own; `rounding` writes what it would.
        "common::nullify_redundant_quantization_zero_point",
    }
)
"""Passes of coremltools that a program with codes does without."""


def _check_precision(graph: Graph, options: EmitOptions) -> None:
    """Refuse what a precision cannot have."""
    precision, target = options.precision, options.minimum_deployment_target
    if precision not in TARGETS["coreml"].precisions:
        raise UsageError(
            f"Core ML files have no precision {precision}",
            hint="choose one of " + ", ".join(TARGETS["coreml"].precisions),
        )
    oldest = _OLDEST.get(precision, "iOS15")
    if DEPLOYMENT_TARGETS.index(target) < DEPLOYMENT_TARGETS.index(oldest):
        raise UsageError(
            f"precision {precision} needs Core ML of iOS {oldest.removeprefix('iOS')}",
            hint=f"use --minimum-deployment-target {oldest} or later",
        )
    if options.half_io and precision != "fp32" and target == "iOS15":
        raise UsageError(
            "fp16 inputs and outputs need Core ML of iOS 16",
            hint="use --minimum-deployment-target iOS16 or later",
        )
    if precision == "int8" and graph.quantization is None:
        raise GraphError("the graph has no scales", hint="calibrate it first")


def _convert(
    toolkit: Toolkit, graph: Graph, info: ModelInfo, options: EmitOptions, scratch: Path
) -> tuple[Any, Path | None]:
    """Return the finished ``Model`` message and its weight file, if it has one."""
    ct = toolkit.ct
    target = getattr(ct.target, options.minimum_deployment_target)
    pipeline = ct.PassPipeline()
    if options.precision == "int8":
        pipeline.remove_passes(_INEXACT)
    # A program that failed half-way leaves its counters behind, and they would show in this one's names.
    toolkit.mb.name_count.clear()
    build = _Build(toolkit, graph, options)
    program = build.program(target)
    bases = {name: var.name for name, var in build.emission.values.items() if hasattr(var, "name")}
    # coremltools checks the whole program again after each of some hundred passes, which takes as long as the
    # passes themselves. It is checked once, at the end.
    program.validate = lambda **_: None
    try:
        converted = ct.convert(
            program,
            inputs=build.flexible_inputs(),
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32 if options.precision == "fp32" else ct.precision.FLOAT16,
            convert_to="mlprogram",
            pass_pipeline=pipeline,
            skip_model_load=True,
            package_dir=str(scratch / "converted.mlpackage"),
        )
        del program.validate
        program.validate(check_essential_scope=True)
    except _FAILURES as error:
        # The traceback's frames hold coremltools' scratch folder, which would stay until the process ends.
        traceback.clear_frames(error.__traceback__)
        for node in graph.nodes:
            ranks = [len(out.shape) for out in node.outputs if out.shape is not None]
            if max(ranks, default=0) > _MAX_RANK:
                raise build.emission.refuse(
                    node, f"its output has rank {max(ranks)}, and Core ML has at most {_MAX_RANK}"
                ) from error
        raise GraphError(f"coremltools refuses the program: {_sentence(error)}") from error
    spec = converted.get_spec()
    tensors = _tensors(spec)
    build.check_interface(spec)
    for value in graph.inputs:
        if _is_picture(value):
            feature = next(f for f in spec.description.input if f.name == build.features[str(value.name)])
            _make_image(feature, build.picture_area(value), info)
    located = build.located(bases, tensors)
    weights = scratch / "converted.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    if options.precision == "int8":
        legal = {place.name: build.emission.namer.tensor(str(place.value.name)) for place in located}
        short = shorten(spec, legal)
        located = [replace(place, name=short.get(place.name, place.name)) for place in located]
        if weights.is_file():
            slim_weights(spec, weights)
    _describe(spec, info, compose(graph, located))
    if build.compression:
        held = f"{options.precision}: {build.compression}"
        spec.description.metadata.userDefined["compression"] = held
    return spec, weights if weights.is_file() else None


class _Build:
    """One program under construction: its interface and the emission of its nodes."""

    def __init__(self, toolkit: Toolkit, graph: Graph, options: EmitOptions) -> None:
        self.toolkit = toolkit
        self.graph = graph
        self.half = options.half_io and options.precision != "fp32"
        self.nhwc = options.layout == "nhwc"
        namer = Namer()
        # Inputs and outputs have the first choice of names.
        self.features = {str(v.name): namer.tensor(str(v.name)) for v in (*graph.inputs, *graph.outputs)}
        quantization = graph.quantization if options.precision == "int8" else None
        self.emission = Emission(
            toolkit.mb,
            toolkit.mil.types,
            graph,
            namer,
            partial(self._held, options.precision, quantization),
            dense=options.minimum_deployment_target == "iOS18",
        )
        self.compressed: dict[str, bool] = {}
        self.rounding: Rounding | None = None
        if quantization is not None:
            self.rounding = Rounding(self.emission, quantization, self._append)
        for value in graph.outputs:
            if self._transposed(value) or self._halved(value):
                # The last operation takes the feature's name, so the tensor before it needs another.
                namer.rename(str(value.name), namer.helper(self.features[str(value.name)], "inner"))

    def _held(
        self, precision: Precision, quantization: Quantization | None, node: ir.Node
    ) -> HeldWeights | None:
        found = hold(node, precision, quantization)
        if weighted(node) is not None:
            self.compressed[label(node)] = found is not None
        return found

    @property
    def compression(self) -> str:
        """How many operators hold their weights in fewer bits, in words; empty where none does."""
        held = sum(self.compressed.values())
        return f"the weights of {held} of {len(self.compressed)} operators" if held else ""

    def _transposed(self, value: ir.Value) -> bool:
        return self.nhwc and len(self.graph.shape(value)) == len(NHWC) and not _is_picture(value)

    def _halved(self, value: ir.Value) -> bool:
        return self.half and value.dtype == ir.DataType.FLOAT

    def program(self, target: Any) -> Any:
        """Return the MIL program."""
        mil = self.toolkit.mil
        placeholders = {self.features[str(v.name)]: self._placeholder(v) for v in self.graph.inputs}
        with mil.Function(placeholders, target) as function:
            for value in self.graph.inputs:
                self._enter(value, function.inputs[self.features[str(value.name)]])
                if self.rounding is not None:
                    self.rounding.enter(value)
            emit_node = self._append if self.rounding is None else self.rounding.node
            for node in _live(self.graph):
                emit_node(node)
            function.set_outputs([self._leave(value) for value in self.graph.outputs])
        program = mil.Program()
        program.add_function("main", function)
        return program

    def _placeholder(self, value: ir.Value) -> Any:
        shape: list[Any] = list(self.graph.shape(value))
        if not all(isinstance(size, int) for size in shape[1:]):
            raise GraphError(
                f"input {value.name!r} has a dimension besides the batch that is not static",
                hint="export with a fixed image size",
            )
        if shape and not isinstance(shape[0], int):
            shape[0] = self.toolkit.mil.get_new_symbol()
        if self._transposed(value):
            shape = [shape[axis] for axis in NHWC]
        types = self.toolkit.mil.types
        kinds = {
            ir.DataType.FLOAT: types.fp16 if self.half else types.fp32,
            ir.DataType.FLOAT16: types.fp16,
            ir.DataType.INT32: types.int32,
            ir.DataType.INT64: types.int32,
            ir.DataType.UINT8: types.fp32,
        }
        if _is_picture(value):
            self.picture_area(value)
        if value.dtype not in kinds:
            raise GraphError(f"Core ML has no inputs of the type of {value.name!r} ({value.dtype})")
        return self.toolkit.mb.placeholder(shape=tuple(shape), dtype=kinds[value.dtype])

    def picture_area(self, value: ir.Value) -> tuple[int, int]:
        """Return height and width of an image.

        Raises:
            GraphError: It is not one picture of three colours.
        """
        shape = self.graph.shape(value)
        match shape:
            case (1, 3, int(height), int(width)):
                return height, width
        raise GraphError(
            f"Core ML takes one picture of three colours at a time, and {value.name!r} is {list(shape)}",
            hint="export for Core ML with --batch 1, or without --input-type uint8",
        )

    def _enter(self, value: ir.Value, variable: Any) -> None:
        """Bind an input, as fp32 NCHW."""
        mb, feature = self.toolkit.mb, self.features[str(value.name)]
        helper = self.emission.namer.helper
        if self._halved(value):
            variable = mb.cast(x=variable, dtype="fp32", name=helper(feature, "fp32"))
        if self._transposed(value):
            variable = mb.transpose(x=variable, perm=list(NCHW), name=helper(feature, "nchw"))
        self.emission.values[str(value.name)] = variable

    def _append(self, node: ir.Node) -> None:
        try:
            OPERATORS[node.op_type](self.emission, node)
        except _FAILURES as error:
            raise self.emission.refuse(node, _sentence(error)) from error

    def _leave(self, value: ir.Value) -> Any:
        """Return what the function gives for an output."""
        mb, feature = self.toolkit.mb, self.features[str(value.name)]
        variable = self.emission.values.get(str(value.name))
        if variable is None or not hasattr(variable, "op"):
            raise GraphError(
                f"output {value.name!r} does not depend on the input",
                hint="remove it from the model's outputs",
            )
        halved = self._halved(value)
        if self._transposed(value):
            name = self.emission.namer.helper(feature, "nhwc") if halved else feature
            variable = mb.transpose(x=variable, perm=list(NHWC), name=name)
        if halved:
            return mb.cast(x=variable, dtype="fp16", name=feature)
        return variable if variable.name == feature else mb.identity(x=variable, name=feature)

    def flexible_inputs(self) -> list[Any] | None:
        """Return the types of the inputs where the batch is symbolic; None where every shape is fixed."""
        ct, types = self.toolkit.ct, []
        for value in self.graph.inputs:
            shape: list[Any] = list(self.graph.shape(value))
            if shape and not isinstance(shape[0], int):
                shape[0] = ct.RangeDim(lower_bound=1, upper_bound=MAX_BATCH, default=1)
            if self._transposed(value):
                shape = [shape[axis] for axis in NHWC]
            types.append((self.features[str(value.name)], shape))
        if all(isinstance(size, int) for _, shape in types for size in shape):
            return None
        return [ct.TensorType(name=name, shape=ct.Shape(shape)) for name, shape in types]

    def check_interface(self, spec: Any) -> None:
        """Make sure that no pass renamed an input or an output."""
        for kind, values, features in (
            ("input", self.graph.inputs, spec.description.input),
            ("output", self.graph.outputs, spec.description.output),
        ):
            wanted = [self.features[str(v.name)] for v in values]
            found = [feature.name for feature in features]
            if sorted(wanted) != sorted(found):
                raise GraphError(f"coremltools changed the model's {kind}s from {wanted} to {found}")

    def located(
        self, bases: Mapping[str, str], tensors: Mapping[str, tuple[int | None, ...]]
    ) -> list[Located]:
        """Return which tensors of the graph the converted program still has.

        Args:
            bases: For each tensor of the graph the name of the MIL variable that was built for it.
            tensors: Shape of each tensor of the converted program; None where a size is not fixed.

        A pass that replaces operations keeps the name of the last one's result, so a name that is left
        stands for the same values. The cast to fp16 appends to it. A name whose shape differs stands for
        something else and is left out.
        """
        located: list[Located] = []
        for value in (*self.graph.inputs, *(out for node in self.graph.nodes for out in node.outputs)):
            name = str(value.name)
            if name in self.features:
                located.append(Located(value, self.features[name], NHWC if self._transposed(value) else None))
                continue
            base = bases.get(name)
            if base is None:
                continue
            split = self.emission.splits.get(base)
            again = self.rounding.again(name) if self.rounding is not None else None
            shape = tuple(d if isinstance(d, int) else None for d in self.graph.shape(value))
            for candidate in (base, f"{base}_cast_fp16", split, again, f"{again}_cast_fp16"):
                if candidate is not None and _fits(shape, tensors.get(candidate)):
                    located.append(Located(value, candidate))
                    break
        return located


def _live(graph: Graph) -> Iterator[ir.Node]:
    """Yield the nodes that the outputs need at run time, in order."""
    needed = {value.name for value in graph.outputs}
    live = []
    for node in reversed(graph.nodes):
        if node.op_type != "Constant" and any(out.name in needed for out in node.outputs):
            live.append(node)
            needed.update(value.name for value in needed_inputs(node))
    return reversed(live)


def _sentence(error: BaseException) -> str:
    """Return the first line of an exception's text."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _tensors(spec: Any) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of the converted program's inputs and computed tensors."""
    function = spec.mlProgram.functions["main"]
    typed = list(function.inputs)
    for operation in function.block_specializations[function.opset].operations:
        if operation.type != "const":
            typed += operation.outputs
    shapes = {}
    for item in typed:
        dims = item.type.tensorType.dimensions
        shapes[str(item.name)] = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in dims
        )
    return shapes


def _fits(shape: tuple[int | None, ...], found: tuple[int | None, ...] | None) -> bool:
    return (
        found is not None
        and len(shape) == len(found)
        and all(a is None or b is None or a == b for a, b in zip(shape, found, strict=True))
    )


def _is_picture(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.UINT8


def _make_image(feature: Any, area: tuple[int, int], info: ModelInfo) -> None:
    """Let an input be a picture; the program's tensor stays ``[1, 3, H, W]``, as coremltools has it too."""
    image = feature.type.imageType
    image.height, image.width = area
    image.colorSpace = image.ColorSpace.Value(info.expects.color.upper())
    feature.shortDescription = "a picture; Core ML hands its pixels over as they are, 0 to 255"


def _describe(spec: Any, info: ModelInfo, trace: Trace) -> None:
    """Write the model's description into Core ML's metadata, and take out the date of the conversion."""
    metadata = spec.description.metadata
    metadata.shortDescription = info.description
    metadata.author = info.author
    metadata.license = info.license
    metadata.versionString = info.version
    custom = metadata.userDefined
    custom.pop("com.github.apple.coremltools.conversion_date", None)
    custom[METADATA_KEY] = json.dumps(
        info.to_json(), separators=(",", ":"), sort_keys=True, ensure_ascii=False
    )
    custom[TRACE_KEY] = trace.to_json()
    custom["model"] = info.name
    custom["preprocessing"] = _preprocessing(info)
    if info.weights:
        custom["weights"] = info.weights
    if info.labels:
        # Apple's own models hold their class names so; a name that holds a comma is quoted.
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(info.labels)
        custom["classes"] = line.getvalue()


def _preprocessing(info: ModelInfo) -> str:
    p = info.expects
    mean, std = (", ".join(f"{v:g}" for v in part) for part in (p.mean, p.std))
    return f"{p.color.upper()}; (pixel * {p.scale:.9g} - [{mean}]) / [{std}]"
