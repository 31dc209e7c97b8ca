"""A file of another exporter, made into a graph that every target can be written from.

`adopt` makes a graph plain and leaves alone what it does not understand, which is right for looking at it.
Emitters want more: the operator set that capture writes, single precision, a batch that is a number or the
one symbol, and every shape known. What cannot be given is refused here, by the name of the node.

The file may be anybody's: no node is run by a runtime.
"""

from typing import Final, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common

from shufflectl.converters.capture.adopt import adopt
from shufflectl.converters.capture.functions import write_out_functions
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import OLDEST_OPSET
from shufflectl.errors import GraphError, UsageError

__all__ = ["Foreign", "to_graph"]

_OPSET: Final = 20
"""What capture writes, and the emitters know best: attributes of older sets have become inputs there."""
_SAMPLES_AT_CENTRES: Final = 11
"""From this operator set on, Resize takes pixels for areas unless it says otherwise."""


class Foreign(NamedTuple):
    """A graph out of a file.

    Attributes:
        graph: The graph, in single precision; its inputs and outputs keep their names and order.
        changes: What was made plain, a sentence each.
        half: Whether the file computes in half precision.
    """

    graph: Graph
    changes: tuple[str, ...]
    half: bool


def to_graph(
    proto: onnx.ModelProto, *, name: str, size: int | None = None, batch: int | str = "dynamic"
) -> Foreign:
    """Return an ONNX model of any exporter as a graph that can be rewritten and emitted.

    Args:
        proto: The model, its weights loaded. It is valid, as `onnx.checker` sees it.
        name: The graph's name.
        size: Height and width of the input in pixels, where the model leaves them free.
        batch: What a free batch becomes: a number, or ``dynamic`` to leave it free.

    Raises:
        GraphError: The model holds a graph within a node, cannot be brought to a newer operator set, computes
            shapes from data, or is damaged.
        UsageError: The batch or the size is not the one that the model fixes.
    """
    model = ir.from_proto(proto)
    if "" not in model.opset_imports and "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports["ai.onnx"]
    functions = write_out_functions(model)
    _refuse_nested(model)
    half = _to_single(model)
    _fix_batch(model, batch)
    old = model.opset_imports.get("")
    adopted = adopt(_modern(ir.to_proto(model)), size=size)
    if adopted.frozen:
        raise GraphError(f"the graph cannot be exported: {adopted.frozen}", hint="export the model again")
    result = adopted.graph.model
    _tidy(result)
    result.graph.name = name
    changes = [*adopted.changes]
    if functions:
        changes.insert(0, f"{functions} functions were written out")
    if old is not None and old != adopted.graph.opset:
        changes.insert(0, f"operator set {old} became {adopted.graph.opset}")
    if half:
        changes.insert(0, "half precision became single precision")
    return Foreign(Graph(result), tuple(changes), half)


def _refuse_nested(model: ir.Model) -> None:
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise GraphError(
                f"node {node.name or node.outputs[0].name!r} ({node.op_type}) holds a graph of its own, and "
                "targets for phones take one graph without branches and loops",
                hint="export the model without control flow, for one input size and in evaluation mode",
            )


def _to_single(model: ir.Model) -> bool:
    """Turn every fp16 tensor into fp32, in place; return whether there was one.

    What the weights say is kept exactly; arithmetic is no longer rounded to half precision.
    """
    found = False
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT16 and value.const_value is not None:
            array = np.asarray(value.const_value.numpy()).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
            found = True
    for node in model.graph:
        for attribute in list(node.attributes.values()):
            if attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT:
                if attribute.value == ir.DataType.FLOAT16:
                    node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT16:
                array = np.asarray(attribute.value.numpy()).astype(np.float32)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(array))
                found = True
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT16:
                value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.FLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            found = True
    return found


