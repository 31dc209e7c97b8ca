"""From the exporter's graph to the one that is worked on: folded, simplified, with every shape known."""

import onnx
import onnx_ir as ir
import onnxsim
from onnx_ir.passes import common
from onnxscript import optimizer

from shufflectl.converters.capture.batch import check_batch_free, make_batch_free
from shufflectl.converters.capture.batchnorm import fold_graph
from shufflectl.converters.capture.quiet import gc_paused, quiet
from shufflectl.errors import GraphError

__all__ = ["simplify"]


def _check_shapes(model: ir.Model) -> None:
    """Refuse a graph in which a tensor's type or shape is unknown."""
    for node in model.graph:
        for value in node.outputs:
            unknown = value.shape is None or any(
                isinstance(d, ir.SymbolicDim) and d.value is None for d in value.shape
            )
            if unknown or value.dtype is None:
                raise GraphError(
                    f"the shape of tensor {value.name!r} (operator {node.op_type}) cannot be inferred",
                    hint="targets for phones need static shapes: take data-dependent sizes out of the model",
                )


def simplify(model: ir.Model) -> ir.Model:
    """Return the simplified model; the one given is used up.

    Raises:
        GraphError: A pass failed, a shape is unknown, or the graph computes with a symbolic batch.
    """
    with quiet(), gc_paused():
        try:
            # Inlines torchlib's functions, folds constants, turns sequences into Split.
            optimizer.optimize_ir(model)
            if fold_graph(model) | make_batch_free(model):
                common.RemoveUnusedNodesPass()(model)
            common.ClearMetadataAndDocStringPass()(model)
            # Last of the simplifiers, because it sees what the passes before leave behind.
            proto, _ = onnxsim.simplify(ir.to_proto(model))
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception as error:  # the simplifiers have no common base
            raise GraphError(
                f"simplifying the captured graph failed: {type(error).__name__}: {error}",
                hint="please report it with the model",
            ) from error
    result = ir.from_proto(proto)
    common.RemoveUnusedNodesPass()(result)
    check_batch_free(result)
    _check_shapes(result)
    return result
