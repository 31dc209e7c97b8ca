"""What each MIL operation computes: one table, one builder an operation.

A builder reads an `Operation` once, when the program is loaded, and returns a closure over tensors and its
operands. Floats are held in fp32 whatever the program's type, and a closure computes in fp32; the session
rounds each result that the program declares as fp16 (`runtime`). Operations in `EXACT` give values that
their inputs already have.

What the definition of an operation leaves open on devices is refused, not guessed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shufflectl.deploy.runtimes.coreml_reference.operation import Argument, Compute, Operation, room

__all__ = ["EXACT", "OPERATIONS", "Builder"]

Built = tuple[Compute, list[Argument]]
Builder = Callable[[Operation], Built]


# --- convolution and matrices ---------------------------------------------------------------------


def _padding(
    op: Operation,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Return the padding before and after each spatial dimension, by ``pad_type``."""
    kind = op.text("pad_type", "valid")
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "custom":
        pad = op.integers("pad", [0] * 2 * len(kernel))
        if len(pad) != 2 * len(kernel) or min(pad) < 0:
            raise op.damaged(f"has padding {pad}")
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(kernel))]
    if kind not in ("same", "same_lower"):
        raise op.damaged(f"has an unknown pad_type {kind!r}")
    pairs = []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if kind == "same" else (large, small))
    return pairs


def _pad_spatial(x: Tensor, pairs: Sequence[tuple[int, int]], value: float) -> Tensor:
    if not any(before or after for before, after in pairs):
        return x
    # torch lists the last dimension first.
    flat = [p for pair in reversed(pairs) for p in pair]
    room([d + sum(pair) for d, pair in zip(x.shape[-len(pairs) :], pairs, strict=True)], "padding")
    return functional.pad(x, flat, value=value)


def _strides(op: Operation, name: str, rank: int) -> list[int]:
    values = op.integers(name, [1] * rank)
    if len(values) != rank or min(values) < 1:
        raise op.damaged(f"has {name} {values}")
    return values


def _conv(op: Operation) -> Built:
    weight = op.tensor("weight")
    rank = weight.ndim - 2
    if rank not in (1, 2, 3):
        raise op.damaged(f"has a weight of rank {weight.ndim}")
    bias = op.tensor("bias") if op.has("bias") else None
    strides, dilations = _strides(op, "strides", rank), _strides(op, "dilations", rank)
    groups = op.integer("groups", 1)
    if groups < 1 or weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        raise op.damaged("has a weight, a bias and groups that do not fit")
    kernel = list(weight.shape[2:])
    convolve: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]

    def compute(x: Tensor) -> Tensor:
        pairs = _padding(op, x.shape[2:], kernel, strides, dilations)
        padded = [size + sum(pair) for size, pair in zip(x.shape[2:], pairs, strict=True)]
        room([*x.shape[:2], *padded], f"conv {op.name!r}")
        padding = [before for before, _ in pairs]
        if any(before != after for before, after in pairs):
            x, padding = _pad_spatial(x, pairs, 0.0), [0] * rank
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


# --- pooling and reductions -----------------------------------------------------------------------