def _fix_batch(model: ir.Model, batch: int | str) -> None:
    """Give a free batch its number, and see that all inputs have the same.

    Raises:
        GraphError: An input has no batch, or they have several.
        UsageError: The model fixes another batch than the one that is asked for.
    """
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    fixed: dict[int, str] = {}
    free = False
    for value in inputs:
        if value.shape is None:
            continue  # adopt says so
        if len(value.shape) < 2:
            raise GraphError(
                f"the input {value.name!r} has rank {len(value.shape)}, so it holds no batch of images",
                hint="export the network alone, with one tensor a batch for each input",
            )
        first = value.shape[0]
        if isinstance(first, int) and first >= 0:
            fixed.setdefault(first, str(value.name))
        else:
            free = True
            if isinstance(batch, int):
                value.shape = ir.Shape([batch, *value.shape[1:]])
    if len(fixed) > 1 or (fixed and free):
        sizes = ", ".join(f"{count} of {name!r}" for count, name in fixed.items())
        raise GraphError(
            f"the inputs have different batches: {sizes}{' and a free one' if free else ''}",
            hint="export the model with the batch as the first axis of every input",
        )
    for count in fixed:
        if count != batch:
            raise UsageError(f"the file fixes its batch at {count}", hint=f"pass --batch {count}")


def _modern(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in the operator set that capture writes; as it is where it has a newer one.

    A model whose set the rewrites know is left as it is where it cannot be converted.

    Raises:
        GraphError: It is too old, and cannot be converted.
    """
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), None)
    if opset is None or opset >= _OPSET:
        return proto
    try:
        converted = version_converter.convert_version(proto, _OPSET)
        if opset < _SAMPLES_AT_CENTRES:
            _sample_at_corners(converted)
        onnx.checker.check_model(converted)
    except Exception as error:  # what the converter raises has no common base
        if opset >= OLDEST_OPSET:
            return proto
        lines = str(error).strip().splitlines()
        raise GraphError(
            f"its operator set {opset} is older than {OLDEST_OPSET} and cannot be converted: "
            f"{lines[-1][:200] if lines else type(error).__name__}",
            hint=f"export the model again, with operator set {OLDEST_OPSET} or later",
        ) from error
    return converted


def _sample_at_corners(proto: onnx.ModelProto) -> None:
    """Say how Upsample and Resize of old operator sets sample, which onnx's converter leaves out."""
    for node in proto.graph.node:
        if node.op_type == "Resize":
            given = {attribute.name for attribute in node.attribute}
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                if name not in given:
                    node.attribute.append(onnx.helper.make_attribute(name, value))


def _tidy(model: ir.Model) -> None:
    """Take away what says nothing in inference, bring gathers and expands to capture's forms, check shapes.

    Raises:
        GraphError: A shape depends on the data, or an output on no input.
    """
    from shufflectl.converters.capture.expand import drop_expands
    from shufflectl.converters.capture.gathernd import make_gathers_plain
    from shufflectl.converters.capture.simplify import check  # imports the simplifiers

    for node in list(model.graph):
        if node.domain == "" and _does_nothing(node):
            identity = ir.Node("", "Identity", node.inputs[:1], num_outputs=1, name=node.name)
            result, kept = node.outputs[0], identity.outputs[0]
            kept.name, kept.shape, kept.type = result.name, result.shape, result.type
            model.graph.insert_after(node, identity)
            ir.convenience.replace_all_uses_with(result, kept, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
    common.IdentityEliminationPass()(model)
    make_gathers_plain(model)
    drop_expands(model)  # after the gathers: it reads shapes
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # it holds the author's stack traces, paths included
    model.metadata_props.clear()
    check(model)


def _does_nothing(node: ir.Node) -> bool:
    """Whether a node gives its first input in inference: a Dropout, or a Cast to the type that it has."""
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype is not None and source.dtype == node.outputs[0].dtype
    if node.op_type != "Dropout" or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mode = Graph.constant(training)
    return training is None or (mode is not None and not mode.any())
