"""Causes in the weight columns of a pointwise or dense layer: missing, scaled, wrong, or swapped."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from shufflectl.deploy.parity.case import Array, Case
from shufflectl.deploy.parity.causes.hypothesis import Hypothesis
from shufflectl.deploy.parity.causes.nodes import attributes_of, weight_of
from shufflectl.deploy.parity.causes.words import listed

__all__ = ["columns"]


def columns(case: Case, index: int, label: str) -> Iterator[Hypothesis]:
    """Yield the input channels whose weights would explain the difference.

    Where the layer is linear (before its activation, at the positions that the activation lets through) a
    wrong weight column leaves a difference of rank one: column times input channel. Projections on all
    columns at once find the likeliest ones; each is then tried by executing the layer with it.
    """
    node = case.graph.nodes[index]
    weight = weight_of(case, node, 1)
    found = _linear(case, node, weight)
    if weight is None or found is None:
        return
    matrix, inputs, delta, active = found  # [O, K], [K, P], [O, P], [O, P]
    axis = _input_axis(node, weight)
    response = delta @ inputs.T  # [O, K]
    energy = np.square(inputs).sum(1) + 1e-300
    columns = np.square(matrix).sum(0) + 1e-300
    projected = matrix.T @ response  # [K, K]: column i with input j

    def tried(changed: NDArray[Any], text: str, freedom: int = 0) -> Hypothesis:
        values = np.ascontiguousarray(changed.astype(weight.dtype))
        return Hypothesis("input channel", text, case.run(weights={node.input[1]: values}), freedom)

    def replaced(channels: Sequence[int], values: NDArray[Any]) -> NDArray[Any]:
        changed = np.moveaxis(weight.copy(), axis, 0)
        changed[list(channels)] = values
        return np.moveaxis(changed, 0, axis)

    front = np.moveaxis(weight, axis, 0)
    gain = np.diag(projected) ** 2 / (columns * energy)
    for k in _largest(gain, 3):
        text = f"input channel {k} of {label} contributes nothing: its weight column is missing"
        yield tried(replaced([k], np.zeros_like(front[k])), text)
        share = np.outer(matrix[:, k], inputs[k]) * active
        factor = 1 + float((delta * share).sum() / max(float(np.square(share).sum()), 1e-300))
        text = f"the weight column of input channel {k} of {label} is multiplied by {factor:.4g}"
        yield tried(replaced([k], front[k] * factor), text, 1)

    between = np.square(matrix).sum(0)[:, None] + columns[None] - 2 * matrix.T @ matrix
    apart = energy[:, None] + energy[None] - 2 * inputs @ inputs.T
    diagonal = np.diag(projected)
    score = projected + projected.T - diagonal[:, None] - diagonal[None]
    swap = np.where((between > 1e-12) & (apart > 1e-12) & (score > 0), score, 0.0) ** 2
    swap = np.triu(swap / np.maximum(between * apart, 1e-300), 1)
    for flat in _largest(swap.ravel(), 3):
        i, j = divmod(flat, swap.shape[1])
        text = f"input channels {i} and {j} of {label} are swapped"
        yield tried(replaced([i, j], front[[j, i]]), text)

    for k in _largest(np.square(response).sum(0) / energy, 3):
        shift = response[:, k] / np.maximum(active @ np.square(inputs[k]), 1e-300)
        hit = np.flatnonzero(np.abs(shift) > 1e-3 * np.abs(shift).max())
        if hit.size == 1:
            text = f"the weight from input channel {k} to output channel {hit[0]} of {label} is wrong"
            text += f" by {shift[hit[0]]:.4g}"
        else:
            where = listed("output channel", hit)
            text = f"the weight column of input channel {k} of {label} is wrong in {where}"
        yield tried(replaced([k], front[k] + shift.reshape(front[k].shape)), text, 1 if hit.size == 1 else 2)


def _largest(scores: Array, count: int) -> list[int]:
    finite = np.where(np.isfinite(scores), scores, 0.0)
    return [int(index) for index in np.argsort(-finite, kind="stable")[:count] if finite[index] > 0]


def _input_axis(node: onnx.NodeProto, weight: NDArray[Any]) -> int:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attributes_of(node).get("transB", 0)):
        return 1
    return weight.ndim - 2


def _linear(
    case: Case, node: onnx.NodeProto, weight: NDArray[Any] | None
) -> tuple[Array, Array, Array, Array] | None:
    """Return a layer's weights ``[O, K]``, inputs ``[K, P]``, differences ``[O, P]`` and which of them count.

    None where the layer is not one pointwise or dense product (before one activation).
    """
    inside = case.last.input[0] if case.last.op_type in ("Relu", "Clip") else case.segment.tensor
    if weight is None or inside != node.output[0]:
        return None
    attributes = attributes_of(node)
    if node.op_type == "Conv":
        if weight.ndim != 4 or weight.shape[2:] != (1, 1) or attributes.get("group", 1) != 1:
            return None
        if any(attributes.get("pads", [])):
            return None
        down, across = attributes.get("strides", [1, 1])
        source = case.tensor(node.input[0])[:, :, ::down, ::across]
        matrix = weight[:, :, 0, 0]
        inputs = np.moveaxis(source, 1, 0).reshape(source.shape[1], -1)
    else:
        source = case.tensor(node.input[0])
        if weight.ndim != 2 or source.ndim != 2 or attributes.get("transA", 0):
            return None
        matrix = weight if _input_axis(node, weight) == 1 else weight.T
        inputs = source.T
    linear = case.expected if inside == case.segment.tensor else case.tensor(inside)

    def rows(values: Array) -> Array:
        return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)

    held = rows(case.actual)
    if inside == case.segment.tensor:
        active = np.ones(held.shape)
    else:
        high = float(held.max()) if case.last.op_type == "Clip" else math.inf
        active = ((held > held.min()) & (held < high)).astype(np.float64)
    delta = (held - rows(linear)) * active
    return matrix.astype(np.float64), inputs, delta, active