def _pool_windows(
    op: Operation, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the padding, and how far the last window of ``ceil_mode`` reaches past it, by dimension."""
    pairs = _padding(op, sizes, kernel, strides, [1] * len(kernel))
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
    return kernel, _strides(op, "strides", len(kernel))


def _max_pool(op: Operation) -> Built:
    kernel, strides = _pool_sizes(op)
    rank = len(kernel)
    window, step = ([1, *kernel], [1, *strides]) if rank == 1 else (kernel, strides)
    function: Any = functional.max_pool3d if rank == 3 else functional.max_pool2d
    pool = _as_2d(lambda x: function(x, window, step), rank)

    def compute(x: Tensor) -> Tensor:
        pairs, overhang = _pool_windows(op, x.shape[2:], kernel, strides)
        reach = [(before, after + extra) for (before, after), extra in zip(pairs, overhang, strict=True)]
        return pool(_pad_spatial(x, reach, -math.inf))

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
                counted = _pad_spatial(counted, pairs, 1.0)
                counted = _pad_spatial(counted, [(0, extra) for extra in overhang], 0.0)
            else:
                counted = _pad_spatial(counted, reach, 0.0)
            divisors.clear()
            divisors[spatial] = total(counted)
        return total(_pad_spatial(x, reach, 0.0)) / divisors[spatial]

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


# --- elementwise ----------------------------------------------------------------------------------


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


# --- codes ----------------------------------------------------------------------------------------

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


# --- data movement --------------------------------------------------------------------------------


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
        return lambda x: _pad_spatial(x, pairs, value), [op.argument("x")]
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


# --- resizing -------------------------------------------------------------------------------------


def _grid(mode: str, source: int, target: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the input positions that each output samples, as MIL's ``resize_bilinear`` documents them."""
    out = np.arange(target, dtype=np.float64)
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and target > 1):
        points = out * ((source - 1) / (target - 1)) if target > 1 else np.zeros(1)
    elif mode == "ALIGN_CORNERS":
        points = np.array([(source - 1) / 2])
    elif mode == "DEFAULT":
        # (Xin - Xin / Xout) / (Xout - 1) is Xin / Xout.
        points = out * (source / target)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, source - 1) / target
        points = 0.5 * delta + out * delta
    else:  # UNALIGN_CORNERS
        points = out * (source / target) + 0.5 * source / target - 0.5
    return np.clip(points, 0, source - 1)


_SAMPLING: Final = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def _bilinear(x: Tensor, sizes: Sequence[int], mode: str) -> Tensor:
    """Interpolate the last two dimensions."""
    room([*x.shape[:-2], *sizes], "resize")
    for axis, target in zip((-2, -1), sizes, strict=True):
        points = _grid(mode, x.shape[axis], target)
        low = np.floor(points).astype(np.int64)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        shape = [-1, 1] if axis == -2 else [-1]
        weight = torch.from_numpy((points - low).astype(np.float32)).reshape(shape)
        left = x.index_select(axis, torch.from_numpy(low))
        right = x.index_select(axis, torch.from_numpy(high))
        x = left + (right - left) * weight
    return x


