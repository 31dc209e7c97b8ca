"""From the exporter's graph to the one that is worked on: folded, simplified, with every shape known."""

import math
import re
from typing import Final

import onnx
import onnx_ir as ir
import onnxsim
from onnx_ir.passes import common
from onnxscript import optimizer

from shufflectl.converters.capture.batch import check_batch_free, make_batch_free
from shufflectl.converters.capture.batchnorm import fold_graph
from shufflectl.converters.capture.expand import drop_expands
from shufflectl.converters.capture.exporter import BATCH
from shufflectl.converters.capture.gathernd import make_gathers_plain
from shufflectl.converters.graph import Graph
from shufflectl.errors import GraphError

__all__ = ["check", "simplify"]

_SYMBOL: Final = re.compile(r"[A-Za-z_]\w*")
_FAR: Final = 2**31 - 1
"""An end of a range that no axis reaches."""
_COUNT: Final = re.compile(rf"(?:(\d+)\*)?{BATCH}")


def _plain_reshapes(model: ir.Model) -> None:
    """Drop ``allowzero`` where it says nothing: it is about zeros in the shape, and there are none."""
    for node in model.graph:
        if node.op_type == "Reshape" and "allowzero" in node.attributes:
            shape = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
            if shape is not None and 0 not in shape.numpy():
                node.attributes.pop("allowzero")


def _name_sizes(model: ir.Model) -> None:
    """Say in terms of the batch what shape inference made new symbols of.

    onnxsim writes a dense layer over ``[batch, 90, 6]`` as Reshape to ``[-1, 6]``, Gemm and Reshape, and
    inference calls the first size ``unk__0``. It is ``90*batch``. A Slice that takes all images among other
    ranges keeps their number likewise.
    """
    named: dict[str, str] = {}
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                continue
            sizes = [d if isinstance(d, int) else named.get(d.value or "", d.value) for d in value.shape]
            unknown = [d for d in sizes if isinstance(d, str) and BATCH not in _SYMBOL.findall(d)]
            if node.op_type == "Reshape" and len(unknown) == 1:
                count = _per_image(node.inputs[0])
                rest = math.prod(d for d in sizes if isinstance(d, int))
                if len(sizes) - 1 == sum(isinstance(d, int) for d in sizes) and count and not count % rest:
                    named[unknown[0]] = BATCH if count == rest else f"{count // rest}*{BATCH}"
                    sizes = [named.get(d, d) if isinstance(d, str) else d for d in sizes]
            if (
                node.op_type == "Slice"
                and len(unknown) == 1
                and (whole := _whole(node, sizes.index(unknown[0])))
            ):
                named[unknown[0]] = whole
                sizes = [named.get(d, d) if isinstance(d, str) else d for d in sizes]
            value.shape = ir.Shape(sizes)


def _whole(node: ir.Node, axis: int) -> str | None:
    """Return the name of the size of an axis that a Slice takes all of; None where it does not."""
    source = node.inputs[0]
    if source is None or source.shape is None or not isinstance(size := source.shape[axis], ir.SymbolicDim):
        return None
    starts, ends, axes, steps = (
        Graph.constant(node.inputs[i]) if i < len(node.inputs) else None for i in range(1, 5)
    )
    if starts is None or ends is None:
        return None
    places = list(range(len(starts))) if axes is None else [int(a) % len(source.shape) for a in axes]
    for index, place in enumerate(places):
        step = 1 if steps is None else int(steps[index])
        if place == axis and (int(starts[index]) != 0 or int(ends[index]) < _FAR or step != 1):
            return None
    return size.value


def _per_image(value: ir.Value | None) -> int:
    """Return how many elements of a tensor belong to one image; 0 where that is not known."""
    if value is None or value.shape is None:
        return 0
    symbols = [d.value for d in value.shape if isinstance(d, ir.SymbolicDim)]
    counts = [_COUNT.fullmatch(symbol or "") for symbol in symbols]
    if len(counts) != 1 or counts[0] is None:
        return 0
    return int(counts[0][1] or 1) * math.prod(d for d in value.shape if isinstance(d, int))


def _passes(model: ir.Model) -> onnx.ModelProto:
    optimizer.inline(model)  # torchlib's functions, so that the passes below see plain operators
    optimizer.fold_constants(model)  # also turns a sequence and its indexing into Split
    common.RemoveUnusedNodesPass()(model)
    fold_graph(
        model
    )  # after the constants, because a convolution's missing bias is a computed zero until then
    make_batch_free(model)  # after the constants, which leave only shapes that depend on the batch
    _plain_reshapes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)  # after the lift: blocks of one stage share their shapes
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # it holds the user's stack traces, paths included
    # Last, because it sees what the passes before leave behind.
    proto, _ = onnxsim.simplify(ir.to_proto(model))
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def simplify(model: ir.Model) -> ir.Model:
    """Return the simplified model; the one given is used up.

    Raises:
        GraphError: A pass failed.
    """
    try:
        proto = _passes(model)
    except Exception as error:  # the simplifiers have no common base
        raise GraphError(
            f"simplifying the captured graph failed: {type(error).__name__}: {error}",
            hint="please report it with the model",
        ) from error
    del proto.metadata_props[:]  # onnxsim's account of its own work
    result = ir.from_proto(proto)
    _name_sizes(result)
    make_gathers_plain(result)  # after onnxsim, which folds the indices
    drop_expands(result)  # here, because it reads shapes
    common.RemoveUnusedNodesPass()(result)
    return result


def _known(value: ir.Value) -> bool:
    """Whether type and shape are known, but for arithmetic on the batch."""
    if value.dtype is None or value.shape is None:
        return False
    symbols = (d.value for d in value.shape if isinstance(d, ir.SymbolicDim))
    return all(text is not None and {BATCH} == set(_SYMBOL.findall(text)) for text in symbols)


def check(model: ir.Model) -> None:
    """Refuse a named graph that the rest of the package cannot work on.

    Raises:
        GraphError: An output is not computed from an input, a shape is unknown, or the graph computes with a
            symbolic batch.
    """
    for value in model.graph.outputs:
        if value.producer() is None:
            raise GraphError(
                f"output {value.name!r} of the model is not computed from its input",
                hint="the forward pass returns its input or a constant: there is nothing to deploy",
            )
    check_batch_free(model)
    for node in model.graph:
        for value in node.outputs:
            # An optional result that the node does not give has no name.
            if value.name and not _known(value):
                raise GraphError(
                    f"the shape of tensor {value.name!r} (operator {node.op_type}) depends on the data",
                    hint="targets for phones need static shapes: take data-dependent sizes out of the model",
                )
