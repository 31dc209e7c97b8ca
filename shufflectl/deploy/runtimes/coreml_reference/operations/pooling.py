"""What poolings and reductions compute."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder, Built, rows
from shufflectl.deploy.runtimes.coreml_reference.operations.windows import pad_spatial, padding_of, strides_of

__all__ = ["OPERATIONS"]


def _pool_windows(
    op: Operation, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the padding, and how far the last window of ``ceil_mode`` reaches past it, by dimension."""
    pairs = padding_of(op, sizes, kernel, strides, [1] * len(kernel))
    overhang = [0] * len(kernel)
    if op.flag("ceil_mode", default=False):
        for i, (size, window, stride, (before, after)) in enumerate(
            zip(sizes, kernel, strides, pairs, strict=True)
        ):
            outputs = (size + before + after - window + stride - 1) // stride + 1
            if (outputs - 1) * stride >= size + before and before + after > 0:
                outputs -= 1
            overhang[i] = max((outputs - 1) * stride + window - (size + before + after), 0)
    return pairs, overhang


def _as_2d(pool: Callable[[Tensor], Tensor], rank: int) -> Callable[[Tensor], Tensor]:
    """Let a 2-D pooling work on 1-D data: ``[N, C, L] -> [N, C, 1, L]``."""
    return pool if rank > 1 else lambda x: pool(x.unsqueeze(-2)).squeeze(-2)


def _pool_sizes(op: Operation) -> tuple[list[int], list[int]]:
    kernel = op.integers("kernel_sizes")
    if len(kernel) not in (1, 2, 3) or min(kernel) < 1:
        raise op.damaged(f"has kernel sizes {kernel}")
    return kernel, strides_of(op, "strides", len(kernel))


def _max_pool(op: Operation) -> Built:
    kernel, strides = _pool_sizes(op)
    rank = len(kernel)
    window, step = ([1, *kernel], [1, *strides]) if rank == 1 else (kernel, strides)
    function: Any = functional.max_pool3d if rank == 3 else functional.max_pool2d
    pool = _as_2d(lambda x: function(x, window, step), rank)

    def compute(x: Tensor) -> Tensor:
        pairs, overhang = _pool_windows(op, x.shape[2:], kernel, strides)
        reach = [(before, after + extra) for (before, after), extra in zip(pairs, overhang, strict=True)]
        return pool(pad_spatial(x, reach, -math.inf))

    return compute, [op.argument("x")]


def _avg_pool(op: Operation) -> Built:
    kernel, strides = _pool_sizes(op)
    rank = len(kernel)
    excluded = op.flag("exclude_padding_from_average", default=False)
    window, step = ([1, *kernel], [1, *strides]) if rank == 1 else (kernel, strides)
    function: Any = functional.avg_pool3d if rank == 3 else functional.avg_pool2d
    total = _as_2d(lambda x: function(x, window, step, divisor_override=1), rank)
    divisors: dict[tuple[int, ...], Tensor] = {}

    def compute(x: Tensor) -> Tensor:
        spatial = tuple(x.shape[2:])
        pairs, overhang = _pool_windows(op, spatial, kernel, strides)
        reach = [(before, after + extra) for (before, after), extra in zip(pairs, overhang, strict=True)]
        if spatial not in divisors:
            # Padding counts where it is not excluded; what ceil_mode adds to it never does.
            counted = torch.ones(1, 1, *spatial)
            if not excluded:
                counted = pad_spatial(counted, pairs, 1.0)
                counted = pad_spatial(counted, [(0, extra) for extra in overhang], 0.0)
            else:
                counted = pad_spatial(counted, reach, 0.0)
            divisors.clear()
            divisors[spatial] = total(counted)
        return total(pad_spatial(x, reach, 0.0)) / divisors[spatial]

    return compute, [op.argument("x")]


def _reduce(op: Operation, function: Callable[[Tensor, list[int], bool], Tensor]) -> Built:
    axes = op.integers("axes", ())
    keep = op.flag("keep_dims", default=False)

    def compute(x: Tensor) -> Tensor:
        return function(x, axes or list(range(x.ndim)), keep)

    return compute, [op.argument("x")]


def _reduce_arg(op: Operation, function: Callable[..., Tensor]) -> Built:
    axis, keep = op.integer("axis", -1), op.flag("keep_dims", default=False)
    return lambda x: function(x, axis, keep).to(torch.int32), [op.argument("x")]


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "avg_pool": _avg_pool,
        "max_pool": _max_pool,
        **rows(
            _reduce,
            {
                "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
                "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
                "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
                "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
                "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
                "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
                "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
            },
        ),
        **rows(_reduce_arg, {"reduce_argmax": torch.argmax, "reduce_argmin": torch.argmin}),
    }
)
