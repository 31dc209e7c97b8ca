"""Names that point back to the module: what the exporter knows, made readable, unique and stable.

The exporter names tensors after its own trace (``getitem_12``) and keeps the module path of each in
metadata. The rules here, in order:

1. Graph inputs and outputs keep the names that the caller gave.
2. The only tensor that leaves a module without children is named by that module's path:
   ``stage2.0.branch2.2``. So a tensor with a module's name is what a forward hook on that module sees. A
   module that is called more than once has more than one such tensor, so none of them gets its name.
3. Any other tensor is named by the path of the module that made it and the operator: ``stage2.0.concat``.
4. A result of an operator with several is numbered: ``stage2.1.split.0``.
5. A name that is taken gets ``_1``, ``_2``, in graph order.
6. What no metadata accounts for belongs to the innermost module that holds all its consumers.

Parameters keep the names that they have in the module; other constants are named by their first consumer
and their role there: ``stage2.0.reshape.shape``. A node has the name of its first result.
"""

import ast
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from torch import nn

__all__ = ["apply_names", "scopes"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.fx writes for the path of a node that a pass made, such as arithmetic on a symbolic size."""

_ROLES = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {1: "weight"},
    "Mul": {0: "scale", 1: "scale"},
    "Add": {0: "shift", 1: "shift"},
    "Reshape": {1: "shape"},
    "Expand": {1: "shape"},
    "Resize": {1: "roi", 2: "scales", 3: "sizes"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Gather": {1: "indices"},
    "Split": {1: "sizes"},
    "Pad": {1: "pads", 2: "value", 3: "axes"},
    "Clip": {1: "min", 2: "max"},
    "ReduceMean": {1: "axes"},
    "ReduceSum": {1: "axes"},
    "ReduceMax": {1: "axes"},
    "Squeeze": {1: "axes"},
    "Unsqueeze": {1: "axes"},
}
"""What operators call their constant inputs, by position."""


def scopes(model: ir.Model) -> dict[str, str]:
    """Return the path of the module that made each tensor of a graph fresh from the exporter.

    The keys are the exporter's names, which hold no dot.
    """
    found = {}
    for node in model.graph:
        text = node.metadata_props.get(_SCOPES)
        if not text:
            continue
        names = ast.literal_eval(text)
        # The first entry is the model, the last the traced operation itself.
        path = str(names[-2]) if len(names) > 1 else ""
        if path != _NOWHERE:
            found.update({value.name: path for value in node.outputs if value.name})
    return found


def _common(paths: Sequence[str]) -> str:
    """Return the longest module path that is a prefix of all."""
    split = [path.split(".") if path else [] for path in paths]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _complete(graph: ir.Graph, known: Mapping[str, str], leaves: set[str]) -> dict[str, str]:
    """Return a module path for every tensor that a node makes (rule 6)."""
    complete: dict[str, str] = {}
    for node in reversed(graph):
        users = [use.node for value in node.outputs for use in value.uses()]
        path = _common([complete[str(user.outputs[0].name)] for user in users])
        if path in leaves:
            path = path.rpartition(".")[0]
        for value in node.outputs:
            name = str(value.name)
            # A pass that splits the work of tensor x names the new tensor "x.something".
            complete[name] = known.get(name.partition(".")[0], path)
    return complete


def _exits(graph: ir.Graph, scope: Mapping[str, str], leaves: set[str]) -> set[str]:
    """Return the tensors that are the only one to leave a module without children (rule 2)."""
    leaving: dict[str, list[str]] = {}
    for node in graph:
        for value in node.outputs:
            made = scope[str(value.name)]
            if made not in leaves:
                continue
            outside = any(scope[str(use.node.outputs[0].name)] != made for use in value.uses())
            if outside or value.is_graph_output():
                leaving.setdefault(made, []).append(str(value.name))
    return {names[0] for names in leaving.values() if len(names) == 1}


def _operator(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None  # noqa: S101 - only called for results of nodes
    operator = node.op_type.lower()
    return operator if len(node.outputs) == 1 else f"{operator}.{value.index()}"


def _constant_name(value: ir.Value, parameters: set[str], names: Mapping[ir.Value, str]) -> str:
    """Return a parameter's own name, or the first consumer's and the role there."""
    own, uses = str(value.name), list(value.uses())
    if own in parameters or not uses:
        return own
    node, index = uses[0].node, uses[0].idx
    consumer = names.get(node.outputs[0], str(node.outputs[0].name))
    return f"{consumer}.{_ROLES.get(node.op_type, {}).get(index, f'input{index}')}"


def _order_constants(graph: ir.Graph) -> None:
    """Put the initialisers in the order of their first use, whatever passes made them."""
    constants = dict(graph.initializers)
    used = dict.fromkeys(
        str(v.name) for node in graph for v in node.inputs if v is not None and v.name in constants
    )
    graph.initializers.clear()
    for name in (*used, *(name for name in constants if name not in used)):
        graph.register_initializer(constants[name])


def apply_names(model: ir.Model, known: Mapping[str, str], module: nn.Module) -> None:
    """Rename every tensor and node of the graph, in place.

    Args:
        model: The graph, its tensors still under the exporter's names.
        known: What `scopes` returned for the exporter's graph.
        module: The captured module.
    """
    graph = model.graph
    modules = dict(module.named_modules(remove_duplicate=False))
    leaves = {path for path, part in modules.items() if path and not any(part.children())}
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    parameters |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    scope = _complete(graph, known, leaves)
    exits = _exits(graph, scope, leaves)
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs)}

    def unique(name: str) -> str:
        candidate, count = name, 0
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        taken.add(candidate)
        return candidate

    _order_constants(graph)
    names: dict[ir.Value, str] = {}
    for node in graph:
        for value in node.outputs:
            if value.is_graph_output() or not value.name:
                continue
            path = scope[value.name]
            if value.name in exits:
                names[value] = unique(path)
            else:
                names[value] = unique(f"{path}.{_operator(value)}" if path else _operator(value))
    for value in list(graph.initializers.values()):
        names[value] = unique(_constant_name(value, parameters, names))
    # In two steps, because a new name may be another tensor's old one.
    for index, value in enumerate(names):
        value.name = f"\0{index}"
    for value, name in names.items():
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
    for node in graph:
        node.name = str(node.outputs[0].name)
