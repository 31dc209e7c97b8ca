"""A graph that someone else exported, made into one that can be worked on.

Other exporters compute shapes in the graph: a shuffle of TorchScript's exporter with a dynamic batch is a
chain of Shape, Gather, Unsqueeze and Concat into each Reshape, and what its Slices take is computed from the
size of the tensor even where that is fixed. `adopt` finds what is known of each tensor (`walk`).

Constants then take the place of what computed them, a Reshape whose shape depends on the batch alone gets a
-1 there, and batch norm is folded. Nodes that are left keep their names, and tensors theirs.

The file may be anybody's: no node is run by a runtime, what is evaluated is bounded, and what is not
understood stays as it is.
"""

from typing import NamedTuple

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from shufflectl.converters.capture.batch import make_batch_free
from shufflectl.converters.capture.functions import write_out_functions
from shufflectl.converters.capture.sizes import BATCH, parsed
from shufflectl.converters.capture.walk import Walk, check_size
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import OLDEST_OPSET
from shufflectl.errors import GraphError, UsageError

__all__ = ["Adopted", "adopt"]


class Adopted(NamedTuple):
    """A graph made plain.

    Attributes:
        graph: The graph. Where no file is rewritten, `frozen` says why.
        changes: What was made plain, a sentence each.
        frozen: Why the graph cannot be rewritten, empty where it can.
        nodes: For each tensor the name that the file gives to the node which makes it.
    """

    graph: Graph
    changes: tuple[str, ...]
    frozen: str
    nodes: dict[str, str]


def _bind(model: ir.Model, size: int | None) -> None:
    """Name the batch in all shapes, and give free heights and widths a size.

    Raises:
        GraphError: A shape is not given, a free dimension has no size, or an input is too large.
        UsageError: A size is given, and no dimension is free.
    """
    symbols = set()
    free = False
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    for value in inputs:
        if value.shape is None:
            raise GraphError(
                f"the input {value.name!r} has no shape", hint="export the model with a fixed input size"
            )
        dims: list[int | str | None] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and dim >= 0:
                dims.append(dim)
            elif axis == 0 and len(value.shape) > 1:
                symbols.add(dim.value if isinstance(dim, ir.SymbolicDim) else None)
                dims.append(BATCH)
            elif size is not None:
                free = True
                dims.append(size)
            else:
                raise GraphError(
                    f"axis {axis} of the input {value.name!r} has no fixed length",
                    hint="say for which images: --input-size 224",
                )
        check_size(value, tuple(parsed(d) for d in dims))
        value.shape = ir.Shape(dims)
    if size is not None and not free:
        raise UsageError("the file fixes the size of its input", hint="leave out --input-size")
    symbols.discard(None)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                # Symbols are the exporter's own; only the batch has a meaning here.
                value.shape = ir.Shape(
                    d
                    if isinstance(d, int)
                    else BATCH
                    if axis == 0 and isinstance(d, ir.SymbolicDim) and d.value in symbols
                    else None
                    for axis, d in enumerate(value.shape)
                )


def _settle(model: ir.Model) -> int:
    """Put constants in the place of the nodes that were found to make them; return how many nodes went."""
    graph, gone = model.graph, 0
    for node in list(graph):
        if any(v.const_value is None for v in node.outputs) or any(v.is_graph_output() for v in node.outputs):
            continue
        for value in node.outputs:
            tensor, name = value.const_value, value.name
            if value.uses():
                constant = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
                ir.convenience.replace_all_uses_with(value, constant)
                value.name = None
                graph.register_initializer(constant)
        gone += node.op_type != "Constant"
        graph.remove(node, safe=True)
    return gone


def _unused(model: ir.Model) -> int:
    before = len(model.graph)
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def _norms(model: ir.Model) -> int:
    """Fold batch norm; return how many went."""
    before = sum(n.op_type == "BatchNormalization" for n in model.graph)
    if not before:
        return 0
    from shufflectl.converters.capture.batchnorm import fold_graph  # imports torch, for its other half

    fold_graph(model)
    return before - sum(n.op_type == "BatchNormalization" for n in model.graph)


def _frozen(model: ir.Model) -> str:
    """Return why a graph cannot be rewritten; empty where it can."""
    opset = model.opset_imports[""]
    if opset < OLDEST_OPSET:
        return (
            f"its operator set {opset} is older than {OLDEST_OPSET}; export it with a newer one, or convert "
            "it with onnx.version_converter"
        )
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return f"node {node.name or node.outputs[0].name!r} ({node.op_type}) holds a graph of its own"
    return ""


def adopt(proto: onnx.ModelProto, *, size: int | None = None) -> Adopted:
    """Return an ONNX model of any exporter as a graph that can be analysed, and rewritten where it allows.

    Args:
        proto: The model, its weights loaded. It is valid, as `onnx.checker` sees it.
        size: Height and width of the input in pixels, where the model leaves them free.

    Raises:
        GraphError: It has no default operator set, a function that calls itself, an input of unknown shape,
            or a node that does not fit its inputs.
        UsageError: A size is given, and the model fixes its own.
    """
    model = ir.from_proto(proto)
    if "" not in model.opset_imports and "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports["ai.onnx"]
    if "" not in model.opset_imports:
        raise GraphError("the model uses no standard ONNX operators", hint="pass the network itself")
    functions = write_out_functions(model)
    names = {str(v.name): node.name for node in model.graph for v in node.outputs if v.name and node.name}
    _bind(model, size)
    Walk(model).run()
    arithmetic = _settle(model)
    make_batch_free(model)
    arithmetic += _unused(model)
    norms = _norms(model)
    common.RemoveUnusedNodesPass()(model)
    changes = [
        text
        for count, text in (
            (functions, f"{functions} functions were written out"),
            (arithmetic, f"{arithmetic} nodes that compute shapes and constants became constants"),
            (norms, f"{norms} batch norms were folded into the convolutions before them"),
        )
        if count
    ]
    return Adopted(Graph(model), tuple(changes), _frozen(model), names)
