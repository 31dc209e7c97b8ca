"""Windows of convolutions and poolings: their padding and their strides."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation, room

__all__ = ["pad_spatial", "padding_of", "strides_of"]


def padding_of(
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


def pad_spatial(x: Tensor, pairs: Sequence[tuple[int, int]], value: float) -> Tensor:
    """Return a tensor with a value before and after each of its last dimensions."""
    if not any(before or after for before, after in pairs):
        return x
    # torch lists the last dimension first.
    flat = [p for pair in reversed(pairs) for p in pair]
    room([d + sum(pair) for d, pair in zip(x.shape[-len(pairs) :], pairs, strict=True)], "padding")
    return functional.pad(x, flat, value=value)


def strides_of(op: Operation, name: str, rank: int) -> list[int]:
    """Return the strides, or the dilations, of each spatial dimension; 1 where the operation says none."""
    values = op.integers(name, [1] * rank)
    if len(values) != rank or min(values) < 1:
        raise op.damaged(f"has {name} {values}")
    return values
