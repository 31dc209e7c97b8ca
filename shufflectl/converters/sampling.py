"""Which points of its input ONNX's Resize samples, for targets that compare them with their own rules.

The rules are those of the operator's definition (operator set 19). Every rule says for each position of the
output which position of the input is sampled, so an emitter need not trust the names of modes: it computes
both formats' positions and compares them.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest_pixels", "sampled_points"]


def sampled_points(mode: str, source: int, target: int, scale: float) -> NDArray[np.float64] | None:
    """Return the positions that a ``coordinate_transformation_mode`` samples along one axis, not clamped.

    Args:
        mode: The attribute.
        source: The axis' size before.
        target: Its size afterwards.
        scale: What the operator was given, or ``target / source``.

    Returns:
        ``[target]``, in units of input pixels; None for a mode that is not known.
    """
    out = np.arange(target, dtype=np.float64)
    match mode:
        case "pytorch_half_pixel" | "align_corners" if target == 1:
            return np.zeros(1)
        case "align_corners":
            return out * (source - 1) / (target - 1)
        case "half_pixel" | "pytorch_half_pixel":
            return (out + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            centre = source / 2 * (1 - target / (scale * source))
            return centre + (out + 0.5) / scale - 0.5
        case "asymmetric":
            return out / scale
    return None


def nearest_pixels(mode: str, points: NDArray[np.float64], source: int) -> NDArray[np.int64] | None:
    """Return the pixel that a ``nearest_mode`` takes at each position; None for a mode that is not known."""
    points = points.astype(np.float32).astype(np.float64)  # runtimes compute positions in float32
    match mode:
        case "floor":
            pixels = np.floor(points)
        case "ceil":
            pixels = np.ceil(points)
        case "round_prefer_floor":
            pixels = np.ceil(points - 0.5)
        case "round_prefer_ceil":
            pixels = np.floor(points + 0.5)
        case _:
            return None
    return pixels.astype(np.int64).clip(0, source - 1)
