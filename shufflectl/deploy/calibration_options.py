"""On what networks in integers are calibrated, and how, as users say it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.errors import UsageError

__all__ = ["MIN_IMAGES", "CalibrationOptions"]

MIN_IMAGES: Final = 8
"""Ranges of fewer images say little about the next one."""

_MAX_IMAGES: Final = 4096


@dataclass(frozen=True)
class CalibrationOptions:
    """On what a network is calibrated, and how.

    Attributes:
        source: ``digits``, a folder of images, an ``.npz`` file, or the ``.json`` of a calibration that was
            made before.
        images: How many images at most; chosen by the seed where there are more.
        seed: Of that choice.
        recipe: See `quantize.calibrate.Recipe`.
    """

    source: str
    images: int = 128
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not MIN_IMAGES <= self.images <= _MAX_IMAGES:
            raise UsageError(
                f"a network is not calibrated on {self.images} images",
                hint=f"give a number from {MIN_IMAGES} to {_MAX_IMAGES}",
            )

    @property
    def made_before(self) -> Path | None:
        """The file of a calibration that was made before, where the source is one."""
        return Path(self.source) if self.source.lower().endswith(".json") else None
