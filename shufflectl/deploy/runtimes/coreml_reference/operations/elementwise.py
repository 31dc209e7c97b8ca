"""What operations compute that take each element by itself; activations are among them."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation, room
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder, Built, rows

__all__ = ["OPERATIONS"]


def _unary(op: Operation, function: Callable[[Tensor], Tensor]) -> Built:
    return function, [op.argument("x")]


def _binary(op: Operation, function: Callable[[Tensor, Tensor], Tensor]) -> Built:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape:
            room(np.broadcast_shapes(x.shape, y.shape), f"{op.type} {op.name!r}")
        return function(x, y)

    return compute, [op.argument("x"), op.argument("y")]


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.true_divide(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _select(op: Operation) -> Built:
    def compute(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
        room(np.broadcast_shapes(cond.shape, a.shape, b.shape), f"select {op.name!r}")
        return torch.where(cond, a, b)

    return compute, [op.argument("cond"), op.argument("a"), op.argument("b")]


def _clip(op: Operation) -> Built:
    low, high = op.number("alpha"), op.number("beta")
    return lambda x: x.clamp(low, high), [op.argument("x")]


def _leaky_relu(op: Operation) -> Built:
    alpha = op.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha), [op.argument("x")]


def _elu(op: Operation) -> Built:
    alpha = op.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha), [op.argument("x")]


def _prelu(op: Operation) -> Built:
    alpha = op.tensor("alpha").reshape(-1)
    return lambda x: functional.prelu(x, alpha), [op.argument("x")]


def _sigmoid_hard(op: Operation) -> Built:
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    return lambda x: (x * alpha + beta).clamp(0, 1), [op.argument("x")]


def _linear_activation(op: Operation) -> Built:
    alpha, beta = op.number("alpha"), op.number("beta", 0.0)
    return lambda x: x * alpha + beta, [op.argument("x")]


def _softmax(op: Operation) -> Built:
    axis = op.integer("axis", -1)
    return lambda x: functional.softmax(x, axis), [op.argument("x")]


def _gelu(op: Operation) -> Built:
    mode = op.text("mode", "EXACT")
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "EXACT": functional.gelu,
        "TANH_APPROXIMATION": partial(functional.gelu, approximate="tanh"),
        "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
    }
    if mode not in functions:
        raise op.damaged(f"has an unknown mode {mode!r}")
    return functions[mode], [op.argument("x")]


def _with_epsilon(op: Operation, function: Callable[[Tensor], Tensor], default: float) -> Built:
    epsilon = op.number("epsilon", default)
    return lambda x: function(x + epsilon), [op.argument("x")]


_INTEGERS: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8}
)


def _cast(op: Operation) -> Built:
    kind = op.text("dtype")
    if kind in ("fp16", "fp32"):
        # The session rounds to fp16.
        function: Callable[[Tensor], Tensor] = lambda x: x.to(torch.float32)  # noqa: E731 - one case of several
    elif kind == "bool":
        function = lambda x: x != 0  # noqa: E731 - one case of several
    elif kind == "uint16":
        function = lambda x: x.to(torch.int32) & 0xFFFF  # noqa: E731 - one case of several
    elif kind in _INTEGERS:
        wanted = _INTEGERS[kind]
        function = lambda x: x.to(wanted).to(torch.int32)  # noqa: E731 - one case of several
    else:
        raise op.refuse(f"there are no tensors of type {kind}")
    return function, [op.argument("x")]


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "cast": _cast,
        "clip": _clip,
        "elu": _elu,
        "gelu": _gelu,
        "identity": partial(_unary, function=lambda x: x),
        "inverse": partial(_with_epsilon, function=torch.reciprocal, default=1e-4),
        "leaky_relu": _leaky_relu,
        "linear_activation": _linear_activation,
        "log": partial(_with_epsilon, function=torch.log, default=1e-45),
        "prelu": _prelu,
        "rsqrt": partial(_with_epsilon, function=torch.rsqrt, default=1e-12),
        "select": _select,
        "sigmoid_hard": _sigmoid_hard,
        "softmax": _softmax,
        **rows(
            _unary,
            {
                "abs": torch.abs,
                "ceil": torch.ceil,
                "cos": torch.cos,
                "erf": torch.erf,
                "exp": torch.exp,
                "exp2": torch.exp2,
                "floor": torch.floor,
                "logical_not": torch.logical_not,
                "relu": torch.relu,
                "relu6": functional.relu6,
                "round": torch.round,
                "sigmoid": torch.sigmoid,
                "sign": torch.sign,
                "silu": functional.silu,
                "sin": torch.sin,
                "softplus": functional.softplus,
                "softsign": functional.softsign,
                "sqrt": torch.sqrt,
                "square": torch.square,
                "tanh": torch.tanh,
            },
        ),
        **rows(
            _binary,
            {
                "add": torch.add,
                "equal": torch.eq,
                "floor_div": torch.floor_divide,
                "greater": torch.gt,
                "greater_equal": torch.ge,
                "less": torch.lt,
                "less_equal": torch.le,
                "logical_and": torch.logical_and,
                "logical_or": torch.logical_or,
                "maximum": torch.maximum,
                "minimum": torch.minimum,
                "mul": torch.mul,
                "not_equal": torch.ne,
                "pow": torch.pow,
                "real_div": _divide,
                "sub": torch.sub,
            },
        ),
    }
)
