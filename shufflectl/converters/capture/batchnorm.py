"""Batch norm folded into convolutions, in the torch module and in the ONNX graph.

In inference batch norm is an affine map per channel, ``y = a * x + b`` with ``a = gamma / sqrt(var + eps)``
and ``b = beta - a * mean``, so

    BN(W * x + c)  =  (a W) * x + (a c + b)

Folded weights are computed in float64 and rounded once.

A fold in the module is not needed for the result, it is there for time: torch.export and its decompositions
cost by the node, and half the nodes of a ShuffleNet are batch norms. What it cannot see (functional calls,
modules that `torch.fx` cannot trace) is folded in the graph, and a batch norm behind anything but a
convolution becomes Mul and Add there.
"""

import copy

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import fx, nn

from shufflectl.converters.graph import Graph

__all__ = ["fold_graph", "fold_module"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _affine(
    gamma: NDArray[np.generic],
    beta: NDArray[np.generic],
    mean: NDArray[np.generic],
    var: NDArray[np.generic],
    epsilon: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``a`` and ``b`` of ``y = a * x + b``, each ``[C]``."""
    scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
    return scale, beta.astype(np.float64) - scale * mean.astype(np.float64)


def _plain(module: nn.Module) -> bool:
    """Whether calling the module is calling its forward: no hooks, no parametrisation."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, getattr(module, "parametrizations", None))  # noqa: SLF001 - no public way to ask
    return not any(hooks)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) in _CONVOLUTIONS
        and type(norm) in _BATCH_NORMS
        and isinstance(norm, _BATCH_NORMS)
        and not norm.training
        and norm.running_mean is not None
        and norm.running_var is not None
        and _plain(conv)
        and _plain(norm)
    )


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """Return the convolution that does the work of both."""

    def array(tensor: torch.Tensor | None, default: float) -> NDArray[np.generic]:
        if tensor is None:
            return np.full(conv.out_channels, default)
        return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())

    scale, shift = _affine(
        array(norm.weight, 1.0),
        array(norm.bias, 0.0),
        array(norm.running_mean, 0.0),
        array(norm.running_var, 1.0),
        norm.eps,
    )
    factor = torch.from_numpy(scale)
    weight = conv.weight.detach().double() * factor.reshape(-1, *[1] * (conv.weight.ndim - 1))
    bias = torch.from_numpy(array(conv.bias, 0.0)) * factor + torch.from_numpy(shift)
    fused = copy.copy(conv)
    fused._parameters = {}  # noqa: SLF001 - the copy shares the original's tables until they are replaced
    fused.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    fused.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return fused


