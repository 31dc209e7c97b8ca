"""A torch module as an ONNX model, through torch.export and torch.onnx."""

import re
from collections.abc import Sequence
from typing import Final

import onnx_ir as ir
import torch
from torch import nn

from shufflectl.converters.capture.adaptive import adaptive_average_pool
from shufflectl.errors import GraphError

__all__ = ["BATCH", "OPSET", "to_onnx"]

OPSET: Final = 20
"""The version of the default operator set in every captured graph: what torch.onnx translates to natively."""

BATCH: Final = "batch"
"""The name of a symbolic batch dimension."""


def _cause(error: BaseException) -> str:
    """Return the innermost error's first line: torch wraps it in pages of advice."""
    while (inner := error.__cause__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _export(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], *, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    if not dynamic_batch:
        return torch.export.export(module, inputs, strict=False)
    # torch specialises sizes of 0 and 1, so a symbolic batch is traced with two images.
    inputs = tuple(x if x.shape[0] > 1 else torch.cat([x, x]) for x in inputs)
    batch = torch.export.Dim(BATCH, min=1)
    shapes = tuple({0: batch} for _ in inputs)
    # The parameters of forward have names of their own, so the shapes go by position.
    return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


def _name_batch(model: ir.Model) -> None:
    """Call the symbol that torch.export made up (``s77``) by its name, in every shape."""
    first = model.graph.inputs[0].shape
    symbol = first[0] if first is not None and len(first) else None
    if not isinstance(symbol, ir.SymbolicDim) or symbol.value is None:
        raise GraphError(
            "the model fixes its batch size: torch.export found only one value for it that works",
            hint="export with a static batch, or keep the batch size out of the model's arithmetic",
        )
    pattern = re.compile(rf"\b{re.escape(symbol.value)}\b")
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                d if isinstance(d, int) or d.value is None else pattern.sub(BATCH, d.value)
                for d in value.shape
            )


def to_onnx(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool,
) -> ir.Model:
    """Return the module as the exporter gives it, before any simplification.

    Raises:
        GraphError: torch cannot trace the module, or an operator has no translation.
    """
    with torch.no_grad():
        try:
            program = _export(module, inputs, dynamic_batch=dynamic_batch)
        except Exception as error:  # whatever a user's forward raises
            hint = "the forward pass must not branch on tensor values, and must accept the example input"
            if dynamic_batch:
                hint = "export with a static batch, or keep the batch size out of the model's arithmetic"
            raise GraphError(f"torch.export cannot trace the model: {_cause(error)}", hint=hint) from error
        try:
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(input_names),
                output_names=list(output_names),
                opset_version=OPSET,
                optimize=False,  # it folds batch norm in fp32; simplify.py does what is needed in less time
                verbose=False,
                custom_translation_table={torch.ops.aten.adaptive_avg_pool2d.default: adaptive_average_pool},
            )
        except Exception as error:  # the exporter's own errors have no common base
            raise GraphError(
                f"torch.onnx cannot translate the model: {_cause(error)}",
                hint="replace the operator that the message names",
            ) from error
    assert onnx_program is not None  # noqa: S101 - with dynamo=True the exporter always returns a program
    model = onnx_program.model
    if len(model.graph.outputs) != len(output_names):
        raise GraphError(
            f"the model has {len(model.graph.outputs)} outputs, and {len(output_names)} names are given",
            hint="give one name an output",
        )
    if dynamic_batch:
        _name_batch(model)
    return model
