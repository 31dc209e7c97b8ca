"""How Pad is written with TFLite's operators, and what pads otherwise."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op
from numpy.typing import NDArray

from shufflectl.converters.tflite.emitter import Emitter, Handler, Site, int32
from shufflectl.converters.tflite.flatbuffer import Tensor
from shufflectl.converters.tflite.layout import Dim
from shufflectl.converters.tflite.operators.movement import box

__all__ = ["LOWEST", "OPERATORS", "pad_operator"]

LOWEST: Final = np.float32(np.finfo(np.float32).min)
"""What stands for minus infinity, which delegates do not take."""


def pad_operator(
    e: Emitter, source: Tensor, target: Tensor, pads: Sequence[tuple[int, int]], value: Any
) -> None:
    """Append PAD, or PADV2 for another value than 0, of so much before and after each axis."""
    amounts = e.constant(int32(pads), "paddings")
    if value == 0:
        e.add(Op.PAD, [source, amounts], [target], schema.PadOptionsT())
    else:
        fill = e.constant(np.asarray(value, source.dtype), "padding")
        e.add(Op.PADV2, [source, amounts, fill], [target], schema.PadV2OptionsT())


def _pad_by_gathers(
    e: Emitter, site: Site, source: Tensor, target: Tensor, pads: NDArray[np.int64], mode: str
) -> None:
    """Repeat the border (``edge``) or the other side (``wrap``): a GATHER for each axis that grows."""
    grown = [axis for axis, amounts in enumerate(pads) if amounts.any()]
    for axis in grown:
        size = source.dims[axis]
        if isinstance(size, str):
            site.refuse("an axis with no fixed size cannot be padded so")
        places = np.arange(-pads[axis, 0], size + pads[axis, 1])
        places = places.clip(0, size - 1) if mode == "edge" else places % size
        dims = [*source.dims[:axis], len(places), *source.dims[axis + 1 :]]
        made = target if axis == grown[-1] else e.inner(site, "padded", dims, source.dtype)
        index = e.constant(int32(places), "indices")
        e.add(Op.GATHER, [source, index], [made], schema.GatherOptionsT(axis=axis))
        source = made


def pad(e: Emitter, site: Site) -> None:
    """Write Pad; negative amounts cut first.

    It is PAD or PADV2 for a constant, MIRROR_PAD for a reflection, and a GATHER for each axis where the
    border or the other side is repeated.
    """
    data = e.operand(site.input(0))
    mode = site.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        site.refuse(f"mode {mode!r} is not supported", "use mode 'constant', 'reflect', 'edge' or 'wrap'")
    amounts = site.constant(1, "list of amounts").astype(np.int64)
    fill = site.optional(2, "value")
    given = site.optional(3, "list of axes")
    axes = range(data.rank) if given is None else [int(a) % data.rank for a in given]
    pads = np.zeros((data.rank, 2), np.int64)
    for i, axis in enumerate(axes):
        pads[axis] = amounts[i], amounts[i + len(axes)]
    value = 0 if fill is None or fill.size == 0 else fill.item()
    if not math.isfinite(value):
        value = float(np.clip(value, LOWEST, -LOWEST))
        site.refuse("an infinite value is not supported", f"use {value} instead")
    order = e.common_order([data])
    source = e.settle(data, order)
    cut, grow = np.maximum(-pads, 0)[list(order)], np.maximum(pads, 0)[list(order)]
    if cut.any():
        dims: list[Dim] = []
        for size, (low, high) in zip(source.dims, cut, strict=True):
            if isinstance(size, str) and (low or high):
                site.refuse("an axis with no fixed size cannot be cut")
            dims.append(size if isinstance(size, str) else size - int(low) - int(high))
        last = not grow.any()
        kept = e.result(site.output, order) if last else e.inner(site, "cut", dims, data.dtype)
        box(e, source, kept, [int(low) for low in cut[:, 0]], dims)
        source = kept
        if last:
            return
    if not grow.any():
        e.alias(site.output, data)
        return
    target = e.result(site.output, order)
    if mode in ("edge", "wrap"):
        _pad_by_gathers(e, site, source, target, grow, mode)
    elif mode == "reflect":
        amount = e.constant(int32(grow), "paddings")
        options = schema.MirrorPadOptionsT(mode=schema.MirrorPadMode.REFLECT)
        e.add(Op.MIRROR_PAD, [source, amount], [target], options)
    else:
        pad_operator(e, source, target, [(int(a), int(b)) for a, b in grow], value)


OPERATORS: Final[dict[str, Handler]] = {
    "Pad": pad,
}
