"""What happens to an image before it enters a model: colour order, scale, mean, standard deviation.

A model with the wrong preprocessing gives wrong answers without any error, so the specification
travels with the model: into the manifest and into each format's own metadata.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIGITS", "IMAGENET", "Preprocess"]

Color = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Preprocess:
    """The map from 8-bit pixels to a model's input: ``(pixel * scale - mean) / std``, per channel.

    Attributes:
        color: The order of the input's channels.
        scale: What a pixel in 0 to 255 is multiplied with before the mean is subtracted.
        mean: One figure a channel, in the order of ``color``, in units of the scaled pixel.
        std: One figure a channel, likewise.
    """

    color: Color = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the model's input for RGB images.

        Args:
            images: ``[N, H, W, 3]``, uint8, RGB, already of the model's input size.

        Returns:
            ``[N, 3, H, W]``, float32.
        """
        pixels = images if self.color == "rgb" else images[..., ::-1]
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {"color": self.color, "scale": self.scale, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
        if data["color"] not in ("rgb", "bgr") or len(mean) != 3 or len(std) != 3:
            raise ValueError(f"not a preprocessing specification: {dict(data)!r}")
        return cls(data["color"], float(data["scale"]), mean, std)


IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What torchvision's published weights were trained with."""

DIGITS = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""What the bundled digits weights were trained with."""
