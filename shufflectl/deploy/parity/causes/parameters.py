"""Causes in a layer's parameters: pads, what an average counts, biases, kernels, filters, operands."""

from collections.abc import Iterator
from itertools import combinations, permutations, product
from typing import Final

import numpy as np

from shufflectl.deploy.parity.case import Case, wrong_channels
from shufflectl.deploy.parity.causes.columns import columns
from shufflectl.deploy.parity.causes.hypothesis import Hypothesis, tried
from shufflectl.deploy.parity.causes.nodes import attributes_of, weight_of, with_attributes
from shufflectl.deploy.parity.causes.words import NAMED
from shufflectl.errors import GraphError

__all__ = ["layer_parameters"]

_MANY: Final = 24
"""Nodes in a layer above which its nodes are not tried one by one."""


def layer_parameters(case: Case) -> Iterator[Hypothesis]:
    """Yield what may be wrong with each node of the layer.

    A segment of many nodes is a file without a trace: trying each would take minutes.
    """
    if len(case.segment.nodes) > _MANY:
        return
    for index in case.segment.nodes:
        node = case.graph.nodes[index]
        label = case.graph.label(index)
        families = {
            "Conv": (_pads, _bias, _kernel, _filters, columns, _planes),
            "Gemm": (_bias, columns),
            "MatMul": (columns,),
            "MaxPool": (_pads,),
            "AveragePool": (_pads, _counting),
            "Concat": (_operands,),
        }.get(node.op_type, ())
        for family in families:
            yield from tried(family(case, index, label))


def _pads(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    node = case.graph.nodes[index]
    attributes = attributes_of(node)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        return
    rank = case.tensor(node.input[0]).ndim - 2
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    if rank != 2:
        return
    top, left, bottom, right = pads
    for t, b, a, z in _other_pads(top, left, bottom, right):
        other = [t, a, b, z]
        try:
            prediction = case.run(nodes={index: with_attributes(node, pads=other)})
        except GraphError:
            continue  # ONNX Runtime refuses these pads
        text = f"{label} pads [top, left, bottom, right] by {other} where {pads} is right"
        yield Hypothesis("padding", text, prediction)


def _other_pads(top: int, left: int, bottom: int, right: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (top, bottom, left, right) that can give the same shape: wrong in one axis, or in both alike.

    With a stride the last row may go unread, so one pad less can give the same shape.
    """

    def splits(total: int) -> list[tuple[int, int]]:
        return [(first, size - first) for size in (total, total - 1) for first in range(size + 1)]

    for vertical, horizontal in product(splits(top + bottom), splits(left + right)):
        right_one = (vertical == (top, bottom)) + (horizontal == (left, right))
        if right_one == 1 or (right_one == 0 and vertical == horizontal):
            yield (*vertical, *horizontal)


def _counting(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    node = case.graph.nodes[index]
    counted = int(attributes_of(node).get("count_include_pad", 0))
    text = f"{label} {'leaves padding out of' if counted else 'counts padding in'} its averages"
    changed = with_attributes(node, count_include_pad=1 - counted)
    yield Hypothesis("padding", text, case.run(nodes={index: changed}))


def _bias(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    node = case.graph.nodes[index]
    bias = weight_of(case, node, 2)
    if bias is not None and bias.any():
        prediction = case.run(weights={node.input[2]: np.zeros_like(bias)})
        yield Hypothesis("bias", f"the bias of {label} is missing", prediction)


def _kernel(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    node = case.graph.nodes[index]
    weight = weight_of(case, node, 1)
    if weight is None or weight.ndim != 4 or max(weight.shape[2:]) == 1:
        return
    changes = {
        "flipped in both axes": weight[:, :, ::-1, ::-1],
        "flipped top to bottom": weight[:, :, ::-1],
        "flipped left to right": weight[:, :, :, ::-1],
    }
    if weight.shape[2] == weight.shape[3]:
        changes["transposed"] = weight.swapaxes(2, 3)
    for how, changed in changes.items():
        prediction = case.run(weights={node.input[1]: np.ascontiguousarray(changed)})
        yield Hypothesis("kernel", f"the kernel of {label} is {how}", prediction)


def _filters(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    """Yield swaps of two filters: each reads its own input channels where the convolution is grouped."""
    node = case.graph.nodes[index]
    weight, bias = weight_of(case, node, 1), weight_of(case, node, 2)
    wrong = wrong_channels(case) if case.expected.ndim > 1 else np.zeros(0, np.intp)
    if weight is None or not 2 <= wrong.size <= NAMED or case.expected.shape[1] != weight.shape[0]:
        return
    for i, j in combinations(wrong, 2):
        order = np.arange(weight.shape[0])
        order[[i, j]] = order[[j, i]]
        both = {node.input[1]: weight[order]} | ({} if bias is None else {node.input[2]: bias[order]})
        text = f"the filters of output channels {i} and {j} of {label} are swapped"
        yield Hypothesis("channels permuted", text, case.run(weights=both))
        if bias is not None:
            text = f"the weights of output channels {i} and {j} of {label} are swapped, their biases are not"
            yield Hypothesis("channels permuted", text, case.run(weights={node.input[1]: weight[order]}))


def _operands(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    node = case.graph.nodes[index]
    names = list(node.input)
    if len(names) > 3:
        return
    for order in permutations(range(len(names))):
        if list(order) != sorted(order):
            changed = with_attributes(node)
            del changed.input[:]
            changed.input.extend(names[position] for position in order)
            text = f"the operands of {label} come in the order {[position + 1 for position in order]}"
            yield Hypothesis("operands", text, case.run(nodes={index: changed}))


def _planes(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    """Yield the input channels of a dense convolution with a spatial kernel and few inputs, as a stem has."""
    node = case.graph.nodes[index]
    weight = weight_of(case, node, 1)
    if weight is None or max(weight.shape[2:]) == 1 or not 1 < weight.shape[1] <= _MANY:
        return
    for k in range(weight.shape[1]):
        changed = weight.copy()
        changed[:, k] = 0
        text = f"input channel {k} of {label} contributes nothing: its weights are missing"
        yield Hypothesis("input channel", text, case.run(weights={node.input[1]: changed}))
