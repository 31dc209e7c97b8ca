"""A network in codes, as an export or a tuning makes it: calibrated once, for all of its files."""

import hashlib
from dataclasses import dataclass, replace

from shufflectl.converters.metadata import ModelInfo, QuantizationRecord
from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.pixels import Given
from shufflectl.deploy.quantization import Quantized, find_layers
from shufflectl.deploy.verify import Notify
from shufflectl.errors import UsageError

__all__ = ["Codes", "calibrated"]


@dataclass(frozen=True)
class Codes:
    """The network in codes.

    Attributes:
        quantized: The graph and its calibration.
        record: What files say of it.
        data: The calibration as a file.
        images: Some of those it was calibrated on, where they are at hand.
    """

    quantized: Quantized
    record: QuantizationRecord
    data: bytes
    images: Feeds | None

    def describe(self, info: ModelInfo, request: ExportRequest, target: str) -> ModelInfo:
        """Return what an int8 file says about itself, from what any file of the export says."""
        if info.input is not None and request.io != "float" and target == "tflite":
            info = replace(info, input=replace(info.input, type=f"{request.io} codes"))
        return replace(info, quantization=self.record)


def calibrated(request: ExportRequest, given: Given, info: ModelInfo, notify: Notify) -> Codes:
    """Calibrate a graph on what the request says.

    Raises:
        UsageError: A layer that is to be kept in floating point does not exist.
        DataError: The images cannot be used.
    """
    from shufflectl.deploy.calibration import Calibrator

    if request.calibration is None:
        raise UsageError("int8 needs images to calibrate on", hint="add --calibration")
    floats = find_layers(given.graph, request.keep_float)
    calibrator = Calibrator(given.graph, request.calibration, info.preprocess, given.expects, notify)
    if request.target_sqnr is not None:
        seen = Quantized(given.graph, replace(calibrator.observed, floats=floats))
        floats |= _mixed(seen, calibrator.images, given, request.target_sqnr, notify)
    found = calibrator.settled(floats)
    if request.target_sqnr is not None and calibrator.images is not None:
        # The goal was reached before the last biases were settled, which few images may make worse.
        plain = replace(calibrator.observed, floats=floats)
        found = _nearer(given, calibrator.images, found, plain)
    data = found.to_bytes()
    name = f"{info.stem}-calibration.json"
    record = QuantizationRecord(name, hashlib.sha256(data).hexdigest(), tuple(sorted(found.floats)))
    return Codes(Quantized(given.graph, found), record, data, calibrator.images)


def _nearer(given: Given, images: Feeds, *calibrations: Calibration) -> Calibration:
    """Return the calibration whose network comes nearest to floating point on the images."""
    from shufflectl.deploy.sensitivity import output_sqnr

    return max(
        calibrations, key=lambda found: output_sqnr(Quantized(given.graph, found), images, given.expects)
    )


def _mixed(
    quantized: Quantized, images: Feeds | None, given: Given, target: float, notify: Notify
) -> frozenset[str]:
    """Return the fewest layers to keep in floating point."""
    from shufflectl.deploy.sensitivity import fewest_floats

    if images is None:
        raise UsageError(
            "a calibration that was made before has no images to measure layers on",
            hint="give --calibration images, or name the layers with --keep-float",
        )
    return fewest_floats(quantized, images, given.expects, target, notify)
