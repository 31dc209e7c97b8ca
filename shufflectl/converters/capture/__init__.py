"""From a torch module to the one graph that everything else works on.

Each part is one file: `batchnorm` (folds), `exporter` (torch.export and torch.onnx), `simplify`, `batch` (a
symbolic batch without arithmetic), `names`. docs/capture.md says what the result promises.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import shufflectl
from shufflectl.converters.collector import paused_collector
from shufflectl.converters.graph import Graph
from shufflectl.converters.quiet import quiet
from shufflectl.errors import GraphError

if TYPE_CHECKING:
    import torch

__all__ = ["capture"]


def _check(
    module: "torch.nn.Module",
    example_inputs: "tuple[torch.Tensor, ...]",
    input_names: Sequence[str],
    *,
    dynamic_batch: bool,
) -> None:
    if module.training:
        raise GraphError("the model is in training mode", hint="call its eval() before capturing it")
    if len(example_inputs) != len(input_names):
        raise GraphError(
            f"{len(example_inputs)} example inputs do not fit {len(input_names)} input names",
            hint="give one name an input",
        )
    if dynamic_batch and any(x.ndim == 0 for x in example_inputs):
        raise GraphError("a scalar input has no batch dimension", hint="export with a static batch")


def capture(
    module: "torch.nn.Module",
    example_inputs: "tuple[torch.Tensor, ...]",
    *,
    name: str,
    input_names: Sequence[str] = ("image",),
    output_names: Sequence[str] = ("logits",),
    dynamic_batch: bool = False,
) -> Graph:
    """Return a module's inference graph: batch norm and constants folded, simplified, every shape known.

    Args:
        module: The model, in evaluation mode. It is not changed.
        example_inputs: One tensor an input; their shapes become the graph's.
        name: The graph's name.
        input_names: One name an input.
        output_names: One name an output.
        dynamic_batch: Whether the first dimension of every input is the symbol ``batch``.

    Returns:
        The graph. The same module and inputs give the same graph, names included.

    Raises:
        GraphError: The module is in training mode, the names do not fit its inputs or outputs, it cannot be
            traced, holds an operator without a translation, or computes with a symbolic batch.
    """
    with quiet(), paused_collector():
        # torch and the exporter take seconds to import, and nothing else in this package needs them.
        from shufflectl.converters.capture.batchnorm import fold_module
        from shufflectl.converters.capture.exporter import to_onnx
        from shufflectl.converters.capture.names import apply_names, scopes
        from shufflectl.converters.capture.simplify import check, simplify

        _check(module, example_inputs, input_names, dynamic_batch=dynamic_batch)
        folded = fold_module(module)
        model = to_onnx(
            folded,
            example_inputs,
            input_names=input_names,
            output_names=output_names,
            dynamic_batch=dynamic_batch,
        )
        known = scopes(model)
        model = simplify(model)
        apply_names(model, known, folded)
        check(model)
    model.graph.name = name
    model.producer_name = "shufflectl"
    model.producer_version = shufflectl.__version__
    return Graph(model)
