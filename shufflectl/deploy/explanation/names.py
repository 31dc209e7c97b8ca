"""What sites and nodes are called, for people: by the modules that they come from, where a graph tells."""

import ast
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import bytes_moved, operators
from shufflectl.converters.rewrite.provenance import Site, label
from shufflectl.deploy.explanation.result import ExplainedSite

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Names"]

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
"""The node property under which torch.onnx keeps the modules that a node comes from, as a Python list."""
_MAX_TEXT: Final = 2000


class Names:
    """What nodes are called, for people."""

    def __init__(self, graph: Graph, names: dict[str, str]) -> None:
        self._graph = graph
        self._by_label = {label(node): node for node in graph.nodes}
        self._names = names

    def node(self, key: str) -> str:
        """Return the name that the file gives to a node, or that of its result."""
        node = self._by_label.get(key)
        return self._names.get(key) or (str(node.name) if node is not None and node.name else key)

    def _scope(self, key: str) -> str:
        """Return the module that a node comes from; empty where the graph does not say."""
        scope = _module(self._by_label[key].metadata_props.get(_SCOPES, ""))
        if scope:
            return scope
        name = self.node(key)
        if name.startswith("/") and name.count("/") > 1:  # TorchScript: /stage2/stage2.0/Concat_1
            return name.split("/")[-2]
        if key not in self._names and "." in key:  # captured: stage2.0.concat
            return _parent(key)
        return ""

    def _where(self, site: Site) -> str:
        """Return the modules that a site begins and ends in, or the nodes where no module is known."""
        scopes = [scope for key in site.nodes if (scope := self._scope(key))]
        places = scopes or [self.node(key) for key in site.nodes]
        return places[0] if places[0] == places[-1] else f"{places[0]} to {places[-1]}"

    def site(self, number: int, site: Site) -> ExplainedSite:
        """Return what is known of a site."""
        nodes = [self._by_label[key] for key in site.nodes]
        return ExplainedSite(
            number,
            site,
            self._where(site),
            tuple((self.node(key), node.op_type) for key, node in zip(site.nodes, nodes, strict=True)),
            self._size(site.inputs[0][0]),
            operators(nodes),
            bytes_moved(nodes),
            max((len(v.shape) for n in nodes for v in n.outputs if v.shape is not None), default=0),
        )

    def _size(self, tensor: str) -> tuple[int, ...]:
        values: Iterable[ir.Value] = (
            *self._graph.inputs,
            *(v for node in self._graph.nodes for v in node.outputs),
        )
        value = next(v for v in values if v.name == tensor)
        return tuple(int(d) for d in Graph.shape(value)[2:] if isinstance(d, int))


def _parent(key: str) -> str:
    """Return the module of a tensor that capture named ``module.operator`` or ``module.operator.index``."""
    scope, _, last = key.rpartition(".")
    if last.isdigit() and not scope.rpartition(".")[2].isdigit():
        scope = scope.rpartition(".")[0] or scope
    return scope


def _module(text: str) -> str:
    """Return the innermost module that torch.onnx's list of scopes names; empty where it names none."""
    if not text or len(text) > _MAX_TEXT:
        return ""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    if not isinstance(names, list) or len(names) < 2 or not isinstance(names[-2], str):
        return ""
    return names[-2]
