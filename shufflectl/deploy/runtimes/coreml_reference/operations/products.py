"""What convolutions, matrix products and normalisations compute."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation, room
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder, Built
from shufflectl.deploy.runtimes.coreml_reference.operations.windows import pad_spatial, padding_of, strides_of

__all__ = ["OPERATIONS"]


def _conv(op: Operation) -> Built:
    weight = op.tensor("weight")
    rank = weight.ndim - 2
    if rank not in (1, 2, 3):
        raise op.damaged(f"has a weight of rank {weight.ndim}")
    bias = op.tensor("bias") if op.has("bias") else None
    strides, dilations = strides_of(op, "strides", rank), strides_of(op, "dilations", rank)
    groups = op.integer("groups", 1)
    if groups < 1 or weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        raise op.damaged("has a weight, a bias and groups that do not fit")
    kernel = list(weight.shape[2:])
    convolve: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]

    def compute(x: Tensor) -> Tensor:
        pairs = padding_of(op, x.shape[2:], kernel, strides, dilations)
        padded = [size + sum(pair) for size, pair in zip(x.shape[2:], pairs, strict=True)]
        room([*x.shape[:2], *padded], f"conv {op.name!r}")
        padding = [before for before, _ in pairs]
        if any(before != after for before, after in pairs):
            x, padding = pad_spatial(x, pairs, 0.0), [0] * rank
        result: Tensor = convolve(x, weight, bias, strides, padding, dilations, groups)
        return result

    return compute, [op.argument("x")]


def _linear(op: Operation) -> Built:
    weight = op.tensor("weight")
    bias = op.tensor("bias") if op.has("bias") else None
    return lambda x: functional.linear(x, weight, bias), [op.argument("x")]


def _matmul(op: Operation) -> Built:
    transpose_x, transpose_y = (op.flag(f"transpose_{k}", default=False) for k in "xy")

    def compute(x: Tensor, y: Tensor) -> Tensor:
        x = x.mT if transpose_x else x
        y = y.mT if transpose_y else y
        if x.ndim > 1 and y.ndim > 1:
            batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
            room([*batch, x.shape[-2], y.shape[-1]], f"matmul {op.name!r}")
        return torch.matmul(x, y)

    return compute, [op.argument("x"), op.argument("y")]


def _batch_norm(op: Operation) -> Built:
    mean, variance = op.tensor("mean"), op.tensor("variance")
    gamma = op.tensor("gamma") if op.has("gamma") else None
    beta = op.tensor("beta") if op.has("beta") else None
    epsilon = op.number("epsilon", 1e-5)
    return (
        lambda x: functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon),
        [op.argument("x")],
    )


def _instance_norm(op: Operation) -> Built:
    gamma = op.tensor("gamma") if op.has("gamma") else None
    beta = op.tensor("beta") if op.has("beta") else None
    epsilon = op.number("epsilon", 1e-5)
    return lambda x: functional.instance_norm(x, None, None, gamma, beta, eps=epsilon), [op.argument("x")]


def _layer_norm(op: Operation) -> Built:
    axes = op.integers("axes")
    gamma = op.tensor("gamma") if op.has("gamma") else None
    beta = op.tensor("beta") if op.has("beta") else None
    epsilon = op.number("epsilon", 1e-5)

    def compute(x: Tensor) -> Tensor:
        dims = sorted(a % x.ndim for a in axes)
        centred = x - x.mean(dims, keepdim=True)
        result = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + epsilon)
        shape = [d if i in dims else 1 for i, d in enumerate(x.shape)]
        if gamma is not None:
            result = result * gamma.reshape(shape)
        return result if beta is None else result + beta.reshape(shape)

    return compute, [op.argument("x")]


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "batch_norm": _batch_norm,
        "conv": _conv,
        "instance_norm": _instance_norm,
        "layer_norm": _layer_norm,
        "linear": _linear,
        "matmul": _matmul,
    }
)
