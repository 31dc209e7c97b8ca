"""Resize: written where TFLite reads exactly the same pixels as ONNX, or as gathers, or refused.

Both formats' rules are computed and compared, so nothing rests on the names of modes.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op
from numpy.typing import NDArray

from shufflectl.converters.sampling import nearest_pixels, sampled_points
from shufflectl.converters.tflite.emitter import Emitter, Site, fixed_sizes
from shufflectl.converters.trace import NHWC

__all__ = ["resize"]


def resize(e: Emitter, site: Site) -> None:
    """Write Resize over H and W where TFLite reads exactly the same pixels.

    Nearest neighbours that TFLite would round otherwise become a GATHER for each axis.
    """
    data = e.operand(site.input(0))
    mode, coordinates = (
        site.text("mode", "nearest"),
        site.text("coordinate_transformation_mode", "half_pixel"),
    )
    # shape inference gives a symbolic batch a new name here
    batches = {size if isinstance(size, int) else "" for size in (data.shape[0], site.shape[0])}
    if data.rank != 4 or data.shape[1] != site.shape[1] or len(batches) > 1:
        site.refuse("only H and W of an image can be resized")
    if mode not in ("nearest", "linear"):
        site.refuse(f"mode {mode!r} is not supported", "use 'nearest' or 'linear'")
    if site.integer("antialias", 0):
        site.refuse("antialias is not supported")
    before, after = fixed_sizes(site, data.shape, (2, 3)), fixed_sizes(site, site.shape, (2, 3))
    scales = site.optional(2, "list of scales")
    given = [o / i for i, o in zip(before, after, strict=True)]
    if scales is not None and scales.size:
        axes = site.ints("axes", range(4)) if scales.size != 4 or site.ints("axes", []) else list(range(4))
        by_axis = {a % 4: float(s) for a, s in zip(axes, scales, strict=True)}
        given = [by_axis.get(2, 1.0), by_axis.get(3, 1.0)]
    wanted = []
    for sizes in zip(before, after, given, strict=True):
        points = sampled_points(coordinates, *sizes)
        if points is None:
            site.refuse(f"coordinate mode {coordinates!r} is not supported")
        wanted.append(points)
    source = e.settle(data, NHWC)
    size = e.constant(np.asarray(after, np.int32), "size")
    if mode == "linear":
        wanted = [np.clip(w, 0, n - 1) for w, n in zip(wanted, before, strict=True)]
        for corners, half in ((False, False), (True, False), (False, True)):
            have = [
                np.clip(_linear_positions(i, o, corners, half), 0, i - 1)
                for i, o in zip(before, after, strict=True)
            ]
            if all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(wanted, have, strict=True)):
                bilinear = schema.ResizeBilinearOptionsT(alignCorners=corners, halfPixelCenters=half)
                e.add(Op.RESIZE_BILINEAR, [source, size], [e.result(site.output, NHWC)], bilinear)
                return
        site.refuse(f"no option of RESIZE_BILINEAR samples as {coordinates!r} does from {before} to {after}")
    rounding = site.text("nearest_mode", "round_prefer_floor")
    pixels = []
    for points, length in zip(wanted, before, strict=True):
        picked = nearest_pixels(rounding, points, length)
        if picked is None:
            site.refuse(f"nearest mode {rounding!r} is not supported")
        pixels.append(picked)
    for corners, half in ((False, False), (True, False), (False, True)):
        nearest = [_nearest_pixels(i, o, corners, half) for i, o in zip(before, after, strict=True)]
        if all(np.array_equal(a, b) for a, b in zip(pixels, nearest, strict=True)):
            options = schema.ResizeNearestNeighborOptionsT(alignCorners=corners, halfPixelCenters=half)
            e.add(Op.RESIZE_NEAREST_NEIGHBOR, [source, size], [e.result(site.output, NHWC)], options)
            return
    batch, _, width, channels = source.dims
    rows = e.inner(site, "rows", [batch, after[0], width, channels], data.dtype)
    indices = [e.constant(p.astype(np.int32), "indices") for p in pixels]
    e.add(Op.GATHER, [source, indices[0]], [rows], schema.GatherOptionsT(axis=1))
    e.add(Op.GATHER, [rows, indices[1]], [e.result(site.output, NHWC)], schema.GatherOptionsT(axis=2))


def _linear_positions(before: int, after: int, corners: bool, half: bool) -> NDArray[np.float64]:
    """Return where RESIZE_BILINEAR samples (kernels/internal/reference/resize_bilinear.h)."""
    x = np.arange(after, dtype=np.float64)
    scale = (before - 1) / (after - 1) if corners and after > 1 else before / after
    return (x + 0.5) * scale - 0.5 if half else x * scale


def _nearest_pixels(before: int, after: int, corners: bool, half: bool) -> NDArray[np.int64]:
    """Return the pixels that RESIZE_NEAREST_NEIGHBOR takes (reference/resize_nearest_neighbor.h)."""
    x = np.arange(after, dtype=np.float32)
    scale = np.float32((before - 1) / (after - 1) if corners and after > 1 else before / after)
    position = (x + np.float32(0.5 if half else 0)) * scale
    pixel: NDArray[np.int64] = np.floor(position + np.float32(0.5 if corners else 0)).astype(np.int64)
    return pixel.clip(0, before - 1)
