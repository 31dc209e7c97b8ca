"""What operations compute that move elements."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation, room
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder, Built
from shufflectl.deploy.runtimes.coreml_reference.operations.windows import pad_spatial

__all__ = ["OPERATIONS"]


def _concat(op: Operation) -> Built:
    axis = op.integer("axis")
    if not op.flag("interleave", default=False):
        return lambda *values: torch.cat(values, axis), op.arguments("values")

    def interleave(*values: Tensor) -> Tensor:
        at = axis % values[0].ndim
        # n x [.., C, ..] -> [.., C, n, ..] -> [.., C * n, ..]: first channel of each, second of each, ...
        return torch.stack(values, at + 1).flatten(at, at + 1)

    return interleave, op.arguments("values")


def _split(op: Operation) -> Built:
    axis = op.integer("axis")
    sizes = op.integers("split_sizes", ())
    count = len(op.outputs)

    def compute(x: Tensor) -> tuple[Tensor, ...]:
        total = x.shape[axis]
        if not sizes and total % count:
            raise op.damaged(f"splits {total} into {count} equal parts")
        return torch.split(x, sizes or [total // count] * count, axis)

    return compute, [op.argument("x")]


def _stack(op: Operation) -> Built:
    axis = op.integer("axis")
    return lambda *values: torch.stack(values, axis), op.arguments("values")


def _slice_by_index(op: Operation) -> Built:
    strides = op.integers("stride", ())
    begin_mask, end_mask, squeeze_mask = (op.flags(f"{k}_mask", ()) for k in ("begin", "end", "squeeze"))

    def compute(x: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        first, last = begin.reshape(-1).tolist(), end.reshape(-1).tolist()
        squeezed = []
        for axis in range(x.ndim):
            size = x.shape[axis]
            step = strides[axis] if strides else 1
            start = None if begin_mask and begin_mask[axis] else first[axis]
            stop = None if end_mask and end_mask[axis] else last[axis]
            if squeeze_mask and squeeze_mask[axis]:
                index = first[axis] % size
                x = x.narrow(axis, index, 1)
                squeezed.append(axis)
                continue
            where = range(*slice(start, stop, step).indices(size))
            if step == 1:
                x = x.narrow(axis, where.start, len(where))
            else:
                x = x.index_select(axis, torch.tensor(list(where), dtype=torch.int64))
        return x.squeeze(squeezed) if squeezed else x

    return compute, [op.argument("x"), op.argument("begin"), op.argument("end")]


def _slice_by_size(op: Operation) -> Built:
    def compute(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
        for axis, (first, length) in enumerate(
            zip(begin.reshape(-1).tolist(), size.reshape(-1).tolist(), strict=True)
        ):
            start = first + x.shape[axis] if first < 0 else first
            x = x.narrow(axis, start, x.shape[axis] - start if length < 0 else length)
        return x

    return compute, [op.argument("x"), op.argument("begin"), op.argument("size")]


def _reshape(op: Operation) -> Built:
    def compute(x: Tensor, shape: Tensor) -> Tensor:
        wanted = shape.reshape(-1).tolist()
        # A zero copies the input's dimension where the rank stays the same (documented for MIL's reshape).
        if 0 in wanted and len(wanted) == x.ndim and x.numel():
            wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
        return x.reshape(wanted)

    return compute, [op.argument("x"), op.argument("shape")]


def _transpose(op: Operation) -> Built:
    perm = op.integers("perm")
    return lambda x: x.permute(perm), [op.argument("x")]


def _squeeze(op: Operation) -> Built:
    axes = op.integers("axes", ())
    return lambda x: x.squeeze(axes) if axes else x.squeeze(), [op.argument("x")]


def _expand_dims(op: Operation) -> Built:
    axes = op.integers("axes")

    def compute(x: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return x

    return compute, [op.argument("x")]


def _flatten2d(op: Operation) -> Built:
    axis = op.integer("axis", 1)
    return (
        lambda x: x.reshape(
            math.prod(x.shape[: axis % (x.ndim + 1)]), math.prod(x.shape[axis % (x.ndim + 1) :])
        ),
        [op.argument("x")],
    )


def _pad(op: Operation) -> Built:
    mode = op.text("mode", "constant")
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}
    if mode not in modes:
        raise op.damaged(f"has an unknown mode {mode!r}")
    pads = op.integers("pad")
    if len(pads) % 2 or min(pads, default=0) < 0:
        raise op.damaged(f"has padding {pads}")
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
    value = op.number("constant_val", 0.0)
    if mode == "constant":
        return lambda x: pad_spatial(x, pairs, value), [op.argument("x")]
    if any(before or after for before, after in pairs[:-2]):
        raise op.refuse(f"mode {mode} on a dimension before the last two")
    index = _reflected if mode == "reflect" else _replicated

    def compute(x: Tensor) -> Tensor:
        for axis, (before, after) in zip(range(-len(pairs), 0), pairs, strict=True):
            if before or after:
                size = x.shape[axis]
                if max(before, after) > size - (mode == "reflect"):
                    raise op.damaged(f"pads a dimension of {size} by {max(before, after)} in mode {mode}")
                x = x.index_select(axis, index(size, before, after))
        return x

    return compute, [op.argument("x")]


def _reflected(size: int, before: int, after: int) -> Tensor:
    position = torch.arange(-before, size + after).abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)


def _replicated(size: int, before: int, after: int) -> Tensor:
    return torch.arange(-before, size + after).clamp(0, size - 1)


def _gather(op: Operation) -> Built:
    axis = op.integer("axis", 0)
    if op.integer("batch_dims", 0):
        raise op.refuse("it gathers by batch")

    def compute(x: Tensor, indices: Tensor) -> Tensor:
        at = axis % x.ndim
        size = x.shape[at]
        where = indices.reshape(-1).to(torch.int64)
        if where.numel() and (int(where.min()) < -size or int(where.max()) >= size):
            raise op.damaged(f"reads outside a dimension of {size}")
        shape = [*x.shape[:at], *indices.shape, *x.shape[at + 1 :]]
        room(shape, f"gather {op.name!r}")
        return x.index_select(at, where % size).reshape(shape)

    return compute, [op.argument("x"), op.argument("indices")]


def _tile(op: Operation) -> Built:
    reps = op.integers("reps")

    def compute(x: Tensor) -> Tensor:
        room([d * r for d, r in zip(x.shape, reps, strict=True)], f"tile {op.name!r}")
        return x.repeat(*reps)

    return compute, [op.argument("x")]


def _shape(op: Operation) -> Built:
    return lambda x: torch.tensor(x.shape, dtype=torch.int32), [op.argument("x")]


def _pixel_shuffle(op: Operation) -> Built:
    factor = op.integer("upscale_factor")
    return lambda x: functional.pixel_shuffle(x, factor), [op.argument("x")]


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "concat": _concat,
        "expand_dims": _expand_dims,
        "flatten2d": _flatten2d,
        "gather": _gather,
        "pad": _pad,
        "pixel_shuffle": _pixel_shuffle,
        "reshape": _reshape,
        "shape": _shape,
        "slice_by_index": _slice_by_index,
        "slice_by_size": _slice_by_size,
        "split": _split,
        "squeeze": _squeeze,
        "stack": _stack,
        "tile": _tile,
        "transpose": _transpose,
    }
)
