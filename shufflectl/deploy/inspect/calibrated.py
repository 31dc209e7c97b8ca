"""What an int8 file was calibrated on, from the calibration that an export wrote beside it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shufflectl.converters.metadata import QuantizationRecord
from shufflectl.deploy.digests import digest
from shufflectl.errors import DataError

__all__ = ["Calibrated", "read_calibrated"]


@dataclass(frozen=True)
class Calibrated:
    """On what, and how.

    Attributes:
        file: The calibration's name.
        sha256: Its digest, as the model's file says it.
        floats: Layers that compute in floating point.
        state: Whether that calibration lies beside the file; ``changed`` where another one does.
        made: Source, number of images, seed, method and the rest of `Calibration.summary`; empty where it is
            not at hand.
    """

    file: str
    sha256: str
    floats: tuple[str, ...]
    state: Literal["beside", "missing", "changed"]
    made: dict[str, Any]

    @property
    def text(self) -> str:
        """All of it in words."""
        if self.state == "missing":
            return f"unknown: {self.file} is not beside it"
        if self.state == "changed":
            return f"unknown: {self.file} beside it is another one"
        fix = ", biases corrected" if self.made["bias_correction"] else ""
        equalised = f", channels equalised ({self.made['equalise']:g})" if self.made["equalise"] else ""
        return f"{self.made['images']} images of {self.made['source']}, {self.made['method']}{equalised}{fix}"


def read_calibrated(path: Path, record: QuantizationRecord) -> Calibrated:
    """Return what is known of a file's calibration. A damaged one counts as another."""
    place = path.parent / record.calibration
    state: Literal["beside", "missing", "changed"] = "missing"
    made: dict[str, Any] = {}
    if place.is_file():
        state = "changed"
        if digest(place) == record.sha256:
            from shufflectl.deploy.calibration import read_calibration  # brings ONNX Runtime

            with suppress(DataError):
                made, state = read_calibration(place).summary, "beside"
    return Calibrated(record.calibration, record.sha256, record.floats, state, made)