class _LeafTracer(fx.Tracer):
    """Records calls of modules that have no children, whoever wrote them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the paths of each convolution whose only consumer is a batch norm, and of that batch norm."""
    try:
        graph = _LeafTracer().trace(module)
    except Exception:  # noqa: BLE001 - running a user's forward on proxies raises anything; the graph's fold remains
        return []
    modules = dict(module.named_modules(remove_duplicate=False))
    calls: dict[int, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            key = id(modules[node.target])
            calls[key] = calls.get(key, 0) + 1
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv, norm = modules[source.target], modules[node.target]
        if _foldable(conv, norm) and calls[id(conv)] == calls[id(norm)] == 1:
            pairs.append((str(source.target), str(node.target)))
    return pairs


def _replace(root: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, new)


def _skeleton(module: nn.Module) -> nn.Module:
    """Return a copy whose module tree is its own and whose tensors are the original's."""
    memo: dict[int, object] = {}
    for part in module.modules():
        memo.update({id(tensor): tensor for tensor in (*part._parameters.values(), *part._buffers.values())})  # noqa: SLF001 - parameters() would skip nothing, but also not buffers that are shared
    return copy.deepcopy(module, memo)


def fold_module(module: nn.Module) -> nn.Module:
    """Return a module of the same function with batch norms folded into the convolutions before them.

    The folded convolution takes the batch norm's place and the convolution's becomes an identity, so that a
    module path still names the same tensor. The given module is not changed; what cannot be folded stays.
    """
    pairs = _pairs(module)
    if not pairs:
        return module
    folded = _skeleton(module)
    for conv, norm in pairs:
        fused = _fused(folded.get_submodule(conv), folded.get_submodule(norm))  # type: ignore[arg-type]  # _pairs has checked both
        _replace(folded, norm, fused)
        _replace(folded, conv, nn.Identity())
    return folded


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def fold_graph(model: ir.Model) -> bool:
    """Fold every BatchNormalization of an ONNX graph, in place.

    ::

        Given                                          Result
        x [N, C, H, W]                                 x [N, C, H, W]
        c = Conv(x, W)  [N, D, h, w]                   y = Conv(x, a W, a c + b)  [N, D, h, w]
        y = BatchNormalization(c, ...)  [N, D, h, w]

    1. The convolution's result has no other consumer, is no output, and its weights are constant: fold.
    2. Otherwise ``y = Add(Mul(x, a), b)`` with a and b of shape [C, 1, 1], which is exact in the same sense.

    Returns:
        Whether the graph changed.
    """
    graph = model.graph
    changed = False
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.attributes.get_int("training_mode", 0) == 1:
            continue
        x, *parameters = node.inputs
        values = [Graph.constant(p) for p in parameters]
        if x is None or any(v is None for v in values):
            continue
        gamma, beta, mean, var = (np.asarray(v) for v in values)
        scale, shift = _affine(gamma, beta, mean, var, node.attributes.get_float("epsilon", default=1e-5))
        dtype, y = gamma.dtype, node.outputs[0]
        conv = x.producer()
        weight = Graph.constant(conv.inputs[1]) if conv is not None and conv.op_type == "Conv" else None
        bias = (
            Graph.constant(conv.inputs[2])
            if conv is not None and len(conv.inputs) > 2 and conv.inputs[2]
            else None
        )
        fixed = conv is not None and (len(conv.inputs) < 3 or conv.inputs[2] is None or bias is not None)
        if (
            conv is not None
            and weight is not None
            and fixed
            and len(x.uses()) == 1
            and not x.is_graph_output()
        ):
            # Case 1.
            old = np.zeros(len(scale)) if bias is None else bias.astype(np.float64)
            factor = scale.reshape(-1, *[1] * (weight.ndim - 1))
            inputs = [
                conv.inputs[0],
                _initializer(
                    graph, f"{y.name}.weight", (weight.astype(np.float64) * factor).astype(weight.dtype)
                ),
                _initializer(graph, f"{y.name}.bias", (old * scale + shift).astype(weight.dtype)),
            ]
            new = [ir.Node("", "Conv", inputs, conv.attributes.values(), num_outputs=1)]
        else:
            # Case 2.
            rank = len(x.shape) if x.shape is not None else 4
            column = (-1, *[1] * (rank - 2))  # [C] -> [C, 1, 1]
            a = _initializer(graph, f"{y.name}.scale", scale.astype(dtype).reshape(column))
            b = _initializer(graph, f"{y.name}.shift", shift.astype(dtype).reshape(column))
            multiply = ir.Node("", "Mul", [x, a], num_outputs=1)
            product = multiply.outputs[0]
            product.name, product.shape, product.type = f"{y.name}.mul", y.shape, y.type
            new = [multiply, ir.Node("", "Add", [product, b], num_outputs=1)]
        result = new[-1].outputs[0]
        result.shape, result.type = y.shape, y.type
        for part in new:
            part.metadata_props.update(node.metadata_props)
        graph.insert_after(node, new)
        name = y.name
        ir.convenience.replace_all_uses_with(y, result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        result.name = name
        if conv is not None and new[0].op_type == "Conv":
            graph.remove(conv, safe=True)
        changed = True
    return changed
