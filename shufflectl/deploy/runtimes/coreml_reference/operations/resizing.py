"""What operations compute that resize maps."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation, room
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder, Built

__all__ = ["OPERATIONS"]


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


OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "resize": _resize,
        "resize_bilinear": _resize_bilinear,
        "resize_nearest_neighbor": _resize_nearest_neighbor,
        "upsample_bilinear": _upsample_bilinear,
        "upsample_nearest_neighbor": _upsample_nearest_neighbor,
    }
)
