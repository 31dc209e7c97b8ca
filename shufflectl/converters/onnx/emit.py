"""The ONNX target: the captured graph itself, in the precision and layout that was asked for.

Tensors keep the graph's names. What the emitter adds at the border (a cast, a transpose) takes the inner
name, so an input or output keeps its own: ``image`` is the file's input, ``image.fp16`` and ``image.nchw``
what the nodes inside read.
"""

import json
from pathlib import Path

import onnx
import onnx_ir as ir

import shufflectl
from shufflectl.converters.compose import Located, compose
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.onnx.half import to_half
from shufflectl.converters.onnx.slim import drop_implied, drop_shapes, share_constants
from shufflectl.converters.quantize.qdq import with_dequantized_weights, with_qdq
from shufflectl.converters.targets import EmitOptions
from shufflectl.converters.trace import NCHW, NHWC, Trace
from shufflectl.errors import GraphError, OutputError

__all__ = ["emit"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_TRACED = (*_FLOATS, ir.DataType.UINT8)


def _dump(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _border_input(graph: ir.Graph, value: ir.Value, suffix: str) -> ir.Value:
    """Return a new tensor that all consumers of a graph input now read instead of it."""
    inner = ir.Value(name=_free(graph, f"{value.name}.{suffix}"), shape=value.shape, type=value.type)
    for use in tuple(value.uses()):
        use.node.replace_input_with(use.idx, inner)
    return inner


def _free(graph: ir.Graph, name: str) -> str:
    taken = {v.name for node in graph for v in node.outputs} | set(graph.initializers)
    taken |= {v.name for v in (*graph.inputs, *graph.outputs)}
    while name in taken:
        name += "_"
    return name


def _prepend(graph: ir.Graph, node: ir.Node) -> None:
    node.name = str(node.outputs[0].name)
    graph.insert_before(graph[0], node)


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    """``image`` fp16 becomes ``image`` fp32 -> Cast -> ``image.fp16``."""
    inner = _border_input(graph, value, "fp16")
    value.type = ir.TensorType(ir.DataType.FLOAT)
    to = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    _prepend(graph, ir.Node("", "Cast", [value], [to], outputs=[inner]))


def _transpose_input(graph: ir.Graph, value: ir.Value) -> None:
    """``image`` [N, C, H, W] becomes ``image`` [N, H, W, C] -> Transpose -> ``image.nchw`` [N, C, H, W]."""
    inner = _border_input(graph, value, "nchw")
    assert value.shape is not None  # noqa: S101 - the caller looked at its rank
    value.shape = ir.Shape([value.shape[axis] for axis in NHWC])
    _prepend(graph, ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", NCHW)], outputs=[inner]))


def _border_output(graph: ir.Graph, index: int, suffix: str) -> tuple[ir.Value, ir.Value]:
    """Return an output's tensor under an inner name, and the new tensor that is the output now."""
    value = graph.outputs[index]
    outer = ir.Value(name=value.name, shape=value.shape, type=value.type)
    value.name = _free(graph, f"{value.name}.{suffix}")
    producer = value.producer()
    if producer is not None and producer.name == outer.name:
        producer.name = value.name  # the name goes to the node that makes the output now
    graph.outputs[index] = outer
    return value, outer


def _cast_output(graph: ir.Graph, index: int) -> None:
    inner, outer = _border_output(graph, index, "fp16")
    outer.type = ir.TensorType(ir.DataType.FLOAT)
    to = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    graph.append(ir.Node("", "Cast", [inner], [to], outputs=[outer], name=outer.name))


def _transpose_output(graph: ir.Graph, index: int) -> None:
    inner, outer = _border_output(graph, index, "nchw")
    assert inner.shape is not None  # noqa: S101 - the caller looked at its rank
    outer.shape = ir.Shape([inner.shape[axis] for axis in NHWC])
    graph.append(
        ir.Node("", "Transpose", [inner], [ir.AttrInt64s("perm", NHWC)], outputs=[outer], name=outer.name)
    )


def _is_image(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4 and value.dtype in _TRACED


def _trace(graph: Graph, transposed: set[str]) -> Trace:
    """Return the views of every tensor of floats or pixels, inputs first, then in graph order.

    In a graph with scales what has no codes is no tensor of its own: a runtime computes it inside a kernel.
    """
    tensors = [*graph.inputs, *(value for node in graph.nodes for value in node.outputs)]
    if graph.quantization is not None:
        ends = (*graph.inputs, *graph.outputs)
        tensors = [v for v in tensors if v in ends or str(v.name) in graph.quantization.scales]
    return compose(
        graph,
        [
            Located(value, str(value.name), NHWC if value.name in transposed else None)
            for value in tensors
            if value.dtype in _TRACED
        ],
    )


def _properties(info: ModelInfo, trace: Trace) -> dict[str, str]:
    """Return the file's metadata: the two keys that shufflectl reads, and the same in plain words."""
    readable = {
        "model": info.name,
        "description": info.description,
        "author": info.author,
        "version": info.version,
        "license": info.license,
        "weights": info.weights,
        "labels": _dump(list(info.labels)) if info.labels else "",
        "preprocess": _dump(info.expects.to_json()),
        "input": info.input.text if info.input else "",
    }
    ours = {METADATA_KEY: _dump(info.to_json()), TRACE_KEY: trace.to_json()}
    return {key: text for key, text in (readable | ours).items() if text}


def _in_integers(graph: Graph, options: EmitOptions) -> Graph:
    """Return a copy of the graph, with codes where the precision has them."""
    if options.precision == "int8":
        return with_qdq(graph)
    if options.precision == "int8-weights":
        return with_dequantized_weights(graph)
    return graph.clone()


def build(graph: Graph, info: ModelInfo, options: EmitOptions) -> onnx.ModelProto:
    """Return the file's content.

    Raises:
        GraphError: A weight does not fit the precision.
    """
    out = _in_integers(graph, options)
    model = out.model
    core = model.graph
    # The trace is of the captured tensors alone, so it is drawn up before the border is added.
    nhwc = options.layout == "nhwc"
    images = {str(v.name) for v in (*graph.inputs, *graph.outputs) if _is_image(v)} if nhwc else set()
    trace = _trace(graph, images)
    floats = {str(v.name) for v in (*out.inputs, *out.outputs) if v.dtype == ir.DataType.FLOAT}
    if options.precision == "fp16":
        to_half(model)
    cast = floats if options.precision == "fp16" and not options.half_io else set()
    for value in out.inputs:
        name = str(value.name)
        if name in images:
            _transpose_input(core, value)
        if name in cast:
            # Before the transpose, which then moves half the bytes.
            _cast_input(core, value)
    for index, value in enumerate(out.outputs):
        name = str(value.name)
        if name in images:
            _transpose_output(core, index)
        if name in cast:
            _cast_output(core, index)
    model.producer_name = "shufflectl"
    model.producer_version = shufflectl.__version__
    core.name = info.name
    core.doc_string = info.description
    model.metadata_props.update(_properties(info, trace))
    share_constants(core)
    proto = ir.to_proto(model)
    drop_shapes(proto.graph, inner=options.precision == "int8")
    if options.precision == "int8":
        drop_implied(proto.graph)
    return proto


def emit(graph: Graph, info: ModelInfo, options: EmitOptions, path: Path) -> None:
    """Write the graph as one ONNX file.

    Args:
        graph: What to write; it is not changed.
        info: What the file says about itself.
        options: Precision, layout of rank-4 inputs and outputs (default NCHW), and whether an fp16 file
        takes and
            gives fp16.
        path: Where; it does not exist yet.

    Raises:
        GraphError: A weight does not fit fp16, or the graph is not valid ONNX.
        OutputError: The file cannot be written.
    """
    proto = build(graph, info, options)
    data = bytes(proto.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise GraphError(
            f"the graph of {info.name} is not valid ONNX: {str(error).strip().splitlines()[0]}",
            hint="please report it with the model",
        ) from error
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"cannot write {path.name}: {error.strerror or error}",
            hint="check the output folder's permissions and free space",
        ) from error
