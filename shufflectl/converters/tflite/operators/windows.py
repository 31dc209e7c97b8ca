"""The windows of convolutions and poolings, and their padding in TFLite's terms."""

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from shufflectl.converters.tflite.emitter import Emitter, Site, fixed_sizes
from shufflectl.converters.tflite.flatbuffer import Tensor
from shufflectl.converters.tflite.layout import Shape
from shufflectl.converters.tflite.operators.padding import pad_operator

__all__ = ["Window", "pad_window"]


class Window:
    """The geometry of a convolution or pooling window over H and W, and its padding in TFLite's terms."""

    def __init__(self, site: Site, source: Shape, kernel: Sequence[int]) -> None:
        if len(source) != 4 or len(kernel) != 2:
            site.refuse(f"only windows over two spatial axes are supported, not {len(source) - 2}")
        self.kernel = list(kernel)
        self.strides = site.ints("strides", [1, 1])
        self.dilations = site.ints("dilations", [1, 1])
        self.source = fixed_sizes(site, source, (2, 3))
        self.result = fixed_sizes(site, site.shape, (2, 3))
        self.extent = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        # what the outputs read beyond the input, whatever the declared padding at the end is
        span = [(o - 1) * s + e for o, s, e in zip(self.result, self.strides, self.extent, strict=True)]
        self.declared = site.ints("pads", [0, 0, 0, 0])
        auto = site.text("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = [max(n - size, 0) for n, size in zip(span, self.source, strict=True)]
            small = [t // 2 for t in total]
            large = [t - b for t, b in zip(total, small, strict=True)]
            self.declared = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
        elif auto == "VALID":
            self.declared = [0, 0, 0, 0]
        self.before = self.declared[:2]
        self.after = [max(n - b - s, 0) for n, b, s in zip(span, self.before, self.source, strict=True)]

    @property
    def padding(self) -> int | None:
        """TFLite's padding scheme where one means exactly the same; None where a PAD is needed."""
        rows = range(2)
        valid = [(self.source[i] - self.extent[i]) // self.strides[i] + 1 for i in rows]
        if self.before == [0, 0] and valid == self.result:
            return int(schema.Padding.VALID)
        if [-(-self.source[i] // self.strides[i]) for i in rows] == self.result:
            total = [(self.result[i] - 1) * self.strides[i] + self.extent[i] - self.source[i] for i in rows]
            if [max(t, 0) // 2 for t in total] == self.before:
                return int(schema.Padding.SAME)
        return None

    def counts(self, *, include_pad: bool) -> NDArray[np.float32]:
        """Return how many elements each average is over, ``[1, OH, OW, 1]``."""
        rows = []
        for i in range(2):
            start = np.arange(self.result[i]) * self.strides[i] - self.before[i]
            low = -self.before[i] if include_pad else 0
            high = self.source[i] + (self.declared[i + 2] if include_pad else 0)
            end = np.minimum(start + self.kernel[i], high)
            rows.append(end - np.maximum(start, low))
        table: NDArray[np.float32] = np.multiply.outer(rows[0], rows[1]).astype(np.float32)
        return table[None, :, :, None]


def pad_window(e: Emitter, site: Site, source: Tensor, window: Window, value: np.float32) -> Tensor:
    """Pad H and W of an NHWC tensor explicitly."""
    batch, height, width, channels = source.dims
    (top, left), (bottom, right) = window.before, window.after
    sizes = [int(height) + top + bottom, int(width) + left + right]
    padded = e.inner(site, "pad", [batch, *sizes, channels])
    pad_operator(e, source, padded, [(0, 0), (top, bottom), (left, right), (0, 0)], value)
    return padded
