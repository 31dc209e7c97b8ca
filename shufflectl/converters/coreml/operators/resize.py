"""Resize: ONNX's coordinate rules, mapped to MIL operations that sample the same points, or refused.

Every rule of either format says for each output position which input position is sampled. Both are
computed here and compared, so nothing rests on the names of modes. Nearest-neighbour resizing is, in any
mode, a constant choice of rows and columns: an integer upsampling where it repeats each of them, otherwise
two gathers.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.coreml.emission import Emission
from shufflectl.converters.sampling import nearest_pixels, sampled_points

__all__ = ["resize"]

_TOLERANCE = 1e-6
"""Pixels by which two sampling rules may differ and still be the same one in float32."""


def _mil_points(mode: str, source: int, target: int) -> NDArray[np.float64]:
    """Return the input positions that MIL's ``resize_bilinear`` documents for a ``sampling_mode``."""
    out = np.arange(target, dtype=np.float64)
    match mode:
        case "UNALIGN_CORNERS":
            points = out * (source / target) + 0.5 * source / target - 0.5
        case "STRICT_ALIGN_CORNERS":
            points = out * ((source - 1) / (target - 1)) if target > 1 else np.zeros(1)
        case _:  # DEFAULT
            points = out * (source / target)
    return np.clip(points, 0, source - 1)


def resize(e: Emission, node: ir.Node) -> None:
    """Emit ``Resize`` for modes nearest and linear on the last two dimensions."""
    attributes = node.attributes
    mode = attributes.get_string("mode", "nearest")
    rule = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    source, target = e.shape(node), e.graph.shape(node.outputs[0])
    if mode not in ("nearest", "linear"):
        raise e.refuse(node, f"MIL has no {mode} interpolation")
    if rule == "tf_crop_and_resize":
        raise e.refuse(node, "MIL's resize does not crop")
    if attributes.get_int("antialias", 0):
        raise e.refuse(node, "MIL's resize does not smooth before it shrinks (antialias)")
    if len(source) < 3 or source[:-2] != target[:-2]:
        raise e.refuse(node, "MIL resizes the last two dimensions of tensors of rank 3 or more")
    scales = _scales(e, node)
    sizes: list[tuple[int, int]] = []
    points = []
    for axis in (-2, -1):
        size_in, size_out = source[axis], target[axis]
        if not isinstance(size_in, int) or not isinstance(size_out, int):
            raise e.refuse(node, "its spatial dimensions are not static")
        sizes.append((size_in, size_out))
        sampled = sampled_points(rule, size_in, size_out, scales[axis] or size_out / size_in)
        if sampled is None:
            raise e.refuse(node, f"coordinate mode {rule!r} is not supported")
        points.append(sampled)
    if mode == "nearest":
        _nearest(e, node, sizes, points)
    else:
        _linear(e, node, sizes, points)


def _scales(e: Emission, node: ir.Node) -> dict[int, float]:
    """Return the scales given for the last two axes; 0 where the sizes decide."""
    given = e.constant(node, 2)
    if given is None or not given.size:
        if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise e.refuse(node, "it keeps the aspect ratio", "give the exact sizes")
        return {-2: 0.0, -1: 0.0}
    rank = len(e.shape(node))
    axes = [e.axis(node, a) for a in node.attributes.get_ints("axes", tuple(range(rank)))]
    found = dict(zip(axes, (float(s) for s in given), strict=True))
    return {axis: found.get(rank + axis, 1.0) for axis in (-2, -1)}


def _nearest(
    e: Emission, node: ir.Node, sizes: list[tuple[int, int]], points: list[NDArray[np.float64]]
) -> None:
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    picks = []
    for axis_points, (source, _) in zip(points, sizes, strict=True):
        pixels = nearest_pixels(rounding, axis_points, source)
        if pixels is None:
            raise e.refuse(node, f"nearest mode {rounding!r} is not supported")
        picks.append(pixels.astype(np.int32))
    factors = [target // source for source, target in sizes]
    repeats = all(
        target % source == 0 and np.array_equal(pick, np.arange(target) // factor)
        for pick, (source, target), factor in zip(picks, sizes, factors, strict=True)
    )
    if repeats:
        up = e.mb.upsample_nearest_neighbor(
            x=e.value(node), scale_factor_height=factors[0], scale_factor_width=factors[1], name=e.name(node)
        )
        e.bind(node, up)
        return
    rows = e.mb.gather(x=e.value(node), indices=picks[0], axis=-2, name=e.helper(node, "rows"))
    e.bind(node, e.mb.gather(x=rows, indices=picks[1], axis=-1, name=e.name(node)))


def _linear(
    e: Emission, node: ir.Node, sizes: list[tuple[int, int]], points: list[NDArray[np.float64]]
) -> None:
    # Linear interpolation repeats the border, so clamping the position is clamping both of its neighbours.
    wanted = [np.clip(p, 0, source - 1) for p, (source, _) in zip(points, sizes, strict=True)]
    for mode in ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "DEFAULT"):
        offered = [_mil_points(mode, source, target) for source, target in sizes]
        if all(np.abs(a - b).max() <= _TOLERANCE for a, b in zip(wanted, offered, strict=True)):
            height, width = sizes[0][1], sizes[1][1]
            sampled = e.mb.resize_bilinear(
                x=e.value(node),
                target_size_height=height,
                target_size_width=width,
                sampling_mode=mode,
                name=e.name(node),
            )
            e.bind(node, sampled)
            return
    raise e.refuse(node, "no sampling mode of MIL's resize_bilinear samples the same points")