def _repeat(op: Operation, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Repeat rows and columns whole times, where all conventions of nearest neighbours agree."""
    room([*x.shape[:-2], *sizes], "resize")
    for axis, target in zip((-2, -1), sizes, strict=True):
        if target % x.shape[axis]:
            raise op.refuse("which neighbour is nearest is only certain for whole factors")
        x = x.repeat_interleave(target // x.shape[axis], axis)
    return x


def _scaled(op: Operation, x: Tensor) -> list[int]:
    factors = [op.number(f"scale_factor_{side}", 1) for side in ("height", "width")]
    if not all(0 < factor <= 1 << 16 for factor in factors):
        raise op.damaged(f"has scale factors {factors}")
    return [math.floor(size * factor) for size, factor in zip(x.shape[-2:], factors, strict=True)]


def _upsample_nearest_neighbor(op: Operation) -> Built:
    return lambda x: _repeat(op, x, _scaled(op, x)), [op.argument("x")]


def _upsample_bilinear(op: Operation) -> Built:
    aligned = op.flag("align_corners", default=True)
    centred = op.flag("half_pixel_centers", default=not aligned)
    if aligned and centred:
        raise op.damaged("aligns the corners and samples pixel centres at once")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return lambda x: _bilinear(x, _scaled(op, x), mode), [op.argument("x")]


def _target(op: Operation) -> list[int]:
    sizes = [op.integer(f"target_size_{side}", 1) for side in ("height", "width")]
    if min(sizes) < 1:
        raise op.damaged(f"has a target size of {sizes}")
    return sizes


def _sampling_mode(op: Operation) -> str:
    mode = op.text("sampling_mode", "DEFAULT")
    if mode not in _SAMPLING:
        raise op.damaged(f"has an unknown sampling_mode {mode!r}")
    return mode


def _resize_bilinear(op: Operation) -> Built:
    sizes, mode = _target(op), _sampling_mode(op)
    return lambda x: _bilinear(x, sizes, mode), [op.argument("x")]


def _resize_nearest_neighbor(op: Operation) -> Built:
    sizes = _target(op)
    return lambda x: _repeat(op, x, sizes), [op.argument("x")]


def _resize(op: Operation) -> Built:
    shape, resized = op.integers("shape"), op.integer("resized_dims")
    interpolation, mode = op.text("interpolation_mode", "LINEAR"), _sampling_mode(op)
    if resized != 2 or len(shape) < 2 or interpolation not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise op.refuse("only the last two dimensions can be resized")

    def compute(x: Tensor) -> Tensor:
        sizes = [x.shape[axis] if shape[axis] == 0 else shape[axis] for axis in (-2, -1)]
        return _bilinear(x, sizes, mode) if interpolation == "LINEAR" else _repeat(op, x, sizes)

    return compute, [op.argument("x")]


def _rows(builder: Callable[..., Built], functions: Mapping[str, Any]) -> dict[str, Builder]:
    """Return the rows of operations that differ in one function alone."""
    return {name: partial(builder, function=function) for name, function in functions.items()}


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "avg_pool": _avg_pool,
        "batch_norm": _batch_norm,
        "cast": _cast,
        "clip": _clip,
        "concat": _concat,
        "conv": _conv,
        "dequantize": _dequantize,
        "elu": _elu,
        "expand_dims": _expand_dims,
        "flatten2d": _flatten2d,
        "gather": _gather,
        "gelu": _gelu,
        "identity": partial(_unary, function=lambda x: x),
        "instance_norm": _instance_norm,
        "inverse": partial(_with_epsilon, function=torch.reciprocal, default=1e-4),
        "layer_norm": _layer_norm,
        "leaky_relu": _leaky_relu,
        "linear": _linear,
        "linear_activation": _linear_activation,
        "log": partial(_with_epsilon, function=torch.log, default=1e-45),
        "matmul": _matmul,
        "max_pool": _max_pool,
        "pad": _pad,
        "pixel_shuffle": _pixel_shuffle,
        "prelu": _prelu,
        "quantize": _quantize,
        "reshape": _reshape,
        "resize": _resize,
        "resize_bilinear": _resize_bilinear,
        "resize_nearest_neighbor": _resize_nearest_neighbor,
        "rsqrt": partial(_with_epsilon, function=torch.rsqrt, default=1e-12),
        "select": _select,
        "shape": _shape,
        "sigmoid_hard": _sigmoid_hard,
        "slice_by_index": _slice_by_index,
        "slice_by_size": _slice_by_size,
        "softmax": _softmax,
        "split": _split,
        "squeeze": _squeeze,
        "stack": _stack,
        "tile": _tile,
        "transpose": _transpose,
        "upsample_bilinear": _upsample_bilinear,
        "upsample_nearest_neighbor": _upsample_nearest_neighbor,
        **_rows(
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
        **_rows(
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
        **_rows(
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
        **_rows(_reduce_arg, {"reduce_argmax": torch.argmax, "reduce_argmin": torch.argmin}),
    }
)

EXACT: Final = frozenset(
    {
        "abs",
        "concat",
        "expand_dims",
        "flatten2d",
        "gather",
        "identity",
        "max_pool",
        "maximum",
        "minimum",
        "pixel_shuffle",
        "reduce_max",
        "reduce_min",
        "relu",
        "reshape",
        "resize_nearest_neighbor",
        "select",
        "slice_by_index",
        "slice_by_size",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
        "upsample_nearest_neighbor",
    }
)
"""Operations whose results are among their inputs' values: rounding to fp16 would change nothing."""
