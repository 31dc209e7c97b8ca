"""Names that point back to the module: what the exporter knows, made readable, unique and stable.

The exporter names tensors after its own trace (``getitem_12``) and keeps the module path of each in metadata.
The rules here, in order:

1. Graph inputs and outputs keep the names that the caller gave.
2. The tensor that leaves a module without children is named by that module's path: ``stage2.0.branch2.2``.
So a
   tensor with a module's name is what a forward hook on that module sees.
3. Any other tensor is named by the path of the module that made it and the operator: ``stage2.0.concat``.
4. A result of an operator with several is numbered: ``stage2.1.split.0``.
5. A name that is taken gets ``_1``, ``_2``, in graph order.
6. What no metadata accounts for belongs to the innermost module that holds all its consumers.

Weights of a folded convolution are named after its result (``conv1.1.weight``); others keep their
parameter's name.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

__all__ = ["Scope", "apply_names", "scopes"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_CALL = re.compile(r"@\d+")  # torch.export marks the second call of a shared module "path@1"


@dataclass(frozen=True)
class Scope:
    """Where a tensor was made.

    Attributes:
        path: The module's path; empty for the model itself.
        call: The same with torch.export's mark for the second and later calls of a shared module.
    """

    path: str
    call: str


def scopes(model: ir.Model) -> dict[str, Scope]:
    """Return where each tensor of a graph fresh from the exporter was made, by the exporter's tensor name."""
    found = {}
    for node in model.graph:
        text = node.metadata_props.get(_SCOPES)
        if not text:
            continue
        names = ast.literal_eval(text)
        # The last entry is the traced operation itself, the first the model.
        call = names[-2] if len(names) > 1 else ""
        scope = Scope(_CALL.sub("", call), call)
        for value in node.outputs:
            if value.name:
                found[value.name] = scope
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


def _complete(graph: ir.Graph, known: Mapping[str, Scope], leaves: set[str]) -> dict[str, Scope]:
    """Return a scope for every tensor that a node makes (rule 6)."""
    complete: dict[str, Scope] = {}
    for node in reversed(graph):
        users = [use.node for value in node.outputs for use in value.uses()]
        paths = [complete[str(user.outputs[0].name)].path for user in users]
        path = _common(paths) if paths else ""
        if path in leaves:
            path = path.rpartition(".")[0]
        inferred = Scope(path, path)
        for value in node.outputs:
            complete[str(value.name)] = known.get(str(value.name), inferred)
    return complete


def _exits(graph: ir.Graph, scope: Mapping[str, Scope], leaves: set[str]) -> set[str]:
    """Return the tensors that are the only one to leave a call of a module without children (rule 2)."""
    leaving: dict[str, list[str]] = {}
    for node in graph:
        for value in node.outputs:
            made = scope[str(value.name)]
            if made.path not in leaves:
                continue
            outside = any(scope[str(use.node.outputs[0].name)].call != made.call for use in value.uses())
            if outside or value.is_graph_output():
                leaving.setdefault(made.call, []).append(str(value.name))
    return {names[0] for names in leaving.values() if len(names) == 1}


def _suffix(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None  # noqa: S101 - only called for results of nodes
    operator = node.op_type.lower()
    return operator if len(node.outputs) == 1 else f"{operator}.{value.index()}"


def apply_names(model: ir.Model, known: Mapping[str, Scope], module: nn.Module) -> None:
    """Rename every tensor and node of the graph, in place.

    Args:
        model: The graph, its tensors still under the exporter's names.
        known: What `scopes` returned for the exporter's graph.
        module: The captured module.
    """
    graph = model.graph
    leaves = {
        name
        for name, part in module.named_modules(remove_duplicate=False)
        if name and not any(part.children())
    }
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

    names: dict[ir.Value, str] = {}
    for node in graph:
        for value in node.outputs:
            if value.is_graph_output():
                continue
            made = scope[str(value.name)]
            if str(value.name) in exits:
                names[value] = unique(made.path)
            else:
                names[value] = unique(f"{made.path}.{_suffix(value)}" if made.path else _suffix(value))
    for value in list(graph.initializers.values()):
        names[value] = unique(_weight_name(value, names))
    # In two steps, because a new name may be another tensor's old one.
    for index, value in enumerate(names):
        value.name = f"\0{index}"
    for value, name in names.items():
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
    for node in graph:
        node.name = str(node.outputs[0].name)


_ROLES = {
    "Conv": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "Reshape": {1: "shape"},
    "Expand": {1: "shape"},
    "ReduceMean": {1: "axes"},
    "Resize": {2: "scales", 3: "sizes"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Gather": {1: "indices"},
    "Split": {1: "split"},
    "Pad": {1: "pads", 2: "value", 3: "axes"},
    "Clip": {1: "min", 2: "max"},
}


def _weight_name(value: ir.Value, names: Mapping[ir.Value, str]) -> str:
    """Return an initialiser's name: a parameter's path, or its only consumer's name and its role there."""
    uses = list(value.uses())
    own = str(value.name)
    if "." in own or not uses:
        return own
    node, index = uses[0].node, uses[0].idx
    base = names.get(node.outputs[0], str(node.outputs[0].name))
    return f"{base}.{_ROLES.get(node.op_type, {}).get(index, f'input{index}')}"
