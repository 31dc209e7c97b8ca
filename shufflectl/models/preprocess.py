"""What happens to an image before it enters a model: size, colour order, scale, mean, standard deviation.

A model with the wrong preprocessing gives wrong answers without any error, so the specification
travels with the model: into the manifest and into each format's own metadata.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIGITS", "IMAGENET", "MEGVII", "PIXELS", "UNIT", "Color", "Layout", "Preprocess", "Resize"]

Color = Literal["rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
Resize = Literal["crop", "squash"]

_LARGEST: Final = 1e6
"""No figure of a specification is larger; fp16 and fp32 arithmetic would not survive it."""


@dataclass(frozen=True)
class Preprocess:
    """The map from an image to a model's input: of 8-bit pixels ``(pixel * scale - mean) / std``.

    Attributes:
        color: The order of the input's channels.
        scale: What a pixel in 0 to 255 is multiplied with before the mean is subtracted.
        mean: One figure a channel, in the order of ``color``, in units of the scaled pixel.
        std: One figure a channel, likewise.
        resize: ``crop``: the shorter side is resized to ``size / crop`` and the middle taken; ``squash``:
            both sides are resized, whatever the proportions. Bilinear, with a low-pass filter.
        crop: The share of the shorter side that is left by the crop, 0.875 for 224 of 256.
        layout: The order of the input's axes: ``[N, 3, H, W]`` or ``[N, H, W, 3]``.

    Raises:
        ValueError: A figure is not finite or out of its range, or a word is none of the choices.
    """

    color: Color = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Resize = "crop"
    crop: float = 0.875
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        for key, choices in (("color", ("rgb", "bgr")), ("resize", ("crop", "squash"))):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} is {getattr(self, key)!r:.40}, and not one of {', '.join(choices)}")
        if self.layout not in ("nchw", "nhwc"):
            raise ValueError(f"layout is {self.layout!r:.40}, and not one of nchw, nhwc")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError("mean and std have one figure for each of the 3 channels")
        if not all(math.isfinite(v) and abs(v) <= _LARGEST for v in self.mean):
            raise ValueError(f"mean holds {self.mean}, which no pixel comes near")
        for key, values in (("scale", (self.scale,)), ("std", self.std)):
            if not all(1 / _LARGEST <= v <= _LARGEST for v in values):
                raise ValueError(f"{key} must be from {1 / _LARGEST:g} to {_LARGEST:g}, and is {values}")
        if not 0.1 <= self.crop <= 1:
            raise ValueError(f"crop is a share from 0.1 to 1, and not {self.crop!r:.40}")

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the model's input for RGB images, in the order of axes that graphs have inside.

        Args:
            images: ``[N, H, W, 3]``, uint8, RGB, already of the model's input size.

        Returns:
            ``[N, 3, H, W]``, float32, whatever ``layout`` says.
        """
        pixels = images if self.color == "rgb" else images[..., ::-1]
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    @property
    def takes_pixels(self) -> bool:
        """Whether 8-bit pixels are the input as they are, but for the order of their channels."""
        return self.scale == 1 and not any(self.mean) and self.std == (1.0, 1.0, 1.0)

    @property
    def values(self) -> tuple[Color, float, tuple[float, ...], tuple[float, ...]]:
        """What decides on the values of the input: all but size and layout."""
        return self.color, self.scale, self.mean, self.std

    @property
    def text(self) -> str:
        """Colour and values in words: ``BGR, 0 to 255, not normalised``."""
        order = self.color.upper()
        if not any(self.mean) and self.std == (1.0, 1.0, 1.0):
            spans = {1.0: "0 to 255", 1 / 255: "0 to 1"}
            return f"{order}, {spans.get(self.scale, f'pixels times {self.scale:.6g}')}, not normalised"
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{order}, pixels times {self.scale:.6g}, mean {mean}, std {std}"

    def in_order(self, color: Color) -> Self:
        """Return the same map for another order of the channels: each keeps its mean and deviation."""
        if self.color == color:
            return self
        return replace(self, color=color, mean=self.mean[::-1], std=self.std[::-1])

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {
            "color": self.color,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
            "crop": self.crop,
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; size and layout may be absent, further keys are left aside.

        Raises:
            KeyError: Colour, scale, mean or standard deviation is missing.
            TypeError: A value is of another type.
            ValueError: A value is not one that a specification can have.
        """
        mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("mean and std have one figure for each of the 3 channels")
        rest = {key: data[key] for key in ("resize", "layout") if key in data}
        crop = float(data.get("crop", cls.crop))
        return cls(data["color"], float(data["scale"]), mean, std, crop=crop, **rest)


IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What torchvision's published weights were trained with."""

MEGVII = Preprocess(color="bgr", scale=1.0)
"""What Megvii's ShuffleNet-Series was trained with: ``ToBGRTensor`` of its ``train.py``."""

DIGITS = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""What the bundled digits weights were trained with."""

UNIT = Preprocess()
"""Pixels from 0 to 1."""

PIXELS = Preprocess(scale=1.0)
"""Pixels as they are, 0 to 255."""
