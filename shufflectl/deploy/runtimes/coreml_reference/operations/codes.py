"""What gives codes, and what codes give."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import Tensor

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder, Built

__all__ = ["OPERATIONS"]

_CODES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType({"int8": (-128, 127), "uint8": (0, 255)})


def _codes_of(op: Operation) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return what gives the scale and the zero point in a shape that broadcasts with a tensor."""
    # Not op.tensor, which gives a scalar an axis.
    scale = torch.tensor(op.constant("scale").astype(np.float32))
    zero = torch.zeros(scale.shape)
    if op.has("zero_point"):
        zero = torch.tensor(op.constant("zero_point").astype(np.float32))
    if scale.ndim > 1 or zero.shape != scale.shape or not bool(((scale > 0) & scale.isfinite()).all()):
        raise op.damaged("has a scale and a zero point that do not make sense")
    axis = op.integer("axis") if scale.ndim else 0

    def along(values: Tensor) -> Callable[[Tensor], Tensor]:
        def broadcast(x: Tensor) -> Tensor:
            if values.ndim == 0:
                return values
            if not -x.ndim <= axis < x.ndim or len(values) != x.shape[axis]:
                raise op.damaged(f"has {len(values)} scales for axis {axis} of {list(x.shape)}")
            return values.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])

        return broadcast

    return along(scale), along(zero)


def _quantize(op: Operation) -> Built:
    scale, zero = _codes_of(op)
    kind = op.text("output_dtype")
    if kind not in _CODES:
        raise op.damaged(f"has codes of type {kind}")
    low, high = _CODES[kind]

    def compute(x: Tensor) -> Tensor:
        steps = torch.round(x / scale(x)) + zero(x)  # half to even
        return steps.nan_to_num(0.0, high, low).clamp(low, high).to(torch.int32)

    return compute, [op.argument("input")]


def _dequantize(op: Operation) -> Built:
    scale, zero = _codes_of(op)
    return lambda x: (x.float() - zero(x)) * scale(x), [op.argument("input")]


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "dequantize": _dequantize,
        "quantize": _quantize,
    }
)
